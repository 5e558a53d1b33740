//! What README and the documents beside it promise exists: commands, links, the files and tests that they name.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use clap::CommandFactory;

use super::Findings;
use crate::process::{cargo, passes};
use crate::tree::{self, Metadata};

/// Documents whose commands and links are held against the tree.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/performance.md",
    "docs/security.md",
    "docs/testing.md",
];

/// Every command in a fenced block, every relative link, every path and every test in backticks leads somewhere.
pub(super) fn check(metadata: &Metadata) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut commands = Vec::new();
    let mut links = 0;
    let mut named = 0;
    let known = names_of_tests()?;
    for document in DOCUMENTS {
        let Ok(text) = tree::read(Path::new(document)) else {
            findings.errors.push(format!("{document} is missing"));
            continue;
        };
        commands.extend(commands_of(&text).into_iter().map(|command| (document, command)));
        for link in links_of(&text) {
            links += 1;
            let folder = Path::new(document).parent().unwrap_or(Path::new(""));
            if !tree::root().join(folder).join(&link).exists() {
                findings.errors.push(format!("{document}: the link {link} leads nowhere"));
            }
        }
        for code in in_backticks(&text) {
            named += 1;
            let found = match kind_of(code) {
                Kind::Path => tree::root().join(code).exists(),
                Kind::Test => known.contains(code),
                Kind::Other => true,
            };
            if !found {
                findings.errors.push(format!("{document}: `{code}` is nowhere in the tree"));
            }
        }
    }
    let portcullis = tree::target_dir().join("debug/portcullis");
    if !passes(cargo().args(["build", "--quiet", "--package", "portcullis-cli"]))? {
        findings.errors.push("the portcullis command does not build".to_owned());
    }
    for (document, command) in &commands {
        if let Err(reason) = exists(metadata, &portcullis, command) {
            findings.errors.push(format!("{document}: `{}`: {reason}", command.join(" ")));
        }
    }
    findings.summary = format!("{} commands, {links} links, {named} names in backticks", commands.len());
    Ok(findings)
}

/// What stands between backticks, outside of fenced blocks.
fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    let lines = text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// What a word in backticks names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Path,
    Test,
    Other,
}

fn kind_of(code: &str) -> Kind {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    // Names of fewer words are variables, functions and fields as well.
    if code.matches('_').count() >= 4 && code.chars().all(plain) {
        return Kind::Test;
    }
    let inside = code.contains("/src") || code.contains("/tests");
    let path = inside && !code.starts_with('/') && !code.contains([' ', '*', ':', '<', '{']);
    if path { Kind::Path } else { Kind::Other }
}

/// Everything that may be the name of a test: functions, and the names of cases.
fn names_of_tests() -> Result<HashSet<String>> {
    let mut names = HashSet::new();
    for file in tree::files()?.iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        let text = tree::read(file)?;
        let functions = text.split("fn ").skip(1);
        let cases = text.split("name: \"").skip(1).chain(text.split("Trial::test(\"").skip(1));
        let name = |rest: &str| {
            rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().map(str::to_owned)
        };
        names.extend(functions.chain(cases).filter_map(name));
    }
    Ok(names)
}

/// The commands of fenced shell blocks, in words, prompts and leading variables removed.
fn commands_of(text: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut shell = None;
    for line in text.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            shell = match shell {
                Some(_) => None,
                None => Some(["", "sh", "bash", "console", "shell"].contains(&fence.trim())),
            };
            continue;
        }
        if shell != Some(true) {
            continue;
        }
        let line = line.trim().trim_start_matches("$ ").split(" #").next().unwrap_or("");
        let words = line.split_whitespace().skip_while(|word| *word == "sudo" || word.contains('='));
        let words: Vec<String> = words.map(str::to_owned).collect();
        if words.first().is_some_and(|word| word == "cargo" || word == "portcullis") {
            commands.push(words);
        }
    }
    commands
}

/// Targets of inline links that are paths in the repository.
fn links_of(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets
        .map(|target| target.split('#').next().unwrap_or(""))
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .map(str::to_owned)
        .collect()
}

fn exists(metadata: &Metadata, portcullis: &Path, command: &[String]) -> Result<(), String> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let after =
        |word: &str| words.iter().position(|known| *known == word).and_then(|at| words.get(at + 1)).copied();
    match words.as_slice() {
        ["cargo", "xtask", name, ..] => {
            let known = crate::Cli::command().get_subcommands().any(|known| known.get_name() == *name);
            if known { Ok(()) } else { Err("no such xtask".to_owned()) }
        }
        ["cargo", "run", ..] if words.contains(&"--example") => {
            let example = after("--example").unwrap_or("");
            let mut targets = metadata.packages.iter().flat_map(|package| &package.targets);
            let known = targets
                .any(|target| target.kind.iter().any(|kind| kind == "example") && target.name == example);
            if known { Ok(()) } else { Err("no such example".to_owned()) }
        }
        ["cargo", "run", ..] => help(portcullis, after("--").unwrap_or("--help")),
        ["portcullis", name, ..] => help(portcullis, name),
        ["cargo", "build" | "test" | "install" | "bench" | "doc" | "add", ..] => Ok(()),
        _ => Err("not a command that this check knows".to_owned()),
    }
}

/// Whether the command explains that subcommand.
fn help(portcullis: &Path, name: &str) -> Result<(), String> {
    let mut command = Command::new(portcullis);
    if !name.starts_with('-') {
        command.arg(name);
    }
    let status =
        command.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("portcullis does not know `{name}`")),
        Err(error) => Err(format!("cannot run {}: {error}", portcullis.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_from_shell_blocks_only() {
        let text = "`cargo nothing`\n```rust\ncargo no\n```\n```sh\n$ RUST_LOG=info cargo xtask check  # why\nls\n```\n";
        assert_eq!(commands_of(text), [["cargo", "xtask", "check"]]);
    }

    #[test]
    fn words_in_backticks_are_told_apart() {
        let text = "`a_b` and `wire/src/shm.rs`\n```sh\n`not this`\n```\n`one_test_of_many_words`";
        let words: Vec<_> = in_backticks(text).collect();
        assert_eq!(words, ["a_b", "wire/src/shm.rs", "one_test_of_many_words"]);
        let kinds: Vec<_> = words.into_iter().map(kind_of).collect();
        assert_eq!(kinds, [Kind::Other, Kind::Path, Kind::Test]);
        assert_eq!(kind_of("s4_r2_r3_s8_r5_refusals in a sentence"), Kind::Other);
    }

    #[test]
    fn links_are_paths() {
        assert_eq!(links_of("[a](A.md#x) [b](https://b) ![c](doc/c.svg) [d](#d)"), ["A.md", "doc/c.svg"]);
    }
}
