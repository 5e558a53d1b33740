//! Over `emu:` in memory, with the copy of 4 KiB that it makes, beside the kernel's page cache: data that is in memory on
//! both sides.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adapter::Embedded;
use anyhow::{Context, Result, ensure};

use crate::figure::Figure;
use crate::path::Client;
use crate::pattern::{Order, Walk};
use crate::process::Served;
use crate::requests::BLOCK;
use crate::rounds::{Cores, Plan, Turn, interleave};
use crate::uring::{self, Ask};

const DEVICE: &str = "emu:320M";
/// What is worked on, on either side.
const BYTES: u64 = 256 << 20;
const PLACES: u32 = 256 << 8;
/// statfs(2)
const TMPFS: i64 = 0x0102_1994;

/// A file of 256 MiB on a disk, all of it in the page cache.
fn cached_file(folder: &Path) -> Result<(File, PathBuf)> {
    std::fs::create_dir_all(folder)?;
    let kind = rustix::fs::statfs(folder)?.f_type;
    ensure!(
        kind != TMPFS,
        "{} is in memory (tmpfs): io_uring reads that much slower than a file",
        folder.display()
    );
    let path = folder.join("page-cache.bin");
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    let mut piece = vec![0x5a_u8; 1 << 20];
    if file.metadata()?.len() != BYTES {
        file.set_len(0)?;
        for _ in 0..BYTES >> 20 {
            file.write_all(&piece)?;
        }
        // What is dirty would be written back while it is read.
        file.sync_all()?;
    }
    for at in (0..BYTES).step_by(piece.len()) {
        file.read_exact_at(&mut piece, at).context("filling the page cache")?;
    }
    Ok((file, path))
}

/// Random reads of 4 KiB over 256 MiB with `depth` in flight: embedded, isolated, and the kernel's best way, which is pread(2)
/// for one at a time and `io_uring` for more.
///
/// # Errors
/// The adapter's, the kernel's.
pub fn reads(name: &str, depth: u32, plan: Plan, folder: &Path) -> Result<Figure> {
    let cores = Cores::two()?;
    let (file, path) = cached_file(folder)?;
    let embedded = Embedded::open(DEVICE)?;
    let mut client = Client::new(embedded.session()?, BYTES)?;
    let served = Served::start(DEVICE, cores.other)?;
    let mut isolated = Client::new(served.session()?, BYTES)?;
    let mut walk = Walk::new(Order::Random, PLACES);
    let mut buffer = vec![0; BLOCK as usize];
    let mut ring = uring::fastest_of(Some(&file), Ask::Read, depth, PLACES)?;
    let mut figure = Figure::new(name, "ns/request");
    figure.note(format!("io_uring: {}", ring.describe()));
    figure.note(format!("the file of the page cache is {}", path.display()));
    let mut sides: Vec<(&str, Turn<'_>)> = vec![
        ("embedded", Box::new(|time: Duration| client.batches(depth, time))),
        ("isolated", Box::new(|time| isolated.keep(depth, time))),
        ("io_uring", Box::new(|time| ring.keep(Ask::Read, depth, time))),
    ];
    if depth == 1 {
        sides.push(("pread", Box::new(|time| uring::pread(&file, &mut walk, &mut buffer, time))));
    }
    interleave(&mut figure, plan, cores, &mut sides)?;
    drop(sides);
    client.end()?;
    isolated.end()?;
    Ok(figure)
}
