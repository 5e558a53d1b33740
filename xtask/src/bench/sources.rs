//! From a figure's name to a figure: which program measures it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::figure::Figure;
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
            "turn-instructions" => Ok(vec![counted::turn(self.quick)?]),
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
