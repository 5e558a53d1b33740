//! Extent trees: which blocks of the file system are which of a file (kernel documentation, filesystems/ext4, "The
//! Contents of inode.i_block", "Extent Tree").

use driver::disk::Disk;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::error::damaged;
use super::inode::{Inode, flags};
use super::superblock::Checksums;
use super::zone::Owner;
use super::{Ext4, Ext4Error, Kind, MAX_FILE_EXTENTS, Place};

const MAGIC: u16 = 0xf30a;
/// The deepest tree that the format allows.
const MAX_DEPTH: u16 = 5;
/// Lengths above this one are of extents that were never written.
const MAX_WRITTEN: u16 = 32768;
/// No file has more blocks.
const MAX_FILE_BLOCKS: u64 = 1 << 32;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U16,
    entries: U16,
    max: U16,
    depth: U16,
    _generation: U32,
}

/// An entry of an inner node.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Index {
    block: U32,
    leaf_lo: U32,
    leaf_hi: U16,
    _unused: U16,
}

/// An entry of a leaf.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Leaf {
    block: U32,
    length: U16,
    start_hi: U16,
    start_lo: U32,
}

const ENTRY: usize = 12;
const _: () =
    assert!(size_of::<Header>() == ENTRY && size_of::<Index>() == ENTRY && size_of::<Leaf>() == ENTRY);

/// A run of a file's blocks that lie together on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// The first block, counted in the file.
    pub(super) logical: u64,
    /// The first block, counted in the file system.
    pub(super) physical: u64,
    pub(super) count: u64,
    /// Whether it was written; else it reads as zeros.
    pub(super) written: bool,
}

/// Where a file is. All of it lies in the file system and outside of what is the file system's own; the extents rise
/// and overlap neither each other nor the tree.
#[derive(Clone, Debug, Default)]
pub(super) struct Mapping {
    pub(super) extents: Vec<Extent>,
    /// The blocks of the tree itself.
    pub(super) nodes: Vec<u64>,
}

/// What is left of a tree to look at.
struct Todo {
    node: u64,
    depth: u16,
    /// Its entries are of the file's blocks from this one to before that one.
    from: u64,
    to: u64,
}

impl Ext4 {
    /// Where the content of an inode is.
    pub(super) fn mapping(&mut self, disk: &mut dyn Disk, inode: &Inode) -> Result<Mapping, Ext4Error> {
        if !inode.has(flags::EXTENTS) {
            let what =
                "has no extents but a block map, as ext3 made it: copy the file, or convert it with e4defrag";
            return Err(Ext4Error::Refused { inode: inode.number, what: what.to_owned() });
        }
        let mut mapping = Mapping::default();
        let place = inode.place();
        let depth = header(place, &inode.body, None)?.depth.get();
        let root = Todo { node: 0, depth, from: 0, to: MAX_FILE_BLOCKS };
        let mut todo = Vec::new();
        self.node(inode, place, &inode.body, &root, &mut mapping, &mut todo)?;
        while let Some(next) = todo.pop() {
            let place = Place::ExtentNode { inode: inode.number, block: next.node };
            self.touch(Owner::ExtentTree, next.node, 1)?;
            mapping.nodes.push(next.node);
            let content = self.block(disk, next.node)?;
            let content = self.checked_node(place, inode, &content)?;
            self.node(inode, place, content, &next, &mut mapping, &mut todo)?;
        }
        self.spend(mapping.extents.len() as u64)?;
        check_self(inode, &mapping)?;
        Ok(mapping)
    }

    /// The node without its checksum, which was looked at.
    fn checked_node<'a>(
        &self,
        place: Place,
        inode: &Inode,
        content: &'a [u8],
    ) -> Result<&'a [u8], Ext4Error> {
        if self.superblock.checksums != Checksums::Everything {
            return Ok(content);
        }
        // It follows the last entry that there is room for.
        let max = usize::from(header(place, content, None)?.max.get());
        let at = ENTRY + max * ENTRY;
        let short = || damaged(place, format!("it has room for {max} entries, and none for a checksum"));
        let (covered, rest) = content.split_at_checked(at).ok_or_else(short)?;
        let stored = rest.first_chunk().map(|word| u32::from_le_bytes(*word)).ok_or_else(short)?;
        let computed = crc32c(inode.seed, covered);
        if stored != computed {
            return Err(Ext4Error::Checksum { place, stored, computed });
        }
        Ok(covered)
    }

    /// Takes the entries of a node: extents go to `mapping`, nodes beneath it to `todo`, last first, so that all extents
    /// come in order.
    fn node(
        &self,
        inode: &Inode,
        place: Place,
        content: &[u8],
        of: &Todo,
        mapping: &mut Mapping,
        todo: &mut Vec<Todo>,
    ) -> Result<(), Ext4Error> {
        let head = header(place, content, Some(of.depth))?;
        let count = usize::from(head.entries.get());
        if count == 0 && of.node != 0 {
            return Err(damaged(place, "it is a node without entries"));
        }
        let entries = content.get(ENTRY..ENTRY + count * ENTRY).unwrap_or_default();
        if of.depth == 0 {
            return self.leaf(inode, place, entries, of, &mut mapping.extents);
        }
        let mut beneath: Vec<Todo> = Vec::new();
        for entry in entries.chunks_exact(ENTRY) {
            let Ok(index) = Index::ref_from_bytes(entry) else { continue };
            let from = u64::from(index.block.get());
            let above = beneath.last().map_or(of.from, |last| last.from + 1);
            if from < above || from >= of.to {
                return Err(damaged(place, format!("an entry for block {from} is out of order")));
            }
            if let Some(last) = beneath.last_mut() {
                last.to = from;
            }
            let node = u64::from(index.leaf_hi.get()) << 32 | u64::from(index.leaf_lo.get());
            beneath.push(Todo { node, depth: of.depth - 1, from, to: of.to });
        }
        // Each node that is still to be looked at brings at least one extent.
        limit(inode, mapping.extents.len() + todo.len() + beneath.len())?;
        todo.extend(beneath.into_iter().rev());
        Ok(())
    }

    fn leaf(
        &self,
        inode: &Inode,
        place: Place,
        entries: &[u8],
        of: &Todo,
        extents: &mut Vec<Extent>,
    ) -> Result<(), Ext4Error> {
        let mut above = of.from;
        for entry in entries.chunks_exact(ENTRY) {
            let Ok(leaf) = Leaf::ref_from_bytes(entry) else { continue };
            let length = leaf.length.get();
            let written = length <= MAX_WRITTEN;
            let extent = Extent {
                logical: leaf.block.get().into(),
                physical: u64::from(leaf.start_hi.get()) << 32 | u64::from(leaf.start_lo.get()),
                count: if written { length } else { length - MAX_WRITTEN }.into(),
                written,
            };
            let end = extent.logical + extent.count;
            if extent.count == 0 || extent.logical < above || end > of.to {
                let what =
                    format!("the extent of {} blocks from {} is out of order", extent.count, extent.logical);
                return Err(damaged(place, what));
            }
            above = end;
            self.reserve(owner_of(inode), extent.physical, extent.count)?;
            let joined = extents.last_mut().filter(|last| {
                last.logical + last.count == extent.logical
                    && last.physical + last.count == extent.physical
                    && last.written == extent.written
            });
            match joined {
                Some(last) => last.count += extent.count,
                None => extents.push(extent),
            }
        }
        limit(inode, extents.len())
    }
}

/// What the blocks of an inode's content are.
pub(super) fn owner_of(inode: &Inode) -> Owner {
    match inode.kind {
        Kind::Directory => Owner::Directory,
        Kind::Link => Owner::Link,
        _ => Owner::Data(inode.number),
    }
}

/// A node's header, which makes sense; `depth` is what it must say.
fn header(place: Place, content: &[u8], depth: Option<u16>) -> Result<&Header, Ext4Error> {
    let short = || damaged(place, "there is no room for the header of an extent tree");
    let (header, rest) = Header::ref_from_prefix(content).map_err(|_| short())?;
    let (entries, max) = (header.entries.get(), header.max.get());
    let room = rest.len() / ENTRY;
    let good = header.magic.get() == MAGIC
        && entries <= max
        && usize::from(max) <= room
        && header.depth.get() <= MAX_DEPTH
        && depth.is_none_or(|depth| depth == header.depth.get());
    if !good {
        let what = format!(
            "the header of its extent tree has magic {:#x}, depth {}, {entries} entries of {max}, room for {room}",
            header.magic.get(),
            header.depth.get()
        );
        return Err(damaged(place, what));
    }
    Ok(header)
}

fn limit(inode: &Inode, extents: usize) -> Result<(), Ext4Error> {
    if extents > MAX_FILE_EXTENTS {
        return Err(Ext4Error::Refused {
            inode: inode.number,
            what: format!("lies in more than {MAX_FILE_EXTENTS} pieces: copy it, or run e4defrag on it"),
        });
    }
    Ok(())
}

/// Refuses a file that has the same block twice, or a block of its own tree.
fn check_self(inode: &Inode, mapping: &Mapping) -> Result<(), Ext4Error> {
    let mut runs: Vec<(u64, u64)> =
        mapping.extents.iter().map(|extent| (extent.physical, extent.count)).collect();
    runs.extend(mapping.nodes.iter().map(|node| (*node, 1)));
    runs.sort_unstable();
    for pair in runs.windows(2) {
        if let [(first, count), (next, of_next)] = *pair
            && first + count > next
        {
            let owner = owner_of(inode);
            return Err(Ext4Error::Overlap { claimant: owner, first: next, count: of_next, owner });
        }
    }
    Ok(())
}
