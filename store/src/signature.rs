//! What else may be on a device, by the marks that it leaves.

/// Bytes looked at from the start and from the end of a device.
pub(crate) const WINDOW: u64 = 128 << 10;

/// The start of a device and its end, each [`WINDOW`] bytes or, on a small device, all of it.
pub(crate) struct Ends {
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
    /// Bytes of the device.
    pub(crate) bytes: u64,
}

impl Ends {
    fn head_has(&self, offset: usize, mark: &[u8]) -> bool {
        self.head.get(offset..).is_some_and(|rest| rest.starts_with(mark))
    }

    /// Whether `mark` is at `offset` from the device's start, in its last part.
    fn tail_has(&self, offset: u64, mark: &[u8]) -> bool {
        let start = self.bytes - self.tail.len() as u64;
        offset
            .checked_sub(start)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.tail.get(at..))
            .is_some_and(|rest| rest.starts_with(mark))
    }

    /// Whether nothing was ever written, as far as one can see.
    pub(crate) fn blank(&self) -> bool {
        self.head.iter().chain(&self.tail).all(|byte| *byte == 0)
    }

    /// The name of what is there.
    pub(crate) fn foreign(&self) -> Option<&'static str> {
        let at = |offset, mark: &[u8]| self.head_has(offset, mark);
        let end =
            |back: u64, mark: &[u8]| self.bytes.checked_sub(back).is_some_and(|at| self.tail_has(at, mark));
        // Linux md, superblock magic a92b4efc, little-endian (Documentation/admin-guide/md).
        const MD: &[u8] = &0xa92b_4efc_u32.to_le_bytes();
        let md_1_0 = (self.bytes & !0xfff).checked_sub(8 << 10);
        let md_0_90 = (self.bytes & !0xffff).checked_sub(64 << 10);
        let name = if at(0, b"PORTCULL") {
            "a portcullis store"
        } else if at(0, b"PORTFILE") {
            "a portcullis file system"
        } else if at(0, b"LUKS\xba\xbe") {
            "an encrypted volume (LUKS)"
        } else if (0..4).any(|sector| at(sector * 512, b"LABELONE")) {
            "an LVM physical volume"
        } else if at(0, MD)
            || at(4096, MD)
            || [md_1_0, md_0_90].into_iter().flatten().any(|o| self.tail_has(o, MD))
        {
            "a member of a Linux md array"
        } else if at(1080, &[0x53, 0xef]) {
            "an ext2, ext3 or ext4 file system"
        } else if at(0, b"XFSB") {
            "an XFS file system"
        } else if at(0x1_0040, b"_BHRfS_M") {
            "a btrfs file system"
        } else if at(4086, b"SWAPSPACE2") || at(4086, b"SWAP-SPACE") {
            "swap space"
        } else if at(0, b"QFI\xfb") {
            "a QEMU disk image (qcow2)"
        } else if at(32769, b"CD001") {
            "an ISO 9660 file system"
        } else if at(3, b"NTFS    ") {
            "an NTFS file system"
        } else if at(82, b"FAT32   ") || at(54, b"FAT1") {
            "a FAT file system"
        } else if at(512, b"EFI PART") || at(4096, b"EFI PART") {
            "a GPT partition table"
        } else if end(512, b"EFI PART") || end(4096, b"EFI PART") {
            "the backup of a GPT partition table"
        } else if at(510, &[0x55, 0xaa]) {
            "an MBR partition table or a boot sector"
        } else {
            return None;
        };
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_recognised_by_name() {
        const BYTES: u64 = 1 << 20;
        const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
        let cases: &[(u64, &[u8], &str)] = &[
            (1080, &[0x53, 0xef], "ext4"),
            (512, b"EFI PART", "GPT"),
            (4096, b"EFI PART", "GPT"),
            (BYTES - 512, b"EFI PART", "GPT"),
            (510, &[0x55, 0xaa], "MBR"),
            (512, b"LABELONE", "LVM"),
            (1536, b"LABELONE", "LVM"),
            (0, MD, "md array"),
            (4096, MD, "md array"),
            (BYTES - 8192, MD, "md array"),
            (BYTES - 65536, MD, "md array"),
            (0, b"XFSB", "XFS"),
            (65600, b"_BHRfS_M", "btrfs"),
            (4086, b"SWAPSPACE2", "swap"),
            (0, b"LUKS\xba\xbe", "LUKS"),
        ];
        for (offset, mark, name) in cases {
            let mut image = vec![0; usize::try_from(BYTES).unwrap()];
            let offset = usize::try_from(*offset).unwrap();
            image[offset..offset + mark.len()].copy_from_slice(mark);
            let window = usize::try_from(WINDOW).unwrap();
            let ends = Ends {
                head: image[..window].to_vec(),
                tail: image[image.len() - window..].to_vec(),
                bytes: BYTES,
            };
            assert!(!ends.blank());
            assert!(ends.foreign().is_some_and(|what| what.contains(name)), "{name} at {offset}");
        }
        let nothing = Ends { head: vec![0; 512], tail: vec![0; 512], bytes: 512 };
        assert!(nothing.blank());
        assert_eq!(nothing.foreign(), None);
        let noise = Ends { head: vec![0x5a; 512], tail: vec![0x5a; 512], bytes: 512 };
        assert_eq!(noise.foreign(), None);
    }
}
