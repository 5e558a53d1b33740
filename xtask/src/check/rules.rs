//! The rules of the house that no compiler knows.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Findings;
use super::source::{Source, has_word};
use crate::tree::{self, Metadata};

/// Names that say nothing: what is in such a room has a better name, or belongs elsewhere.
const EMPTY_NAMES: [&str; 7] = ["common", "util", "utils", "base", "helper", "helpers", "misc"];

/// Rooms that hold no unsafe code, whatever they ask.
const SAFE_ROOMS: [&str; 6] =
    ["tpt", "store", "driver/src/spec", "driver/src/nvme", "driver/src/virtio", "adapter/src/engine"];

const SOFT_FILE: usize = 600;
const HARD_FILE: usize = 1000;
const SOFT_FUNCTION: usize = 70;

fn rust_files() -> Result<Vec<(PathBuf, String)>> {
    let files = tree::files()?.into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs"));
    files.map(|file| tree::read(&file).map(|text| (file, text))).collect()
}

/// No package and no module has an empty name.
pub(super) fn names(metadata: &Metadata) -> Result<Findings> {
    let empty = |name: &str| EMPTY_NAMES.contains(&name);
    let mut findings = Findings::default();
    for package in metadata.packages.iter().filter(|package| empty(&package.name)) {
        findings.errors.push(format!("the package name `{}` says nothing", package.name));
    }
    let files = rust_files()?;
    for (file, text) in &files {
        let mut parts = file
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect::<Vec<_>>();
        parts.retain(|part| empty(part));
        for (_, line) in Source::new(text).all_lines() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "mod").skip(1);
            let name = words.next().unwrap_or("").trim_end_matches([';', '{']);
            if line.trim_end().ends_with('{') && empty(name) {
                parts.push(name.to_owned());
            }
        }
        findings
            .errors
            .extend(parts.iter().map(|name| format!("{}: the name `{name}` says nothing", file.display())));
    }
    findings.summary = format!("{} source files", files.len());
    Ok(findings)
}

/// Unsafe code only in modules that opt in at their head and say why; listed, so that a new one is seen.
pub(super) fn unsafety() -> Result<Findings> {
    let mut findings = Findings::default();
    for (file, text) in rust_files()? {
        let module = Unsafety::of(&text);
        findings.errors.extend(module.errors(&file));
        if module.opted_in || module.declarations > 0 {
            findings.notes.push(format!("{} may be unsafe: {} uses", file.display(), module.uses));
        }
    }
    let tpt = Path::new("tpt/src/lib.rs");
    if !tree::read(tpt)?.contains("#![forbid(unsafe_code)]") {
        findings.errors.push("tpt/src/lib.rs does not say `#![forbid(unsafe_code)]`".to_owned());
    }
    findings.summary = format!("modules that opt in: {}", findings.notes.len());
    Ok(findings)
}

/// What a file says about unsafe code.
struct Unsafety {
    /// `#![allow(unsafe_code)]` before the first item, with a comment beside it.
    opted_in: bool,
    /// The same without a reason.
    unexplained: bool,
    /// Lines, from 1, that allow it in any other way.
    stray: Vec<usize>,
    /// Declarations of unsafe traits, each allowed on its own.
    declarations: usize,
    /// Lines that say `unsafe`.
    uses: usize,
}

impl Unsafety {
    fn of(text: &str) -> Self {
        let source = Source::new(text);
        let raw: Vec<&str> = text.lines().collect();
        let lines: Vec<(usize, &str)> = source.all_lines().collect();
        let head =
            lines.iter().find(|(_, code)| !code.trim().is_empty() && !code.trim_start().starts_with("#!["));
        let head = head.map_or(usize::MAX, |(line, _)| *line);
        let mut this =
            Self { opted_in: false, unexplained: false, stray: Vec::new(), declarations: 0, uses: 0 };
        for &(line, code) in &lines {
            this.uses += usize::from(has_word(code, "unsafe"));
            if !code.contains("allow(unsafe_code") {
                continue;
            }
            let beside = |line: usize| {
                raw.get(line - 1).is_some_and(|text| text.contains("//") && !text.contains("//!"))
            };
            let explained = beside(line) || (line > 1 && beside(line - 1)) || beside(line + 1);
            let next = lines.get(line).map_or("", |(_, code)| *code);
            if code.contains("#![allow") && line < head {
                this.opted_in = true;
                this.unexplained |= !explained;
            } else if has_word(next, "unsafe") && has_word(next, "trait") {
                this.declarations += 1;
                this.unexplained |= !explained;
            } else {
                this.stray.push(line);
            }
        }
        this
    }

    fn errors(&self, file: &Path) -> Vec<String> {
        let name = file.display();
        let mut errors = Vec::new();
        let opens_crate = file.ends_with("src/lib.rs");
        if self.unexplained {
            errors.push(format!("{name}: allows unsafe code without a comment beside it that says why"));
        }
        for line in &self.stray {
            errors.push(format!(
                "{name}:{line}: unsafe code is allowed at the head of a module, not in its midst"
            ));
        }
        if self.opted_in && opens_crate {
            errors.push(format!(
                "{name}: allows unsafe code in a whole crate; let the module that needs it ask"
            ));
        }
        if self.opted_in && self.uses == 0 {
            errors.push(format!("{name}: allows unsafe code and has none"));
        }
        if !self.opted_in && self.uses > self.declarations {
            errors.push(format!("{name}: has unsafe code and did not opt in at its head"));
        }
        if self.uses > 0
            && SAFE_ROOMS
                .iter()
                .any(|room| file.starts_with(room) || file.with_extension("").starts_with(room))
        {
            errors.push(format!("{name}: no unsafe code in this room"));
        }
        errors
    }
}

/// No reminder is left lying about: what is to be done has an issue.
pub(super) fn words() -> Result<Findings> {
    // Assembled, so that this file does not find itself.
    let reminders = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let debug = concat!("dbg", "!(");
    let mut findings = Findings::default();
    let mut count = 0;
    for file in tree::files()? {
        let text_file = file
            .extension()
            .is_some_and(|e| ["rs", "toml", "md", "sh", "c", "h", "yml"].iter().any(|t| e == *t));
        if !text_file && !file.starts_with(".ci") {
            continue;
        }
        count += 1;
        for (line, text) in tree::read(&file)?.lines().enumerate() {
            for word in reminders.iter().filter(|word| has_word(text, word)) {
                findings.errors.push(format!("{}:{}: {word}", file.display(), line + 1));
            }
            if text.contains(debug) {
                findings.errors.push(format!("{}:{}: {debug}..)", file.display(), line + 1));
            }
        }
    }
    findings.summary = format!("{count} text files");
    Ok(findings)
}

/// A file that has nothing but tests.
fn is_test(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem == "tests")
        || file.iter().any(|part| part == "tests" || part == "benches")
}

/// Files and functions of a size that one can hold in mind. Long ones are notes, very long files are errors.
pub(super) fn sizes() -> Result<Findings> {
    let mut findings = Findings::default();
    let mut total = 0;
    for (file, text) in rust_files()? {
        let source = Source::new(&text);
        let lines = source.code_lines().count();
        let name = file.display();
        if is_test(&file) {
            if lines > HARD_FILE {
                findings.notes.push(format!("{name}: {lines} lines of tests"));
            }
            continue;
        }
        total += lines;
        if lines > HARD_FILE {
            findings.errors.push(format!("{name}: {lines} lines without tests, more than {HARD_FILE}"));
        } else if lines > SOFT_FILE {
            findings.notes.push(format!("{name}: {lines} lines without tests"));
        }
        for function in source.functions().iter().filter(|function| function.lines > SOFT_FUNCTION) {
            findings
                .notes
                .push(format!("{name}:{}: `{}` has {} lines", function.line, function.name, function.lines));
        }
    }
    findings.summary = format!("{total} lines of Rust without tests");
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(file: &str, text: &str) -> usize {
        Unsafety::of(text).errors(Path::new(file)).len()
    }

    #[test]
    fn a_module_opts_in_at_its_head_and_says_why() {
        let good = "//! A room.\n#![allow(unsafe_code)] // it maps memory\n\nfn f() { unsafe {} }\n";
        assert_eq!(errors("wire/src/view.rs", good), 0);
        assert_eq!(errors("wire/src/view.rs", &good.replace(" // it maps memory", "")), 1);
        assert_eq!(errors("wire/src/lib.rs", good), 1);
        assert_eq!(errors("tpt/src/x.rs", good), 1);
        assert_eq!(errors("wire/src/view.rs", &good.replace("unsafe {}", "")), 1);
    }

    #[test]
    fn unsafe_code_without_opting_in_is_an_error() {
        assert_eq!(errors("wire/src/x.rs", "fn f() { unsafe {} }\n"), 1);
        assert_eq!(errors("wire/src/x.rs", "// unsafe\nfn f() {}\n"), 0);
        assert_eq!(errors("wire/src/x.rs", "fn g() {}\n#[allow(unsafe_code)]\nfn f() { unsafe {} }\n"), 2);
    }

    #[test]
    fn an_unsafe_trait_may_be_declared_alone() {
        let text = "fn g() {}\n#[allow(unsafe_code)] // a promise\npub unsafe trait T {}\n";
        assert_eq!(errors("driver/src/hal.rs", text), 0);
    }
}
