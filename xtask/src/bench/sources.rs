//! From a figure's name to a figure: which program measures it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::figure::Figure;
use super::{counted, in_guest};
use crate::{process, tree};

/// Builds what measures when it is first needed.
pub(crate) struct Sources {
    quick: bool,
    fifo: bool,
    no_guest: bool,
    measure: Option<PathBuf>,
}

impl Sources {
    pub(crate) fn new(quick: bool, fifo: bool, no_guest: bool) -> Self {
        Self { quick, fifo, no_guest, measure: None }
    }

    /// Measures the figure called `name`; others may come with it.
    pub(crate) fn measure(&mut self, name: &str) -> Result<Vec<Figure>> {
        if name.starts_with("guest-") || name == "doorbells" {
            ensure!(!self.no_guest, "it was left out by --no-guest");
            return match name {
                "doorbells" => Ok(vec![in_guest::doorbells(self.quick)?]),
                _ => in_guest::compare(self.quick),
            };
        }
        match name {
            "turn-instructions" => Ok(vec![counted::turn(self.quick)?]),
            "idle-instructions" => Ok(vec![counted::idle_queues(self.quick)?]),
            "check-instructions" => Ok(vec![counted::check(self.quick)?]),
            _ => Ok(vec![self.on_this_machine(name)?]),
        }
    }

    fn on_this_machine(&mut self, name: &str) -> Result<Figure> {
        let program = match &self.measure {
            Some(program) => program.clone(),
            None => self.measure.insert(build(&["--bin", "measure"])?).clone(),
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

/// Builds a target of `benches` for release, and gives its path.
pub(crate) fn build(target: &[&str]) -> Result<PathBuf> {
    let mut command = process::cargo();
    command.args(["build", "--quiet", "--release", "--package", "benches"]).args(target);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.stderr(std::process::Stdio::inherit());
    let messages = process::output(&mut command)?;
    let wanted = target.last().copied().unwrap_or_default();
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let fits = message["target"]["name"] == wanted;
        message["executable"].as_str().filter(|_| fits).map(PathBuf::from)
    };
    messages
        .lines()
        .find_map(executable)
        .with_context(|| format!("`{}` made no program", process::line(&command)))
}
