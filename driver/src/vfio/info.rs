//! What VFIO_IOMMU_GET_INFO says: `struct vfio_iommu_type1_info` and the capability chain behind it (`linux/vfio.h`).

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
};

use super::iova::IovaRange;

/// The capability with the number of mappings left (`VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`).
const CAP_DMA_AVAIL: u32 = 3;
/// Without the kernel's word, all that any IOMMU reaches; the message-signalled interrupts' hole of x86 is left out.
const UNSTATED: [IovaRange; 2] =
    [IovaRange { first: 0, last: 0xfedf_ffff }, IovaRange { first: 0xfef0_0000, last: 0x7f_ffff_ffff }];

/// What the IOMMU can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IommuInfo {
    /// Page sizes: bit n stands for `1 << n` bytes.
    pub page_sizes: u64,
    /// Device addresses that can be mapped.
    pub ranges: Vec<IovaRange>,
    /// Mappings that can still be made; kernels before 5.10 do not say.
    pub dma_avail: Option<u32>,
}

impl IommuInfo {
    /// Reads the structure. What is missing or makes no sense is as if not stated.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let flags = u32_at(bytes, 4).unwrap_or(0);
        let page_sizes = match u64_at(bytes, 8) {
            Some(sizes) if flags & VFIO_IOMMU_INFO_PGSIZES != 0 && sizes != 0 => sizes,
            _ => 4096,
        };
        let mut info = Self { page_sizes, ranges: Vec::new(), dma_avail: None };
        let mut at = if flags & VFIO_IOMMU_INFO_CAPS != 0 { offset_at(bytes, 16) } else { 0 };
        // A chain only leads forward: one that does not is cut.
        let mut before = 0;
        while at > before {
            let header = u32_at(bytes, at).unwrap_or(0);
            match header & 0xffff {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => info.ranges = ranges_at(bytes, at + 8),
                CAP_DMA_AVAIL => info.dma_avail = u32_at(bytes, at + 8),
                _ => {}
            }
            before = at;
            at = offset_at(bytes, at + 4);
        }
        if info.ranges.is_empty() {
            info.ranges = UNSTATED.to_vec();
        }
        info
    }

    /// Bytes of the smallest page.
    pub fn page_size(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros().min(63)
    }
}

/// A count, a reserved word, then pairs of first and last address.
fn ranges_at(bytes: &[u8], at: usize) -> Vec<IovaRange> {
    let count = offset_at(bytes, at);
    let pair = |index: usize| {
        let at = at + 8 + index * 16;
        Some(IovaRange { first: u64_at(bytes, at)?, last: u64_at(bytes, at + 8)? })
    };
    (0..count).map_while(pair).filter(|range| range.first <= range.last).collect()
}

fn offset_at(bytes: &[u8], at: usize) -> usize {
    u32_at(bytes, at)
        .and_then(|value| usize::try_from(value).ok())
        .filter(|&value| value < bytes.len())
        .unwrap_or(0)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// As an x86 machine with a 39-bit IOMMU says it.
    fn intel() -> Vec<u8> {
        let mut text = words(&[96, 3, 0x4020_1000, 0, 24, 0]);
        text.extend(words(&[1 | 1 << 16, 72, 2, 0]));
        text.extend(words(&[0, 0, 0xfedf_ffff, 0]));
        text.extend(words(&[0xfef0_0000, 0, 0xffff_ffff, 0x7f]));
        text.extend(words(&[3 | 1 << 16, 0, 65535, 0]));
        text
    }

    #[test]
    fn ranges_page_sizes_and_mappings_left_are_read() {
        let info = IommuInfo::parse(&intel());
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.page_size(), 4096);
        assert_eq!(info.dma_avail, Some(65535));
        assert_eq!(info.ranges, UNSTATED);
    }

    #[test]
    fn a_kernel_that_says_nothing_gets_what_all_have() {
        for bytes in [vec![], words(&[24, 0, 0, 0, 0, 0]), words(&[24, 3, 0, 0, 24, 0])] {
            let info = IommuInfo::parse(&bytes);
            assert_eq!((info.page_size(), info.ranges, info.dma_avail), (4096, UNSTATED.to_vec(), None));
        }
    }

    #[test]
    fn a_chain_that_leads_back_ends() {
        let mut text = intel();
        text[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(IommuInfo::parse(&text).dma_avail, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), flags in 0u8..4) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.get_mut(4) {
                *byte = flags;
            }
            let info = IommuInfo::parse(&bytes);
            prop_assert!(!info.ranges.is_empty());
            prop_assert!(info.page_size().is_power_of_two());
        }

        #[test]
        fn damage_is_read_without_a_panic(at in 0usize..88, value: u8, length in 0usize..89) {
            let mut text = intel();
            text[at] = value;
            text.truncate(length);
            prop_assert!(IommuInfo::parse(&text).ranges.iter().all(|range| range.first <= range.last));
        }
    }
}
