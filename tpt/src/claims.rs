//! Which blocks are granted, and to whom: what keeps two domains from holding the same block by accident (S8-R2).

use alloc::collections::BTreeMap;

use crate::{Domain, LbaRange};

/// On what terms blocks are granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// Only grants of this domain.
    Exclusive(Domain),
    /// Shared grants of any domain.
    Shared,
    /// Only opened files of this domain.
    FilesOf(Domain),
    /// Shared opened files of any domain.
    Files,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    end: u64,
    claim: Claim,
    /// How many grants hold it.
    grants: u32,
}

/// Disjoint spans by their first block.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    spans: BTreeMap<u64, Span>,
}

impl Claims {
    /// Whether some block of the range is held on other terms.
    pub(crate) fn conflicts(&self, range: LbaRange, claim: Claim) -> bool {
        let before = self.spans.range(..range.first.0).next_back();
        let reaches_in = before.is_some_and(|(_, span)| span.end > range.first.0 && span.claim != claim);
        reaches_in || self.spans.range(range.first.0..range.end().0).any(|(_, span)| span.claim != claim)
    }

    /// Adds one grant's range; the caller has asked for conflicts.
    pub(crate) fn add(&mut self, range: LbaRange, claim: Claim) {
        let (first, end) = (range.first.0, range.end().0);
        self.split(first);
        self.split(end);
        let mut at = first;
        while at < end {
            match self.spans.range_mut(at..end).next() {
                Some((&start, span)) if start == at => {
                    span.grants += 1;
                    at = span.end;
                }
                next => {
                    let gap_end = next.map_or(end, |(&start, _)| start);
                    self.spans.insert(at, Span { end: gap_end, claim, grants: 1 });
                    at = gap_end;
                }
            }
        }
    }

    /// Takes one grant's range away again.
    pub(crate) fn remove(&mut self, range: LbaRange) {
        let (first, end) = (range.first.0, range.end().0);
        self.split(first);
        self.split(end);
        let mut at = first;
        while let Some((&start, span)) = self.spans.range_mut(at..end).next() {
            span.grants -= 1;
            at = span.end;
            if span.grants == 0 {
                self.spans.remove(&start);
            }
        }
        self.join(first);
        self.join(end);
    }

    /// Makes `at` a boundary.
    fn split(&mut self, at: u64) {
        if let Some((_, span)) = self.spans.range_mut(..at).next_back()
            && span.end > at
        {
            let rest = *span;
            span.end = at;
            self.spans.insert(at, rest);
        }
    }

    /// Removes the boundary at `at` if both sides are alike, so that boundaries of former grants do not pile up.
    fn join(&mut self, at: u64) {
        let Some(&right) = self.spans.get(&at) else { return };
        if let Some((_, left)) = self.spans.range_mut(..at).next_back()
            && *left == (Span { end: at, ..right })
        {
            left.end = right.end;
            self.spans.remove(&at);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// The terms of one block and how many grants hold it.
    pub(crate) fn of(&self, block: u64) -> Option<(Claim, u32)> {
        let (_, span) = self.spans.range(..=block).next_back()?;
        (block < span.end).then_some((span.claim, span.grants))
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> LbaRange {
        LbaRange::new(first, count).unwrap()
    }

    /// Against one counter a block, over pseudo-random adds and removes.
    #[test]
    fn spans_count_as_a_plain_array_does() {
        let claim = Claim::Exclusive(Domain(1));
        let mut claims = Claims::default();
        let mut plain = [0u32; 64];
        let mut held = alloc::vec::Vec::new();
        let mut seed = 1u64;
        for _ in 0..2_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = seed >> 33;
            if draw.is_multiple_of(2) && !held.is_empty() {
                let range: LbaRange = held.swap_remove(draw as usize / 2 % held.len());
                claims.remove(range);
                (range.first.0..range.end().0).for_each(|b| plain[b as usize] -= 1);
            } else if held.len() < 12 {
                let first = draw / 2 % 60;
                let range = range(first, 1 + draw / 128 % (64 - first));
                claims.add(range, claim);
                (range.first.0..range.end().0).for_each(|b| plain[b as usize] += 1);
                held.push(range);
            }
            for block in 0..64 {
                let expected = (plain[block as usize] > 0).then_some((claim, plain[block as usize]));
                assert_eq!(claims.of(block), expected, "block {block}");
            }
            assert!(claims.len() <= 2 * held.len(), "boundaries pile up");
        }
        held.drain(..).for_each(|range| claims.remove(range));
        assert_eq!(claims.len(), 0);
    }

    #[test]
    fn other_terms_conflict_at_either_edge_only_if_they_touch() {
        let mut claims = Claims::default();
        claims.add(range(10, 10), Claim::Exclusive(Domain(1)));
        let other = Claim::Exclusive(Domain(2));
        for (first, count, conflict) in [
            (0, 10, false),
            (0, 11, true),
            (19, 1, true),
            (19, 9, true),
            (20, 9, false),
            (0, 99, true),
            (12, 2, true),
        ] {
            assert_eq!(claims.conflicts(range(first, count), other), conflict, "{first}+{count}");
            assert_eq!(claims.conflicts(range(first, count), Claim::Shared), conflict, "{first}+{count}");
            assert!(!claims.conflicts(range(first, count), Claim::Exclusive(Domain(1))));
        }
    }
}
