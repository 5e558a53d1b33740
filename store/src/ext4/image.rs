//! Images made by e2fsprogs, for tests and fuzzers.
//!
//! Needs `mkfs.ext4`, `debugfs` and `e2fsck`, which a Debian has (package e2fsprogs), and no rights.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use driver::disk::MemoryDisk;

/// The time that the tools are told, so that what they make is always the same.
const NOW: &str = "1700000000";
/// Of the file system and its hashes, for the same reason.
const UUID: &str = "5eed5eed-1234-4321-abcd-0123456789ab";

/// An image in a folder of its own, which goes when it is dropped.
#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
    file: PathBuf,
}

impl Image {
    /// Makes a file system of `bytes` bytes; `options` go to mkfs.ext4 before the name of the image.
    ///
    /// # Errors
    /// If a tool is missing or fails, with what it said.
    pub fn make(bytes: u64, options: &[&str]) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("portcullis-ext4-{}-{number}", process::id()));
        fs::create_dir_all(&folder)?;
        let image = Self { file: folder.join("image"), folder };
        fs::File::create(&image.file)?.set_len(bytes)?;
        let seed = format!("hash_seed={UUID},lazy_itable_init=0");
        let mut arguments = vec!["-q", "-F", "-U", UUID, "-E", &seed];
        arguments.extend(options);
        image.run("mkfs.ext4", &arguments)?;
        Ok(image)
    }

    /// The image's folder, where files for debugfs may be put.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image's file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Puts a file into the folder, and says where.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn host_file(&self, name: &str, content: &[u8]) -> io::Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    /// Runs commands of debugfs(8) that change the image; what they print.
    ///
    /// # Errors
    /// If debugfs is missing or fails. It does not fail if one of the commands does; then it prints why.
    pub fn change(&self, commands: &[String]) -> io::Result<String> {
        let script = self.host_file("commands", (commands.join("\n") + "\n").as_bytes())?;
        self.run("debugfs", &["-w", "-f", &script])
    }

    /// What debugfs(8) prints of one command that changes nothing.
    ///
    /// # Errors
    /// As [`Image::change`].
    pub fn ask(&self, command: &str) -> io::Result<String> {
        self.run("debugfs", &["-R", command])
    }

    /// Runs e2fsck(8) with these options; whether it left nothing to be done.
    ///
    /// # Errors
    /// If it is missing or cannot be run.
    pub fn check(&self, options: &[&str]) -> io::Result<bool> {
        let status = self.command("e2fsck", options).output()?.status;
        Ok(matches!(status.code(), Some(0 | 1)))
    }

    /// Runs a tool on the image; what it prints.
    ///
    /// # Errors
    /// If it is missing or fails, with what it said.
    pub fn run(&self, tool: &str, arguments: &[&str]) -> io::Result<String> {
        let output = self.command(tool, arguments).output().map_err(|error| {
            io::Error::new(error.kind(), format!("{tool}: {error}; apt-get install e2fsprogs"))
        })?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{tool} {arguments:?}: {}: {said}{errors}", output.status)))
    }

    fn command(&self, tool: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(tool);
        // Where Debian has them, and where a user's path does not lead.
        let path = env::var_os("PATH").unwrap_or_default();
        let path: Vec<PathBuf> =
            env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
        command.env("PATH", env::join_paths(path).unwrap_or_default());
        command
            .env("E2FSPROGS_FAKE_TIME", NOW)
            .env("DEBUGFS_PAGER", "cat")
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        command.args(arguments.iter().map(OsStr::new)).arg(&self.file);
        command
    }

    /// A disk in memory with what the image holds now, with blocks of `1 << block_shift` bytes.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub fn disk(&self, block_shift: u8) -> io::Result<MemoryDisk> {
        let content = fs::read(&self.file)?;
        let size = 1usize << block_shift;
        let disk = MemoryDisk::new(block_shift, (content.len() / size) as u64);
        for (lba, block) in (0..).zip(content.chunks_exact(size)) {
            if block.iter().any(|byte| *byte != 0) {
                disk.alter(lba, |bytes| bytes.copy_from_slice(block));
            }
        }
        Ok(disk)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
