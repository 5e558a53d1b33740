//! The two checksums of ext4 (kernel documentation, filesystems/ext4, "Checksums").

/// CRC-32C without the inversions at its ends, so that `seed` may be the checksum of what came before.
pub(super) fn crc32c(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// CRC-16 with the polynomial x^16 + x^15 + x^2 + 1, bits reflected: of group descriptors without `metadata_csum`.
pub(super) fn crc16(seed: u16, data: &[u8]) -> u16 {
    data.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0xa001 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of CRCs: CRC-32/ISCSI and CRC-16/ARC of "123456789".
    #[test]
    fn checksums_are_the_known_ones() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), crc32c(!0, b"123456789"));
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
        assert_eq!(crc16(crc16(0, b"1234"), b"56789"), 0xbb3d);
    }
}
