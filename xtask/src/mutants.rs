//! `cargo xtask mutants`: break what protects, one piece at a time, and see that a test notices.
//!
//! The list is `xtask/mutants.toml`. It runs on a copy of the tree under `target/mutants`, never on the tree itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::{self, Ended, cargo};
use crate::tally::Tally;
use crate::{report, tree};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these mutants; all of them when none is named.
    names: Vec<String>,
    /// Say what there is, what has to notice it, and whether it still applies.
    #[arg(long)]
    list: bool,
    /// Write the table in docs/testing.md anew.
    #[arg(long)]
    docs: bool,
}

/// One way to break the code.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    /// What it takes away.
    breaks: String,
    /// What `cargo test` is given; it passes on the tree and has to fail on the mutant.
    test: String,
    /// The test that has to be among those that fail, if one is named: the end of its name.
    by: Option<String>,
    /// Whether the test is a loom model.
    #[serde(default)]
    loom: bool,
    edit: Vec<Edit>,
}

/// One place to change.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: PathBuf,
    /// Stands in the file exactly once.
    find: String,
    replace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// What became of a mutant.
enum Fate {
    /// By this test.
    Caught(String),
    /// By this test, but not by the one that should have.
    Elsewhere(String),
    /// The tests did not end.
    Hung,
    Survived,
    /// Says nothing about the tests: the mutant is wrong.
    DoesNotCompile,
}

impl Mutant {
    /// The files that it changes, as they become; `read` gives them as they are.
    pub(crate) fn apply(&self, read: impl Fn(&Path) -> Result<String>) -> Result<BTreeMap<PathBuf, String>> {
        let mut files = BTreeMap::new();
        for Edit { file, find, replace } in &self.edit {
            let text = match files.remove(file) {
                Some(text) => text,
                None => read(file).with_context(|| format!("the mutant {} no longer applies", self.name))?,
            };
            let times = text.matches(find).count();
            let place = file.display();
            ensure!(
                times == 1,
                "the mutant {} no longer applies: {place} has {times} times {find:?}",
                self.name
            );
            ensure!(find != replace, "the mutant {} changes nothing in {place}", self.name);
            files.insert(file.clone(), text.replacen(find, replace, 1));
        }
        ensure!(!files.is_empty(), "the mutant {} changes nothing", self.name);
        Ok(files)
    }
}

/// How a mutant's tests are run: the command, and whether they are loom models.
type Tests<'a> = (&'a str, bool);

impl Mutant {
    fn tests(&self) -> Tests<'_> {
        (&self.test, self.loom)
    }

    /// What notices it, for people: a test, or the command that runs those of which one does.
    fn noticed_by(&self) -> String {
        let command = format!("cargo test {}{}", if self.loom { "--release " } else { "" }, self.test);
        match &self.by {
            Some(test) => format!("`{test}` (`{command}`)"),
            None => format!("`{command}`"),
        }
    }

    /// What became of it, by the tests that failed.
    fn noticed(&self, failures: &[String]) -> Fate {
        let first = failures.first().map_or("an abort", String::as_str).to_owned();
        match &self.by {
            None => Fate::Caught(first),
            Some(by) => match failures.iter().find(|name| name.ends_with(by.as_str())) {
                Some(test) => Fate::Caught(test.clone()),
                None => Fate::Elsewhere(first),
            },
        }
    }
}

/// The list, checked for what can be checked without the code.
pub(crate) fn list() -> Result<Vec<Mutant>> {
    let List { mutant } =
        toml::from_str(&tree::read(Path::new("xtask/mutants.toml"))?).context("xtask/mutants.toml")?;
    let mut names: Vec<_> = mutant.iter().map(|mutant| mutant.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two mutants are called {:?}", twice[0]);
    }
    Ok(mutant)
}

/// Runs them all; whether each was caught.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut mutants = list()?;
    for name in &args.names {
        ensure!(
            mutants.iter().any(|mutant| mutant.name == *name),
            "no mutant is called {name:?}; see --list"
        );
    }
    mutants.retain(|mutant| args.names.is_empty() || args.names.contains(&mutant.name));
    if args.list {
        return show(&mutants);
    }
    if args.docs {
        let text = tree::read(Path::new(DOCUMENT))?;
        fs::write(tree::root().join(DOCUMENT), with_table(&text, &mutants)?)?;
        return Ok(true);
    }
    for mutant in &mutants {
        mutant.apply(tree::read)?;
    }
    let copy = Copy::make()?;
    let healthy = copy.baselines(&mutants)?;
    let mut rows = vec![["mutant", "", "time", ""].map(str::to_owned).to_vec()];
    let mut caught = 0;
    for mutant in &mutants {
        let start = Instant::now();
        let usual = healthy.get(&mutant.tests()).copied().unwrap_or_default();
        let fate = copy.fate(mutant, usual)?;
        let (verdict, detail) = match &fate {
            Fate::Caught(test) => ("caught", format!("by {test}")),
            Fate::Elsewhere(test) => {
                ("caught, but", format!("by {test}, not by {}", mutant.by.as_deref().unwrap_or("")))
            }
            Fate::Hung => ("caught", "the tests hung".to_owned()),
            Fate::Survived => ("SURVIVED", format!("{} (cargo test {})", mutant.breaks, mutant.test)),
            Fate::DoesNotCompile => {
                ("INVALID", format!("does not compile; see {}", copy.log(mutant).display()))
            }
        };
        caught += usize::from(matches!(fate, Fate::Caught(_) | Fate::Hung));
        eprintln!("mutants: {}: {verdict} {detail}", mutant.name);
        rows.push(vec![mutant.name.clone(), verdict.to_owned(), report::seconds(start.elapsed()), detail]);
    }
    println!("\n{}", report::table(&rows));
    println!("{caught} of {} mutants caught", mutants.len());
    Ok(caught == mutants.len())
}

fn show(mutants: &[Mutant]) -> Result<bool> {
    let mut rows = vec![["mutant", "", "what it breaks", "noticed by"].map(str::to_owned).to_vec()];
    let mut all = true;
    for mutant in mutants {
        let applies = mutant.apply(tree::read).is_ok();
        all &= applies;
        let state = if applies { "applies" } else { "NO LONGER APPLIES" };
        let by = mutant.noticed_by().replace('`', "");
        rows.push(vec![mutant.name.clone(), state.to_owned(), mutant.breaks.clone(), by]);
    }
    print!("{}", report::table(&rows));
    Ok(all)
}

/// Where people read which test notices which planted bug.
const DOCUMENT: &str = "docs/testing.md";

/// Around the table in it.
const MARKS: [&str; 2] = ["<!-- cargo xtask mutants --docs: begin -->\n", "<!-- end -->\n"];

/// The document with the table as the list has it.
fn with_table(text: &str, mutants: &[Mutant]) -> Result<String> {
    let parts =
        text.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?.1)));
    let (before, after) = parts.with_context(|| format!("{DOCUMENT} has no place for the table"))?;
    let mut table = "| planted bug | what it breaks | noticed by |\n|---|---|---|\n".to_owned();
    for mutant in mutants {
        let row = format!("| {} | {} | {} |\n", mutant.name, mutant.breaks, mutant.noticed_by());
        table.push_str(&row);
    }
    Ok(format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]))
}

/// What is wrong with the list: mutants that no longer apply, tests that are no more, a table that says something else.
pub(crate) fn findings() -> Result<(usize, Vec<String>)> {
    let mutants = list()?;
    let errors = mutants.iter().filter_map(|mutant| mutant.apply(tree::read).err());
    let mut errors: Vec<String> = errors.map(|error| format!("{error:#}")).collect();
    let mut sources = String::new();
    for file in tree::files()?.iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs")) {
        sources.push_str(&tree::read(file)?);
    }
    for mutant in &mutants {
        let by = mutant.by.as_deref().map(|by| by.rsplit("::").next().unwrap_or(by));
        if by.is_some_and(|by| !sources.contains(by)) {
            errors.push(format!("the mutant {}: no test is called {:?}", mutant.name, by.unwrap_or("")));
        }
    }
    let text = tree::read(Path::new(DOCUMENT))?;
    if with_table(&text, &mutants)? != text {
        errors.push(format!("{DOCUMENT}: the table is another than the list: cargo xtask mutants --docs"));
    }
    Ok((mutants.len(), errors))
}

/// The copy of the tree that is mutated.
struct Copy {
    folder: PathBuf,
}

/// A healthy test run may take so long, compiling included.
const LIMIT: Duration = Duration::from_secs(15 * 60);

impl Copy {
    /// Brings the copy up to date; files that did not change keep their times, so that cargo builds little.
    fn make() -> Result<Self> {
        let copy = Self { folder: tree::target_dir().join("mutants") };
        let wanted = tree::files()?;
        for file in &wanted {
            let bytes = fs::read(tree::root().join(file))?;
            copy.write(file, &bytes)?;
        }
        copy.prune(&copy.tree(), &wanted)?;
        fs::create_dir_all(copy.folder.join("log"))?;
        Ok(copy)
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    fn log(&self, mutant: &Mutant) -> PathBuf {
        self.folder.join("log").join(format!("{}.log", mutant.name))
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.tree().join(file);
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes files that the tree no longer has.
    fn prune(&self, folder: &Path, wanted: &[PathBuf]) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.prune(&path, wanted)?;
                continue;
            }
            let inside = path.strip_prefix(self.tree())?;
            if wanted.binary_search_by(|file| file.as_path().cmp(inside)).is_err() {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn cargo_test(&self, (test, loom): Tests<'_>, no_run: bool) -> Command {
        let mut command = cargo();
        command.current_dir(self.tree()).arg("test");
        command.args(Some("--no-run").filter(|_| no_run)).args(Some("--release").filter(|_| loom));
        command.args(test.split_whitespace());
        command.env("CARGO_TERM_COLOR", "never").env("PORTCULLIS_DEVICE", "emu:64M");
        let target = self.folder.join("target");
        if loom {
            command.env("CARGO_TARGET_DIR", target.join("loom")).env("RUSTFLAGS", "--cfg loom");
        } else {
            command.env("CARGO_TARGET_DIR", target);
        }
        command
    }

    /// That the tests pass on the tree as it is, and how long each command takes.
    fn baselines<'a>(&self, mutants: &'a [Mutant]) -> Result<BTreeMap<Tests<'a>, Duration>> {
        let mut times = BTreeMap::new();
        for mutant in mutants {
            let tests = mutant.tests();
            if times.contains_key(&tests) {
                continue;
            }
            eprintln!("mutants: without any: cargo test {}", mutant.test);
            let mut output = String::new();
            let built = watch(&mut self.cargo_test(tests, true), LIMIT, &mut output)?.0;
            let start = Instant::now();
            let (ended, tally) = watch(&mut self.cargo_test(tests, false), LIMIT, &mut output)?;
            if built != Ended::Well || ended != Ended::Well {
                bail!("`cargo test {}` fails without any mutant:\n{output}", mutant.test);
            }
            ensure!(tally.passed > 0, "`cargo test {}` runs no test", mutant.test);
            times.insert(tests, start.elapsed());
        }
        Ok(times)
    }

    fn fate(&self, mutant: &Mutant, usual: Duration) -> Result<Fate> {
        let changed = mutant.apply(|file| Ok(fs::read_to_string(self.tree().join(file))?))?;
        let originals =
            changed.keys().map(|file| Ok(fs::read(self.tree().join(file))?)).collect::<Result<Vec<_>>>()?;
        for (file, text) in &changed {
            self.write(file, text.as_bytes())?;
        }
        let mut output = String::new();
        let fate = self.try_it(mutant, usual, &mut output);
        for (file, original) in changed.keys().zip(&originals) {
            self.write(file, original)?;
        }
        fs::write(self.log(mutant), output)?;
        fate
    }

    fn try_it(&self, mutant: &Mutant, usual: Duration, output: &mut String) -> Result<Fate> {
        let (built, _) = watch(&mut self.cargo_test(mutant.tests(), true), LIMIT, output)?;
        if built != Ended::Well {
            return Ok(Fate::DoesNotCompile);
        }
        let limit = usual * 5 + Duration::from_secs(60);
        let (ended, tally) = watch(&mut self.cargo_test(mutant.tests(), false), limit, output)?;
        Ok(match ended {
            Ended::Well => Fate::Survived,
            Ended::TimedOut => Fate::Hung,
            Ended::Badly => mutant.noticed(&tally.failures),
        })
    }
}

fn watch(command: &mut Command, limit: Duration, output: &mut String) -> Result<(Ended, Tally)> {
    let mut tally = Tally::default();
    let ended = process::watch(command, limit, &mut |line| {
        if let Some(line) = line {
            tally.line(line);
            output.push_str(line);
            output.push('\n');
        }
    })?;
    Ok((ended, tally))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(edits: &[(&str, &str)]) -> Mutant {
        let [name, breaks, test] = ["x", "y", "--package z"].map(str::to_owned);
        let edit = |&(find, replace): &(&str, &str)| Edit {
            file: "a.rs".into(),
            find: find.to_owned(),
            replace: replace.to_owned(),
        };
        Mutant { name, breaks, test, by: None, loom: false, edit: edits.iter().map(edit).collect() }
    }

    fn apply(edits: &[(&str, &str)], text: &str) -> Result<String, String> {
        let files = mutant(edits).apply(|_| Ok(text.to_owned())).map_err(|error| error.to_string())?;
        Ok(files[Path::new("a.rs")].clone())
    }

    #[test]
    fn a_mutant_applies_exactly_once() {
        assert_eq!(apply(&[("b", "c"), ("a", "x")], "abd").unwrap(), "xcd");
        for text in ["a", "bb"] {
            let error = apply(&[("b", "c")], text).unwrap_err();
            assert!(error.contains("no longer applies"), "{error}");
        }
        assert!(apply(&[("b", "b")], "b").is_err());
        assert!(mutant(&[]).apply(|_| Ok(String::new())).is_err());
    }

    #[test]
    fn a_mutant_may_say_who_has_to_notice() {
        let failures = ["tpt::a::first".to_owned(), "tpt::a::second".to_owned()];
        let mut mutant = mutant(&[]);
        assert!(matches!(mutant.noticed(&failures), Fate::Caught(name) if name == "tpt::a::first"));
        assert!(matches!(mutant.noticed(&[]), Fate::Caught(name) if name == "an abort"));
        mutant.by = Some("second".to_owned());
        assert!(matches!(mutant.noticed(&failures), Fate::Caught(name) if name == "tpt::a::second"));
        assert!(matches!(mutant.noticed(&failures[..1]), Fate::Elsewhere(name) if name == "tpt::a::first"));
    }

    #[test]
    fn the_table_is_put_between_its_marks() {
        let empty = format!("a\n{}old\n{}b\n", MARKS[0], MARKS[1]);
        let text = with_table(&empty, &[mutant(&[])]).unwrap();
        assert!(text.starts_with("a\n") && text.ends_with("b\n"));
        assert!(text.contains("\n| x | y | `cargo test --package z` |\n") && !text.contains("old"));
        assert_eq!(with_table(&text, &[mutant(&[])]).unwrap(), text);
        assert!(with_table("no marks", &[]).is_err());
    }

    #[test]
    fn the_list_can_be_read() {
        list().unwrap();
    }
}
