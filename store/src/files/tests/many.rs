//! Many files: what an operation costs does not grow as they do.

use std::time::{Duration, Instant};

use super::*;

/// Files in one directory.
const A_DIRECTORY: u64 = 1000;

fn path(number: u64) -> String {
    format!("/{:04}/file-{:07}", number / A_DIRECTORY, number)
}

struct Pace {
    start: Instant,
    done: u64,
}

impl Pace {
    fn start() -> Self {
        Self { start: Instant::now(), done: 0 }
    }

    fn told(&self, what: &str) -> Duration {
        let each = self.start.elapsed() / u32::try_from(self.done.max(1)).unwrap();
        println!("{what}: {} in {:?}, {each:?} each", self.done, self.start.elapsed());
        each
    }
}

/// Makes files of one block each, lists and opens all of them, and removes some. With `PORTCULLIS_SOAK=1` a million.
#[test]
fn many_files_are_made_listed_and_opened() {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let count: u64 = if soak { 1_000_000 } else { 5_000 };
    let (disk, metadata) = if soak { (disk(12, 10 << 10), 1 << 30) } else { (disk(12, 128), 32 << 20) };
    let options = FormatOptions { metadata: Some(metadata), ..options() };
    let mut files = ticking(FileSystem::format(Box::new(disk.clone()), options).unwrap());
    let mut paces = Vec::new();
    for part in 0..10 {
        let mut pace = Pace::start();
        for number in part * count / 10..(part + 1) * count / 10 {
            if number % A_DIRECTORY == 0 {
                files
                    .make_directory(&ROOT, format!("/{:04}", number / A_DIRECTORY).as_bytes(), 0o755)
                    .unwrap();
            }
            make(&mut files, &ROOT, &path(number), UNIT);
            pace.done += 1;
        }
        files.sync().unwrap();
        paces.push(pace.told(&format!("part {part}: made, given a block, closed")));
    }
    let usage = files.usage();
    println!("{} bytes of records a file", usage.metadata_used / count);
    println!("{} bytes of the metadata area a file", files.shadow.lock().len() / count);
    let pace = Pace { start: Instant::now(), done: 1 };
    files.close().unwrap();
    let mut files = open(&disk).unwrap();
    pace.told("closed and opened");
    assert_eq!(files.usage().inodes, 1 + count + count.div_ceil(A_DIRECTORY));
    let mut pace = Pace::start();
    for directory in 0..count.div_ceil(A_DIRECTORY) {
        let mut after = Vec::new();
        loop {
            let listed = files.list(&ROOT, format!("/{directory:04}").as_bytes(), &after, 300).unwrap();
            let Some(last) = listed.last() else { break };
            after.clone_from(&last.name);
            pace.done += listed.len() as u64;
        }
    }
    assert_eq!(pace.done, count);
    pace.told("listed");
    let mut pace = Pace::start();
    for number in 0..count {
        // In no order that a cache would like.
        let number = number.wrapping_mul(7_368_787) % count;
        let opened = files.open_file(&ROOT, path(number).as_bytes(), How::READ).unwrap();
        assert_eq!(opened.extents.len(), 1);
        files.release(opened.inode).unwrap();
        pace.done += 1;
    }
    pace.told("opened and closed");
    let mut pace = Pace::start();
    for number in (0..count).step_by(10) {
        files.unlink(&ROOT, path(number).as_bytes()).unwrap();
        pace.done += 1;
    }
    files.sync().unwrap();
    pace.told("removed");
    let pace = Pace { start: Instant::now(), done: 1 };
    assert_eq!(files.check().unwrap(), []);
    pace.told("checked");
    // Ten times as many files make the trees one level higher at most; a scan of anything would show.
    let (first, last) = (paces[0].as_secs_f64(), paces[9].as_secs_f64());
    assert!(last < first * 5.0 + 0.000_1, "the last tenth took {last} s a file, the first {first}");
    println!("counted: {count} files in a file system");
}
