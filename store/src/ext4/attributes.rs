//! Extended attributes, as far as rights need them (kernel documentation, filesystems/ext4, "Extended Attributes").

use driver::disk::Disk;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::crc32c;
use super::error::damaged;
use super::inode::Inode;
use super::superblock::Checksums;
use super::zone::Owner;
use super::{Ext4, Ext4Error, Place};
use crate::permission::{Acl, Party, Permissions, Rights};

const MAGIC: [u8; 4] = 0xea02_0000_u32.to_le_bytes();
/// Bytes of the header of a block; of its parts those that are looked at.
const BLOCK_HEADER: usize = 32;
const BLOCKS_AT: usize = 8;
pub(super) const CHECKSUM_AT: usize = 16;

/// "Attribute Name Indices".
const POSIX_ACL_ACCESS: u8 = 2;
const SECURITY: u8 = 6;

/// Where the target and the rights of an access list's entry stand (linux/posix_acl.h; acl(5)).
const ACL_VERSION: [u8; 4] = 1u32.to_le_bytes();

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    name_length: u8,
    index: u8,
    value_offset: U16,
    value_inode: U32,
    value_size: U32,
    _hash: U32,
}

const ENTRY: usize = 16;
const _: () = assert!(size_of::<Entry>() == ENTRY);

/// The attributes that decide something.
#[derive(Default)]
struct Found {
    acl: Option<Vec<u8>>,
    capability: bool,
}

impl Ext4 {
    /// Who may use the inode.
    pub(super) fn permissions(
        &mut self,
        disk: &mut dyn Disk,
        inode: &Inode,
    ) -> Result<Permissions, Ext4Error> {
        let found = self.attributes(disk, inode)?;
        let acl = found.acl.map(|value| access_list(inode, &value)).transpose()?.flatten();
        Ok(Permissions { mode: inode.mode, uid: inode.uid, gid: inode.gid, acl })
    }

    /// Whether running the file gives capabilities.
    pub(super) fn has_capability(&mut self, disk: &mut dyn Disk, inode: &Inode) -> Result<bool, Ext4Error> {
        Ok(self.attributes(disk, inode)?.capability)
    }

    /// What is behind the inode proper comes before what is in the block, as in the kernel.
    fn attributes(&mut self, disk: &mut dyn Disk, inode: &Inode) -> Result<Found, Ext4Error> {
        let mut found = Found::default();
        if let Some(region) = inode.tail.strip_prefix(&MAGIC) {
            look(inode, inode.place(), region, 0, &mut found)?;
        }
        if inode.attribute_block != 0 {
            let block = inode.attribute_block;
            self.touch(Owner::Attributes, block, 1)?;
            let content = self.block(disk, block)?;
            let place = Place::AttributeBlock { inode: inode.number, block };
            self.check_attributes(place, block, &content)?;
            look(inode, place, &content, BLOCK_HEADER, &mut found)?;
        }
        Ok(found)
    }

    fn check_attributes(&self, place: Place, block: u64, content: &[u8]) -> Result<(), Ext4Error> {
        let word = |at: usize| content.get(at..at + 4).unwrap_or_default();
        if word(0) != MAGIC || word(BLOCKS_AT) != 1u32.to_le_bytes() {
            return Err(damaged(place, "it does not begin as such a block does"));
        }
        if self.superblock.checksums != Checksums::Everything {
            return Ok(());
        }
        let computed = checksum(self.superblock.seed, block, content);
        let stored = word(CHECKSUM_AT).try_into().map_or(0, u32::from_le_bytes);
        if stored != computed {
            return Err(Ext4Error::Checksum { place, stored, computed });
        }
        Ok(())
    }
}

/// What the checksum of a block should be.
pub(super) fn checksum(seed: u32, block: u64, content: &[u8]) -> u32 {
    let before = content.get(..CHECKSUM_AT).unwrap_or_default();
    let after = content.get(CHECKSUM_AT + 4..).unwrap_or_default();
    [&block.to_le_bytes()[..], before, &[0; 4], after].into_iter().fold(seed, crc32c)
}

/// Looks at all entries from `first` of a region, in which offsets of values count too.
fn look(
    inode: &Inode,
    place: Place,
    region: &[u8],
    first: usize,
    found: &mut Found,
) -> Result<(), Ext4Error> {
    let mut at = first;
    loop {
        let rest = region.get(at..).unwrap_or_default();
        match rest.first_chunk::<4>() {
            None => return Err(damaged(place, "its extended attributes have no end")),
            Some([0, 0, 0, 0]) => return Ok(()),
            Some(_) => {}
        }
        let cut = || damaged(place, format!("the extended attribute at byte {at} is cut off"));
        let (entry, names) = Entry::ref_from_prefix(rest).map_err(|_| cut())?;
        let name = names.get(..entry.name_length.into()).ok_or_else(cut)?;
        let value = || {
            if entry.value_inode.get() != 0 {
                let what = "has an access list in an inode of its own (ea_inode): make the list shorter";
                return Err(Ext4Error::Refused { inode: inode.number, what: what.to_owned() });
            }
            let start = usize::from(entry.value_offset.get());
            let end = usize::try_from(entry.value_size.get()).ok().and_then(|size| start.checked_add(size));
            end.and_then(|end| region.get(start..end)).ok_or_else(cut)
        };
        match (entry.index, name) {
            (POSIX_ACL_ACCESS, b"") if found.acl.is_none() => found.acl = Some(value()?.to_vec()),
            (SECURITY, b"capability") => found.capability = true,
            _ => {}
        }
        at += (ENTRY + name.len()).next_multiple_of(4);
    }
}

/// An access list as it is stored: a version, then entries of four bytes, those that name somebody of eight ("POSIX
/// ACLs"). A list without entries is none.
fn access_list(inode: &Inode, value: &[u8]) -> Result<Option<Acl>, Ext4Error> {
    let broken = |what: String| damaged(inode.place(), format!("its access list {what}"));
    let Some(mut rest) = value.strip_prefix(&ACL_VERSION) else {
        return Err(broken("has another version than 1".to_owned()));
    };
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let cut = || broken(format!("is cut off in its entry {}", entries.len()));
        let (head, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let [tag_low, tag_high, bits_low, bits_high] = *head;
        let (tag, bits) =
            (u16::from_le_bytes([tag_low, tag_high]), u16::from_le_bytes([bits_low, bits_high]));
        let (id, behind) = match tag {
            0x02 | 0x08 => after.split_first_chunk::<4>().map(|(id, rest)| (u32::from_le_bytes(*id), rest)),
            _ => Some((0, after)),
        }
        .ok_or_else(cut)?;
        let party = match tag {
            0x01 => Party::Owner,
            0x02 => Party::User(id),
            0x04 => Party::OwningGroup,
            0x08 => Party::Group(id),
            0x10 => Party::Mask,
            0x20 => Party::Other,
            _ => return Err(broken(format!("has an entry of the unknown tag {tag:#x}"))),
        };
        let rights = u8::try_from(bits).ok().and_then(Rights::from_bits);
        entries.push((party, rights.ok_or_else(|| broken(format!("gives the unknown rights {bits:#x}")))?));
        rest = behind;
    }
    if entries.is_empty() {
        return Ok(None);
    }
    Acl::new(entries).map(Some).map_err(|error| broken(format!("is not one: {error}")))
}
