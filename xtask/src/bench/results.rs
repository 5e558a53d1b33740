//! What was measured, kept in `target/xtask/bench.json` so that a run can be taken up again and the page made later.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use crate::{process, tree};

/// What counts as measured today.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// All figures, by name.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Results {
    kept: BTreeMap<String, Kept>,
    /// Of this run.
    #[serde(skip)]
    new: Vec<String>,
}

/// A figure and when it was taken.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Seconds since 1970.
    pub(crate) at: u64,
    /// The commit, with a plus if files differed from it.
    pub(crate) commit: String,
    /// The load average of the minute before its end.
    #[serde(default)]
    pub(crate) load: f64,
    pub(crate) figure: Option<Figure>,
    /// Why there is none.
    pub(crate) trouble: Option<String>,
}

fn file() -> PathBuf {
    tree::target_dir().join("xtask").join("bench.json")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Of the last minute (proc_loadavg(5)).
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// What is checked out.
fn commit() -> String {
    let git = |args: &[&str]| {
        process::output(std::process::Command::new("git").current_dir(tree::root()).args(args)).ok()
    };
    let head = git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_default();
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    format!("{}{}", head.trim(), if changed { "+" } else { "" })
}

impl Results {
    /// Those of earlier runs; none if there are none, or another version wrote them.
    pub(crate) fn read() -> Result<Self> {
        match fs::read(file()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| file().display().to_string()),
        }
    }

    pub(crate) fn write(&self) -> Result<()> {
        let file = file();
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        // Whole or not at all: a run may be stopped at any time.
        let draft = file.with_extension("new");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, &file).with_context(|| file.display().to_string())
    }

    pub(crate) fn keep(&mut self, figure: Figure) {
        let name = figure.name.clone();
        self.put(name, Some(figure), None);
    }

    /// What was there before is no longer true.
    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        self.put(name.to_owned(), None, Some(why.to_owned()));
    }

    fn put(&mut self, name: String, figure: Option<Figure>, trouble: Option<String>) {
        self.new.push(name.clone());
        self.kept.insert(name, Kept { at: now(), commit: commit(), load: load(), figure, trouble });
    }

    /// A figure, or why there is none.
    pub(crate) fn figure(&self, name: &str) -> Result<&Figure, String> {
        let kept = self.kept.get(name).ok_or("it was not asked for")?;
        kept.figure.as_ref().ok_or_else(|| kept.trouble.clone().unwrap_or_default())
    }

    pub(crate) fn kept(&self) -> impl Iterator<Item = (&str, &Kept)> {
        self.kept.iter().map(|(name, kept)| (name.as_str(), kept))
    }

    /// Whether this run measured it, or tried.
    pub(crate) fn is_new(&self, name: &str) -> bool {
        self.new.iter().any(|new| new == name)
    }

    /// Whether it was measured today, with what is checked out now.
    pub(crate) fn is_fresh(&self, name: &str) -> bool {
        self.kept.get(name).is_some_and(|kept| {
            kept.figure.is_some()
                && now().saturating_sub(kept.at) < FRESH.as_secs()
                && kept.commit == commit()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_takes_the_place_of_what_was_measured_before() {
        let mut results = Results::default();
        assert_eq!(results.figure("f").unwrap_err(), "it was not asked for");
        results.keep(Figure { name: "f".into(), ..Figure::default() });
        assert!(results.figure("f").is_ok() && results.is_new("f") && results.is_fresh("f"));
        results.fail("f", "no more");
        assert_eq!(results.figure("f").unwrap_err(), "no more");
        let text = serde_json::to_string(&results).unwrap();
        let back: Results = serde_json::from_str(&text).unwrap();
        assert_eq!((back.figure("f").unwrap_err(), back.is_new("f")), ("no more".to_owned(), false));
    }
}
