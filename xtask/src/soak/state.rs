//! What was done of which tree, kept between runs.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::tree;

/// The file, and what it holds.
pub(super) struct State {
    file: PathBuf,
    kept: Kept,
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// A hash over all files of the tree: what was done holds for no other.
    tree: String,
    done: BTreeMap<String, Done>,
}

/// What a slice did that held.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) seconds: f64,
    /// Tests that passed.
    pub(super) passed: u64,
    /// What the tests counted.
    pub(super) counts: BTreeMap<String, u64>,
}

impl Done {
    pub(super) fn time(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds).unwrap_or_default()
    }
}

impl State {
    /// The state of this very tree; an empty one for any other.
    pub(super) fn load(fresh: bool) -> Result<Self> {
        Self::open(tree::target_dir().join("soak/state.json"), identity()?, fresh)
    }

    fn open(file: PathBuf, tree: String, fresh: bool) -> Result<Self> {
        let empty = Kept { tree, done: BTreeMap::new() };
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { file, kept: empty }),
            text => text.with_context(|| format!("cannot read {}", file.display()))?,
        };
        // One that cannot be read is of another version of this program.
        let kept: Kept = serde_json::from_str(&text).unwrap_or_default();
        let other = fresh || kept.tree != empty.tree;
        Ok(Self { file, kept: if other { empty } else { kept } })
    }

    pub(super) fn done(&self, key: &str) -> Option<&Done> {
        self.kept.done.get(key)
    }

    /// Remembers, on the disk too.
    pub(super) fn insert(&mut self, key: String, done: Done) -> Result<()> {
        self.kept.done.insert(key, done);
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_string_pretty(&self.kept)?)?;
        fs::rename(&new, &self.file).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// Of the names and bytes of all files that git tracks or would track.
fn identity() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in tree::files()? {
        file.hash(&mut hasher);
        fs::read(tree::root().join(&file))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_holds_for_its_tree_alone() {
        let file = std::env::temp_dir().join(format!("xtask-soak-{}.json", std::process::id()));
        let open = |tree: &str, fresh| State::open(file.clone(), tree.to_owned(), fresh).unwrap();
        let done = Done { seconds: 2.5, passed: 3, counts: [("kills".to_owned(), 7)].into() };
        open("a", false).insert("death, seed 1".to_owned(), done).unwrap();
        let again = open("a", false);
        assert_eq!(again.done("death, seed 1").unwrap().counts["kills"], 7);
        assert!(again.done("death, seed 2").is_none());
        assert!(open("b", false).done("death, seed 1").is_none());
        assert!(open("a", true).done("death, seed 1").is_none());
        fs::write(&file, "not what it was").unwrap();
        assert!(open("a", false).done("death, seed 1").is_none());
        fs::remove_file(&file).unwrap();
    }
}
