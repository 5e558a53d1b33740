//! The guest's only file system: an uncompressed cpio archive (newc), which boots faster than a compressed one.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// An archive in the making.
pub struct Initramfs {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Initramfs {
    /// With the directories that init mounts things on.
    pub fn new() -> Result<Self> {
        let mut archive = Self { bytes: Vec::new(), directories: BTreeSet::new(), entries: 0 };
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "run"] {
            archive.directory(directory)?;
        }
        Ok(archive)
    }

    /// Adds a file; `path` is absolute in the guest, `mode` its permissions. Directories on the way are made.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.directory(&path[..at])?;
        }
        self.entry(path, REGULAR | mode, content)
    }

    /// Adds a file of the host.
    pub fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Result<()> {
        let content = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, mode, &content)
    }

    /// The whole archive.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | 0o755, b"")?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let length = u32::try_from(content.len())
            .with_context(|| format!("{path} is too large for a cpio archive"))?;
        let builder = Builder::new(path).ino(self.entries).mode(mode).nlink(1);
        let mut writer = builder.write(&mut self.bytes, length);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_their_files() {
        let mut archive = Initramfs::new().unwrap();
        archive.file("/lib/a/x", 0o644, b"hello").unwrap();
        archive.file("/lib/a/y", 0o755, b"").unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
            if name == "lib/a/x" {
                assert_eq!(content, b"hello");
            }
            seen.push((name, mode));
            rest = reader.finish().unwrap();
        }
        let at = |name: &str| seen.iter().position(|entry| entry.0 == name).unwrap();
        assert!(at("lib") < at("lib/a") && at("lib/a") < at("lib/a/x"));
        assert_eq!(seen.iter().filter(|entry| entry.0 == "lib/a").count(), 1);
        assert_eq!(seen[at("lib/a/y")].1, 0o100_755);
    }
}
