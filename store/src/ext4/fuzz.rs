//! A damaged image, opened: what a fuzzer and the tests both run.

use std::io;
use std::sync::LazyLock;

use driver::block::Geometry;
use driver::disk::{Dice, Disk, DiskError, DiskFault, MemoryDisk};
use tpt::LbaRange;

use super::forge::Part;
use super::image::Image;
use super::superblock::Superblock;
use super::{Ext4, Ext4Error, Kind, MAX_WORK, OpenedFile};
use crate::permission::{Credentials, Rights};

/// The most pieces of damage done to one image.
const MOST_DAMAGE: usize = 16;
/// The most names that are looked at in one image, and how deep.
const MOST_NAMES: usize = 400;
const DEEPEST: usize = 6;

/// A healthy image, and all of its metadata.
struct Specimen {
    disk: MemoryDisk,
    superblock: Superblock,
    parts: Vec<Part>,
}

static SPECIMENS: LazyLock<Vec<Specimen>> = LazyLock::new(|| {
    let made = [
        ("1024", "^large_file", 9),               // the features of every day
        ("4096", "^metadata_csum,uninit_bg", 12), // almost no checksums to get behind
        ("1024", "meta_bg,^resize_inode,quota,^has_journal,metadata_csum_seed", 9),
    ];
    made.iter()
        .map(|(block, features, shift)| Specimen::make(block, features, *shift).expect("e2fsprogs"))
        .collect()
});

impl Specimen {
    fn make(block: &str, features: &str, device_shift: u8) -> io::Result<Self> {
        let image = Image::make(4 << 20, &["-b", block, "-O", features, "-N", "256"])?;
        let mut dice = Dice(1);
        let data = image.host_file("data", &dice.bytes(60_000))?;
        let mut commands = vec![format!("write {data} plain"), format!("write {data} split")];
        commands.extend((0..25).map(|at| format!("punch split {} {}", 2 * at + 1, 2 * at + 1)));
        commands.extend(["mkdir a", "mkdir a/b", "cd a/b"].map(str::to_owned));
        let small = image.host_file("small", b"a few bytes")?;
        // Enough for an index with more than one leaf.
        commands.extend(
            (0..11).map(|at| format!("write {small} name-{at}-{}", "y".repeat(100 * usize::from(at > 0)))),
        );
        commands.extend(
            ["cd /", "symlink fast a/b/name-0-", "mknod pipe p", "sif plain uid 1000"].map(str::to_owned),
        );
        commands.push(format!("symlink slow {}a/b", "a/b/../../".repeat(10)));
        commands.push(format!("ea_set plain user.big {}", "x".repeat(500)));
        commands.push("ea_set split security.capability abc".to_owned());
        let said = image.change(&commands)?;
        if said.contains("rror") {
            return Err(io::Error::other(said));
        }
        image.check(&["-fyD"])?; // makes indexes of directories
        let mut disk = image.disk(device_shift)?;
        let mut ext4 = Ext4::open(&mut disk).map_err(io::Error::other)?;
        let parts = ext4.parts(&mut disk).map_err(io::Error::other)?;
        Ok(Self { disk, superblock: ext4.superblock, parts })
    }
}

/// Does to a small image the damage that `data` describes, opens it, and uses it if it opens. Every `data` is good; the
/// same `data` does the same. Panics if what is said of a file is not so, if anything is written, or if one answer takes
/// too much work.
///
/// The images are made by e2fsprogs when first asked for, always the same.
pub fn image(data: &[u8]) {
    let mut input = Input(data);
    let Some(specimen) = SPECIMENS.get(usize::from(input.byte()) % SPECIMENS.len()) else { return };
    let disk = specimen.disk.copy();
    for _ in 0..MOST_DAMAGE {
        if input.0.is_empty() {
            break;
        }
        damage(specimen, &disk, &mut input);
    }
    let mut disk = Watched { disk, reads: 0 };
    let Ok(mut ext4) = Ext4::open(&mut disk) else { return };
    let uid = u32::from(data.len() & 1 != 0) * 1000;
    use_it(&mut ext4, &mut disk, &Credentials { uid, gid: 1000, groups: &[27] });
}

/// Looks at all names, opens what can be opened, and holds together what was said.
pub(super) fn use_it(ext4: &mut Ext4, disk: &mut Watched, who: &Credentials<'_>) {
    let mut todo = vec![(Vec::new(), 0)];
    let mut names = 0;
    let mut files: Vec<OpenedFile> = Vec::new();
    while let Some((path, depth)) = todo.pop() {
        let mut cursor = 0;
        while let Ok(entries) =
            counted(disk, |disk| ext4.list(disk, &[&path[..], b"/"].concat(), who, cursor, 50))
        {
            let Some(last) = entries.last() else { break };
            assert!(last.next > cursor, "a listing goes on");
            cursor = last.next;
            names += entries.len();
            if names > MOST_NAMES {
                break;
            }
            for entry in entries {
                let path = [&path[..], b"/", &entry.name].concat();
                let Ok(attributes) = counted(disk, |disk| ext4.stat(disk, &path, who, false)) else {
                    continue;
                };
                match attributes.kind {
                    Kind::Directory if depth < DEEPEST => todo.push((path, depth + 1)),
                    Kind::Link => {
                        let _ = counted(disk, |disk| ext4.read_link(disk, &path, who));
                        let _ = counted(disk, |disk| ext4.lookup(disk, &path, who, true));
                    }
                    _ => files.extend(open(ext4, disk, &path, who)),
                }
            }
        }
    }
    assert_sound(disk.geometry(), &files);
    for file in files {
        ext4.close(file.inode);
    }
    assert_eq!(ext4.open_files(), 0);
}

/// Opens a file, for as much as it can be opened for.
fn open(ext4: &mut Ext4, disk: &mut Watched, path: &[u8], who: &Credentials<'_>) -> Option<OpenedFile> {
    let all = Rights::READ | Rights::WRITE;
    let attempts = [all, Rights::READ];
    attempts.into_iter().find_map(|wanted| counted(disk, |disk| ext4.open_file(disk, path, who, wanted)).ok())
}

/// Does it, and sees how much was read for it.
fn counted<T>(
    disk: &mut Watched,
    answer: impl FnOnce(&mut Watched) -> Result<T, Ext4Error>,
) -> Result<T, Ext4Error> {
    disk.reads = 0;
    let result = answer(disk);
    assert!(disk.reads <= MAX_WORK + 1, "{} reads", disk.reads); // and the superblock
    result
}

/// Files lie on the device, behind the first superblock, and no two share a block; extents and holes make up each.
fn assert_sound(geometry: &Geometry, files: &[OpenedFile]) {
    let mut ranges: Vec<(u32, LbaRange)> = Vec::new();
    let superblock_end = 2048u64.div_ceil(geometry.block_size().into());
    for file in files {
        let mut parts: Vec<(u64, u64)> = file.holes.iter().map(|hole| (hole.offset, hole.bytes)).collect();
        for extent in &file.extents {
            let range = extent.range;
            assert!(range.first.0 >= superblock_end && range.end().0 <= geometry.blocks, "{file:?}");
            parts.push((extent.offset, range.count.0 << geometry.block_shift));
            ranges.push((file.inode, range));
        }
        parts.sort_unstable();
        let end = parts.iter().fold(0, |next, (offset, bytes)| {
            assert_eq!(*offset, next, "{file:?}");
            offset + bytes
        });
        assert!(end >= file.length && end < file.length + u64::from(geometry.block_size()), "{file:?}");
    }
    ranges.sort_by_key(|(inode, range)| (range.first, *inode));
    ranges.dedup(); // an inode of several names
    for pair in ranges.windows(2) {
        assert!(!pair[0].1.overlaps(pair[1].1), "{pair:?}");
    }
}

/// Does one piece of damage.
fn damage(specimen: &Specimen, disk: &MemoryDisk, input: &mut Input<'_>) {
    let kind = input.byte();
    let Some(part) = specimen.parts.get(usize::from(input.word()) % specimen.parts.len()) else { return };
    let at = usize::from(input.word()) % part.length;
    // Numbers that mean something: of blocks that are somebody's, of inodes, the largest of their size.
    let other = &specimen.parts[usize::from(input.byte()) % specimen.parts.len()];
    let number = u32::try_from(other.block).unwrap_or(0).to_le_bytes();
    let new: &[u8] = match kind >> 1 & 7 {
        0 | 1 => &[],
        2 => input.bytes(4),
        3 => input.bytes(12),
        4 => &number,
        5 => &[0xff; 4],
        6 => &[0; 4],
        _ => input.bytes(1),
    };
    let change = |bytes: &mut [u8]| {
        let length = bytes.len();
        if new.is_empty() {
            bytes[at] ^= 1 << (kind >> 5);
        }
        for (offset, value) in new.iter().enumerate() {
            // Fields lie at multiples of their size.
            bytes[((at & !1) + offset) % length] = *value;
        }
    };
    if kind & 1 == 0 {
        part.forge(&specimen.superblock, disk, change);
    } else {
        part.alter(&specimen.superblock, disk, change);
    }
}

/// A disk that counts, and refuses to be written.
pub(super) struct Watched {
    pub(super) disk: MemoryDisk,
    pub(super) reads: u64,
}

impl Disk for Watched {
    fn geometry(&self) -> &Geometry {
        self.disk.geometry()
    }
    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        self.reads += 1;
        self.disk.read(lba, data)
    }
    fn write(&mut self, lba: u64, _data: &[u8]) -> Result<(), DiskError> {
        panic!("block {lba} is written");
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        Err(DiskError { what: "flush", lba: 0, cause: DiskFault::Gone })
    }
    fn write_zeroes(&mut self, lba: u64, _blocks: u64) -> Result<(), DiskError> {
        panic!("block {lba} is zeroed");
    }
    fn deallocate(&mut self, lba: u64, _blocks: u64) -> Result<(), DiskError> {
        panic!("block {lba} is given up");
    }
}

/// Bytes that decide what is done; zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}
