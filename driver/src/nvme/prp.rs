//! Physical region pages: how a command names its memory (Base 2.0, section 4.1.1). Pure functions, which are seen from outside
//! only to be measured.

/// Bytes of a memory page, as CC.MPS = 0 says.
pub const PAGE: u64 = 4096;

/// Entries of a list that cover `bytes` bytes at any offset in a page: all pages but the first.
pub(super) const fn list_entries(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE)
}

/// The two PRP entries of a command for `len` bytes at `data`, a multiple of 4, if they are enough: for one page or two.
/// `data + len` must not overflow and `len` must not be 0.
#[inline]
pub(super) fn without_list(data: u64, len: u64) -> Option<(u64, u64)> {
    debug_assert!(data.is_multiple_of(4) && len > 0 && data.checked_add(len - 1).is_some());
    let first = PAGE - data % PAGE;
    if len <= first {
        return Some((data, 0));
    }
    (len <= first + PAGE).then_some((data, data + first))
}

/// The two PRP entries of a command for `len` bytes at `data`, a multiple of 4.
///
/// With more than two pages, the second names the list at `list`, and `entry` gets the list: index and page address,
/// rising from 0. `data + len` must not overflow and `len` must not be 0.
#[inline]
pub fn build(data: u64, len: u64, list: u64, mut entry: impl FnMut(u64, u64)) -> (u64, u64) {
    if let Some(entries) = without_list(data, len) {
        return entries;
    }
    let first = PAGE - data % PAGE;
    let second = data + first;
    let pages = (len - first).div_ceil(PAGE);
    for i in 0..pages {
        entry(i, second + i * PAGE);
    }
    (data, list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: u64 = 0xabc_d000;

    fn built(data: u64, len: u64) -> (u64, u64, Vec<u64>) {
        let mut list = Vec::new();
        let (prp1, prp2) = build(data, len, LIST, |i, page| {
            assert_eq!(i, list.len() as u64);
            list.push(page);
        });
        (prp1, prp2, list)
    }

    /// What a controller makes of PRP entries: the address of every dword, the slow obvious way.
    fn walked(prp1: u64, prp2: u64, list: &[u64], len: u64) -> Vec<u64> {
        let in_first = (PAGE - prp1 % PAGE).min(len);
        let mut dwords: Vec<u64> = (0..in_first / 4).map(|i| prp1 + 4 * i).collect();
        let rest = len - in_first;
        let pages: Vec<u64> = match rest {
            0 => vec![],
            rest if rest <= PAGE => vec![prp2],
            _ => {
                assert_eq!(prp2, LIST);
                list.to_vec()
            }
        };
        for i in 0..rest / 4 {
            let page = pages[(i * 4 / PAGE) as usize];
            assert_eq!(page % PAGE, 0, "only the first entry may have an offset");
            dwords.push(page + i * 4 % PAGE);
        }
        dwords
    }

    #[test]
    fn boundaries() {
        assert_eq!(built(0x1000, 512), (0x1000, 0, vec![]));
        assert_eq!(built(0x1000, 4096), (0x1000, 0, vec![]));
        assert_eq!(built(0x1e00, 512), (0x1e00, 0, vec![]));
        assert_eq!(built(0x1e04, 512), (0x1e04, 0x2000, vec![]));
        assert_eq!(built(0x1ffc, 4096), (0x1ffc, 0x2000, vec![]));
        assert_eq!(built(0x1000, 8192), (0x1000, 0x2000, vec![]));
        assert_eq!(built(0x1004, 8192), (0x1004, LIST, vec![0x2000, 0x3000]));
        assert_eq!(built(0x1000, 12288), (0x1000, LIST, vec![0x2000, 0x3000]));
        assert_eq!(built(0x1ffc, 4100 + 4096), (0x1ffc, LIST, vec![0x2000, 0x3000]));
    }

    #[test]
    fn the_largest_transfer_fits_one_page_of_list_at_any_offset() {
        let most = 512 * PAGE;
        assert_eq!(list_entries(most), 512);
        assert_eq!(built(0x1000, most).2.len(), 511);
        assert_eq!(built(0x1004, most).2.len(), 512);
        assert_eq!(built(0x1ffc, most).2.len(), 512);
    }

    #[test]
    fn the_last_page_of_the_address_space() {
        assert_eq!(built(u64::MAX - 4095, 4096), (u64::MAX - 4095, 0, vec![]));
        assert_eq!(built(u64::MAX - 8191, 8192), (u64::MAX - 8191, u64::MAX - 4095, vec![]));
    }

    proptest! {
        #[test]
        fn every_dword_is_named_once_and_in_order(page in 1u64..1 << 36, offset in 0u64..1024, dwords in 1u64..8192) {
            let (data, len) = (page * PAGE + offset * 4, dwords * 4);
            let (prp1, prp2, list) = built(data, len);
            prop_assert!(list.len() as u64 <= list_entries(len));
            let expected: Vec<u64> = (0..dwords).map(|i| data + 4 * i).collect();
            prop_assert_eq!(walked(prp1, prp2, &list, len), expected);
        }
    }
}
