//! From a figure's name to a figure: which program measures it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::figure::{Figure, Side};
use super::{counted, in_guest};
use crate::{process, tree};

/// Whether a figure is measured in a guest.
pub(crate) fn in_a_guest(name: &str) -> bool {
    name.starts_with("guest-") || name == "doorbells"
}

/// Builds what measures when it is first needed.
pub(crate) struct Sources {
    quick: bool,
    fifo: bool,
    measure: Option<PathBuf>,
}

impl Sources {
    pub(crate) fn new(quick: bool, fifo: bool) -> Self {
        Self { quick, fifo, measure: None }
    }

    /// Measures the figure called `name`; others may come with it.
    pub(crate) fn measure(&mut self, name: &str) -> Result<Vec<Figure>> {
        match name {
            "doorbells" => Ok(vec![in_guest::doorbells(self.quick)?]),
            _ if in_a_guest(name) => in_guest::compare(self.quick),
            "shared-lines" => Ok(vec![shared_lines()?]),
            "turn-instructions" => Ok(vec![counted::turn(self.quick)?]),
            "file-instructions" => Ok(vec![counted::file(self.quick)?]),
            "idle-instructions" => Ok(vec![counted::idle_queues(self.quick)?]),
            "check-instructions" => Ok(vec![counted::check(self.quick)?]),
            _ => Ok(vec![self.on_this_machine(name)?]),
        }
    }

    fn on_this_machine(&mut self, name: &str) -> Result<Figure> {
        let program = match &self.measure {
            Some(program) => program.clone(),
            None => self.measure.insert(build("measure")?).clone(),
        };
        let listed = process::output(Command::new(&program).arg("list"))?;
        if !listed.lines().any(|line| line == name) {
            bail!("no program measures it");
        }
        let mut command = if self.fifo {
            let mut command = Command::new("chrt");
            command.args(["--fifo", "1"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command.arg(name).arg("--folder").arg(tree::target_dir().join("xtask").join("bench"));
        command.args(self.quick.then_some("--quick"));
        let line = process::output(&mut command)?;
        serde_json::from_str(&line).with_context(|| format!("`{}` printed {line}", process::line(&command)))
    }
}

/// Lines that two pollers write for requests, as the test that looks at the whole memory of its process finds them.
fn shared_lines() -> Result<Figure> {
    let mut command = process::cargo();
    command.args(["test", "--package", "adapter", "--test", "lines", "--", "--nocapture"]);
    let output = command.output().with_context(|| format!("cannot run `{}`", process::line(&command)))?;
    let told =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let line = told.lines().find(|line| line.contains("engine") && line.contains(" wrote "));
    let line = line.with_context(|| format!("`{}` counted nothing: {told}", process::line(&command)))?;
    let lines = of_both(line).with_context(|| format!("no count in: {line}"))?;
    Ok(Figure {
        name: "shared-lines".into(),
        unit: "lines".into(),
        sides: vec![Side { name: "lines".into(), rounds: vec![f64::from(lines)] }],
        notes: vec![line.to_owned()],
        ..Figure::default()
    })
}

/// How many lines both engines wrote, as the test says it where it passes and where it fails.
fn of_both(line: &str) -> Option<u32> {
    if line.ends_with("and none is of both") {
        return Some(0);
    }
    let (_, rest) = line.split_once("both engines wrote ")?;
    rest.split(' ').next()?.parse().ok()
}

/// Builds the programs that measure, and gives the path of the one called `name`.
pub(crate) fn build(name: &str) -> Result<PathBuf> {
    let mut command = process::cargo();
    // All at once, always: another choice of targets has other features, and everything would be built again.
    command.args(["build", "--quiet", "--release", "--package", "benches"]);
    command.args(["--bin", "measure", "--example", "turns", "--bench", "check"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let messages = process::output(&mut command)?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let fits = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| fits).map(PathBuf::from)
    };
    let found = messages.lines().find_map(executable);
    found.with_context(|| format!("`{}` made no program {name}", process::line(&command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_both_are_counted_whether_there_are_some_or_none() {
        assert_eq!(of_both("one engine wrote 812 lines, the other 799, and none is of both"), Some(0));
        assert_eq!(of_both("both engines wrote 3 lines: [\"0x40\"]"), Some(3));
        assert_eq!(of_both("one engine wrote nothing"), None);
    }
}
