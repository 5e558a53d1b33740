//! A damaged image, opened: what a fuzzer and the tests both run.

use std::sync::LazyLock;

use driver::disk::{Disk, MemoryDisk};
use tpt::Access;

use crate::files::plant::{Row, plant};
use crate::files::{self, FileError, FileSystem, How, Timestamp};
use crate::permission::Credentials;
use crate::shadow::Shadow;
use crate::superblock::{Found, Kind, PAGE, Superblock};
use crate::{FormatOptions, Store, StoreError, Subject};

/// The most pieces of damage done to one image.
const MOST_DAMAGE: usize = 64;

/// Healthy file systems, the same.
static FILES: LazyLock<[MemoryDisk; 2]> = LazyLock::new(|| [9, 12].map(healthy_files));

/// Healthy images with 512-byte and 4096-byte blocks.
static IMAGES: LazyLock<[MemoryDisk; 2]> = LazyLock::new(|| [9, 12].map(healthy));

fn healthy(block_shift: u8) -> MemoryDisk {
    let disk = MemoryDisk::new(block_shift, (16 << 20) >> block_shift);
    let options = FormatOptions { uuid: Some([0x5a; 16]), ..FormatOptions::default() };
    let fill = || -> Result<(), StoreError> {
        let mut store = Store::format(Box::new(disk.clone()), options)?;
        for (name, bytes) in [("one", 1 << 20), ("two", 200_000), ("three", 64 << 10), ("four", 1)] {
            store.create(name, bytes, 1000)?;
        }
        store.delete("two")?;
        store.grow("three", 1 << 20)?;
        store.set_access("one", Subject::Group(7), Access::READ)?;
        store.set_access("one", Subject::Everyone, Access::READ_WRITE)?;
        store.reserve_instances(100)?;
        Ok(())
    };
    fill().expect("an image in memory can be formatted");
    disk
}

/// Makes a small image with volumes, does to it the damage that `data` describes, opens it, and uses it if it opens.
/// Every `data` is good; the same `data` does the same. Panics if what an opened store says is not so.
pub fn image(data: &[u8]) {
    let mut input = Input(data);
    let disk = IMAGES[usize::from(input.byte() & 1)].copy();
    for _ in 0..MOST_DAMAGE {
        if input.0.is_empty() {
            break;
        }
        damage(Kind::Store, &disk, &mut input);
    }
    let Ok(mut store) = Store::open(Box::new(disk.clone())) else {
        return;
    };
    assert_sound(&store);
    // Reads all; what it finds (a spare copy that was damaged) is no reason to stop.
    let _ = store.check();
    let _ = store.reserve_instances(3);
    let _ = store.create("new", 100_000, 1);
    let _ = store.grow("one", 2 << 20);
    let _ = store.rename("three", "drei");
    let _ = store.shrink("drei", 1);
    let _ = store.delete("one");
    assert_sound(&store);
    drop(store);
    if let Ok(store) = Store::open(Box::new(disk)) {
        assert_sound(&store);
    }
}

fn healthy_files(block_shift: u8) -> MemoryDisk {
    let disk = MemoryDisk::new(block_shift, (16 << 20) >> block_shift);
    let options = files::FormatOptions { uuid: Some([0x5a; 16]), ..files::FormatOptions::default() };
    let fill = || -> Result<(), FileError> {
        let mut files = FileSystem::format(Box::new(disk.clone()), options)?;
        files.set_clock(|| Timestamp(1)); // the same image every time
        let who = Credentials::ROOT;
        for directory in ["/a", "/a/b", "/c"] {
            files.make_directory(&who, directory.as_bytes(), 0o755)?;
        }
        for (number, path) in ["/one", "/a/two", "/a/b/three", "/c/four"].into_iter().enumerate() {
            let opened = files.open_file(&who, path.as_bytes(), How::create(0o644))?;
            files.reserve(opened.inode, 20_000 * number as u64)?;
            files.report(opened.inode, 15_000 * number as u64, None)?;
            files.release(opened.inode)?;
        }
        files.set_quota(&who, 7, Some(1 << 20), Some(10))?;
        files.close()
    };
    fill().expect("a file system in memory can be formatted");
    disk
}

/// Makes a small file system, does to it the damage that `data` describes, opens it, and uses it if it opens. Every
/// `data` is good; the same `data` does the same. Panics if what an opened file system says is not so.
pub fn files(data: &[u8]) {
    let mut input = Input(data);
    let disk = FILES[usize::from(input.byte() & 1)].copy();
    for _ in 0..MOST_DAMAGE {
        if input.0.is_empty() {
            break;
        }
        if input.byte() & 1 == 0 {
            damage(Kind::Files, &disk, &mut input);
        } else if let Some(row) = row(&mut input) {
            let _ = plant(Box::new(disk.clone()), &[row]);
        }
    }
    let _ = FileSystem::inspect(Box::new(disk.copy()));
    for _ in 0..2 {
        let Ok(mut files) = FileSystem::open(Box::new(disk.clone())) else {
            return;
        };
        let _ = use_files(&mut files, &disk);
        let _ = files.check();
        let _ = files.close();
    }
}

/// Numbers that mean something, and some that do not.
fn number(input: &mut Input<'_>) -> u64 {
    let byte = u64::from(input.byte());
    match byte {
        0xf0.. => u64::MAX - (byte & 7),
        0xe0.. => 1 << ((byte & 0xf) * 4),
        0xc0.. => byte << 4,
        _ => byte % 24,
    }
}

fn row(input: &mut Input<'_>) -> Option<Row> {
    let kind = input.byte();
    let mut number = || number(input);
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Some(match kind % 8 {
        0 => Row::Piece(number(), number(), number(), number()),
        1 => Row::Orphan(number()),
        2 => Row::User(small(number()), [number(), number(), number(), number()]),
        3 => Row::NextInode(number()),
        4 => Row::NoInode(number()),
        5 | 6 => {
            let (directory, inode) = (number(), number());
            Row::Name(directory, input.bytes(usize::from(kind >> 3)).to_vec(), inode)
        }
        _ => Row::Inode(number(), input.bytes(usize::from(kind >> 3)).to_vec()),
    })
}

/// Walks through everything that can be reached, and changes some of it.
fn use_files(files: &mut FileSystem, disk: &MemoryDisk) -> Result<(), FileError> {
    let who = Credentials::ROOT;
    let mut directories = vec![Vec::new()];
    let (mut found, mut extents) = (Vec::new(), files.metadata_extents());
    for _ in 0..100 {
        // Directories may go round in a circle.
        let Some(directory) = directories.pop() else { break };
        for entry in files.list(&who, &directory, b"", 20).unwrap_or_default() {
            let path = [&directory[..], b"/", &entry.name].concat();
            if entry.attributes.permissions.is_directory() {
                directories.push(path);
            } else {
                extents.extend(files.extents(entry.attributes.inode, 0, 1000)?.iter().map(|e| e.blocks));
                found.push((path, entry.attributes));
            }
        }
    }
    // A file that has two names is there twice.
    let mut numbers: Vec<_> = found.iter().map(|(_, attributes)| attributes.inode).collect();
    numbers.sort_unstable();
    if numbers.windows(2).all(|pair| pair[0] != pair[1]) {
        extents.sort_by_key(|extent| extent.first);
        assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].first), "extents overlap");
        assert!(extents.last().is_none_or(|last| last.end().0 <= disk.geometry().blocks), "beyond the disk");
    }
    for (path, attributes) in &found {
        assert!(attributes.length <= attributes.allocated, "a length without blocks");
        let Ok(opened) = files.open_file(&who, path, How::READ_WRITE) else { continue };
        let _ = files.grow(opened.inode, attributes.allocated.saturating_add(10_000));
        if let Ok(plan) = files.truncate(opened.inode, attributes.length / 2) {
            let _ = files.drained(&plan);
        }
        let _ = files.unlink(&who, path);
        let _ = files.release(opened.inode);
    }
    let _ = files.make_directory(&who, b"/new", 0o700);
    let _ = files.rename(&who, b"/a", b"/new/a", true);
    let _ = files.open_file(&who, b"/new/file", How::create(0o600));
    files.sync()
}

/// Nothing overlaps, and nothing lies in the metadata or outside the device.
pub(crate) fn assert_sound(store: &Store) {
    let Ok(volumes) = store.volumes() else { return };
    let mut extents = store.metadata_extents();
    let metadata: u64 = extents.iter().map(|extent| extent.count.0).sum();
    for volume in &volumes {
        assert_eq!(
            volume.extents_for(volume.blocks).as_ref(),
            Some(&volume.extents),
            "extents make up the blocks"
        );
        extents.extend(&volume.extents);
    }
    extents.sort_by_key(|extent| extent.first);
    assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].first), "extents overlap");
    assert!(extents.last().is_none_or(|last| last.end().0 <= store.geometry().blocks), "beyond the device");
    let used: u64 = extents.iter().map(|extent| extent.count.0).sum();
    assert_eq!(used + store.free_blocks(), metadata + store.data_blocks(), "every block is accounted for");
}

/// Does one piece of damage.
fn damage(kind_of: Kind, disk: &MemoryDisk, input: &mut Input<'_>) {
    let kind = input.byte();
    // A block that holds something: the rest of the image is zero and nobody looks at it.
    let written: Vec<u64> = disk.content().into_keys().collect();
    let pick = |number: u16| written.get(usize::from(number) % written.len().max(1)).copied().unwrap_or(0);
    let (block, at) = (pick(input.word()), usize::from(input.word()));
    match kind % 8 {
        // A flipped bit.
        0 | 1 => drop(disk.alter(block, |bytes| bytes[at % bytes.len()] ^= 1 << (kind >> 3 & 7))),
        // Other bytes.
        2 => {
            let new = input.bytes(usize::from(kind >> 3));
            disk.alter(block, |bytes| overwrite(bytes, at, new));
        }
        // A block of zeros.
        3 => drop(disk.alter(block, |bytes| bytes.fill(0))),
        // A block that lies elsewhere too.
        4 => {
            let other = pick(input.word());
            let copy = disk.content().get(&other).cloned();
            disk.alter(block, |bytes| {
                bytes.copy_from_slice(copy.as_deref().unwrap_or(&vec![0; bytes.len()]));
            });
        }
        // A superblock with a checksum that fits.
        5 => {
            let new = input.bytes(8);
            forge_superblock(disk, at, new);
        }
        // A database with checksums that fit beneath it.
        6 | 7 => {
            let new = input.bytes(usize::from(kind >> 3));
            forge_metadata(kind_of, disk, u64::from(input.word()), at, new);
        }
        _ => unreachable!(),
    }
}

/// Writes `new` at `at` (wrapping around) into `bytes`.
fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) {
    let length = bytes.len();
    for (offset, value) in new.iter().enumerate() {
        bytes[(at + offset) % length] = *value;
    }
}

fn forge_superblock(disk: &MemoryDisk, at: usize, new: &[u8]) {
    let mut disk = disk.clone();
    let mut page = vec![0; PAGE];
    if disk.read(0, &mut page).is_err() {
        return;
    }
    overwrite(&mut page[..128], at, new);
    let sum = crc32c::crc32c(&page[..PAGE - 4]).to_le_bytes();
    page[PAGE - 4..].copy_from_slice(&sum);
    let _ = disk.write(0, &page);
}

fn forge_metadata(kind: Kind, disk: &MemoryDisk, page: u64, at: usize, new: &[u8]) {
    let mut first = vec![0; PAGE];
    if disk.clone().read(0, &mut first).is_err() {
        return;
    }
    let Found::Superblock(Superblock { uuid, layout, .. }) = Superblock::decode(kind, &first) else {
        return;
    };
    let fits = layout.blocks <= disk.geometry().blocks && layout.block_shift == disk.geometry().block_shift;
    let Some(mut shadow) = fits.then(|| Shadow::open(Box::new(disk.clone()), layout, uuid).ok()).flatten()
    else {
        return;
    };
    // Mostly the first pages, where there is something.
    let offset = page % 64 * PAGE as u64 + at as u64 % PAGE as u64;
    let _ = shadow.write(offset, new).and_then(|()| shadow.sync());
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
