//! Scatter gather lists: how a command names memory that is not contiguous (Base 2.0, section 4.1.2). A pure function.

use crate::block::Segment;
use crate::spec::nvme::{SGL_DESCRIPTOR_LEN, SglDescriptor, sgl_id};

/// Segments of a command at most: their list fits the place that a slot has for a PRP list.
pub(super) const MOST: u32 = 32;

#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const LEN: u32 = SGL_DESCRIPTOR_LEN as u32;

/// The first descriptor of a command for `segments`, at least one and at most [`MOST`].
///
/// With more than one it leads to the list at `list`, and `entry` gets the list: index and descriptor, rising from 0.
#[inline]
pub(super) fn build(
    segments: &[Segment],
    list: u64,
    mut entry: impl FnMut(usize, SglDescriptor),
) -> SglDescriptor {
    let block = |segment: &Segment| SglDescriptor::new(sgl_id::DATA_BLOCK, segment.data.0, segment.bytes);
    if let [whole] = segments {
        return block(whole);
    }
    let mut bytes = 0;
    for (index, segment) in segments.iter().enumerate() {
        entry(index, block(segment));
        bytes += LEN;
    }
    SglDescriptor::new(sgl_id::LAST_SEGMENT, list, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hal::Iova;

    #[test]
    fn one_segment_is_in_the_command_and_more_are_in_the_list() {
        let segments: Vec<Segment> = (1..=u64::from(MOST))
            .map(|n| Segment { data: Iova(n * 0x1_0004), bytes: 512 * u32::try_from(n).unwrap() })
            .collect();
        for count in 1..=segments.len() {
            let mut list = Vec::new();
            let first = build(&segments[..count], 0xabc_d000, |at, descriptor| {
                assert_eq!(at, list.len());
                list.push(descriptor);
            });
            let expected: Vec<SglDescriptor> = segments[..count]
                .iter()
                .map(|segment| SglDescriptor::new(sgl_id::DATA_BLOCK, segment.data.0, segment.bytes))
                .collect();
            if count == 1 {
                assert_eq!((first, list.len()), (expected[0], 0));
            } else {
                let bytes = u32::try_from(count * 16).unwrap();
                assert_eq!(first, SglDescriptor::new(sgl_id::LAST_SEGMENT, 0xabc_d000, bytes));
                assert_eq!(list, expected);
            }
        }
    }
}
