//! Changes that are made once.

use super::crash::{Recorder, Tree, cut_everywhere, tree};
use super::*;
use crate::ledger::{WISHES_OF_USER, Wish};

fn wish(id: u8) -> Wish {
    Wish { user: 0, id: [id; 16], at: 1000, note: 0 }
}

#[test]
fn a_file_is_made_and_emptied_once() {
    let disk = disk(12, 32);
    let mut files = format(&disk);
    let new = How { exclusive: true, ..How::create(0o400) };
    let anna = user(1);
    let hers = Wish { user: 1, ..wish(1) };
    let made = files.open_once(&anna, b"/a", new, hers).unwrap();
    let again = files.open_once(&anna, b"/a", new, hers).unwrap();
    assert!(made.created && !again.created && made.inode == again.inode, "in the same life");
    assert_eq!(error(files.open_once(&anna, b"/a", new, Wish { user: 1, ..wish(2) })), exists("/a"));
    assert_eq!(error(files.open_once(&ROOT, b"/a", new, wish(1))), exists("/a"), "another's wish is another");
    let mut files = reopen(files, &disk);
    let again = files.open_once(&anna, b"/a", new, hers).unwrap();
    assert_eq!((again.created, again.inode), (false, made.inode), "in the next life");
    files.grow(made.inode, UNIT).unwrap();
    files.report(made.inode, 10, None).unwrap();
    files.release(made.inode).unwrap();
    let empty = How { truncate: true, ..How::READ_WRITE };
    let emptied = files.open_once(&ROOT, b"/a", empty, wish(3)).unwrap();
    assert_eq!(emptied.attributes.length, 0);
    files.grow(made.inode, UNIT).unwrap();
    files.report(made.inode, 7, None).unwrap();
    let mut files = reopen(files, &disk);
    let again = files.open_once(&ROOT, b"/a", empty, wish(3)).unwrap();
    assert_eq!((again.attributes.length, again.truncation), (7, None), "what was written since stays");
    files.rename(&ROOT, b"/a", b"/b", true).unwrap();
    let gone = FileError::GoneSince { path: "/a".to_owned() };
    assert_eq!(error(files.open_once(&anna, b"/a", new, hers)), gone);
    make(&mut files, &ROOT, "/a", 1);
    assert_eq!(error(files.open_once(&anna, b"/a", new, hers)), gone, "another file has the name");
}

fn exists(path: &str) -> FileError {
    FileError::Exists { path: path.to_owned() }
}

#[test]
fn what_is_kept_of_wishes_is_bounded() {
    let disk = disk(12, 32);
    let mut files = format(&disk);
    let weight = files.usage().metadata_used;
    for id in 0..200 {
        files.grant(wish(id), 1).unwrap();
    }
    assert_eq!(files.usage().metadata_used, weight, "they take nothing from files");
    let mut files = reopen(files, &disk);
    let kept = (0..200).filter(|id| files.granted(0, &[*id; 16]).is_some()).count();
    assert_eq!(kept, WISHES_OF_USER);
    assert!(files.granted(0, &[199; 16]).is_some());
    assert_eq!(files.metadata.granted(usize::MAX).unwrap().len(), WISHES_OF_USER, "on the disk, too");
}

/// Rows of another's making: nothing is granted by them that is none, and nothing stops.
#[test]
fn damaged_wishes_are_left_out() {
    let disk = disk(12, 32);
    let mut files = format(&disk);
    files.grant(wish(1), 7).unwrap();
    files.metadata.put_granted(5, &[0xff; 63], &[]).unwrap();
    files.metadata.put_granted(6, &[0; 1 << 16], &[]).unwrap();
    files.metadata.put_granted(u64::MAX, &[], &[]).unwrap();
    let mut files = reopen(files, &disk);
    assert_eq!(files.granted(0, &[1; 16]).map(|granted| granted.subject), Some(7));
    files.grant(wish(2), 8).unwrap();
    let files = reopen(files, &disk);
    assert_eq!(files.granted(0, &[2; 16]).map(|granted| granted.subject), Some(8));
}

/// After a power cut a change is there if, and only if, it is known to have been granted.
#[test]
fn a_power_cut_leaves_a_change_and_its_wish_or_neither() {
    type Operation = fn(&mut FileSystem, Wish) -> Result<(), FileError>;
    let operations: [Operation; 9] = [
        |files, _| files.make_directory(&ROOT, b"/d", 0o755).map(drop),
        |files, wish| {
            let new = How { exclusive: true, ..How::create(0o600) };
            let opened = files.open_once(&ROOT, b"/d/a", new, wish)?;
            files.release(opened.inode)
        },
        |files, _| files.rename(&ROOT, b"/d/a", b"/b", true),
        |files, _| {
            let inode = files.resolve(&ROOT, b"/b")?;
            files.grow(inode, 3 * UNIT)?;
            files.report(inode, 2 * UNIT + 5, None)
        },
        |files, _| {
            let inode = files.resolve(&ROOT, b"/b")?;
            let plan = files.truncate(inode, UNIT)?;
            files.drained(&plan).map(drop)
        },
        |files, _| {
            let inode = files.resolve(&ROOT, b"/b")?;
            let changes = Changes { mode: Some(0o640), ..Changes::default() };
            files.set_attributes(&ROOT, inode, &changes).map(drop)
        },
        |files, wish| {
            let empty = How { truncate: true, ..How::READ_WRITE };
            let opened = files.open_once(&ROOT, b"/b", empty, wish)?;
            files.release(opened.inode)
        },
        |files, _| files.unlink(&ROOT, b"/b"),
        |files, _| files.remove_directory(&ROOT, b"/d"),
    ];
    for (shift, every) in [(9, 1), (12, 1), (12, 2), (12, 3)] {
        let disk = disk(shift, 16);
        drop(format(&disk));
        let start = disk.copy();
        let recorder = Recorder { disk, log: Arc::default() };
        let mut files = ticking(FileSystem::open(Box::new(recorder.clone())).unwrap());
        let mut trees: Vec<Tree> = vec![tree(&mut files)];
        for (id, operation) in (0u8..).zip(operations) {
            operation(&mut files, wish(id)).unwrap();
            if files.granted(0, &[id; 16]).is_none() {
                files.grant(wish(id), 0).unwrap();
            }
            trees.push(tree(&mut files));
            if id % every == 0 {
                files.sync().unwrap();
            }
        }
        files.close().unwrap();
        let log = recorder.log.lock().unwrap().clone();
        let mut seen = std::collections::BTreeSet::new();
        let states = cut_everywhere(&start, &log, 1, |disk, steps| {
            let mut files = open(disk).unwrap();
            let granted = (0..9u8).take_while(|id| files.granted(0, &[*id; 16]).is_some()).count();
            let later = (0..9u8).skip(granted).any(|id| files.granted(0, &[id; 16]).is_some());
            assert!(!later, "after step {steps} there is a wish without those before it");
            assert_eq!(tree(&mut files), trees[granted], "after step {steps}, with {granted} wishes granted");
            seen.insert(granted);
        });
        assert!(states > 50 && seen.len() > 9 / usize::from(every), "{states} states, {seen:?}");
    }
}
