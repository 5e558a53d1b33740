//! What was seen of one block, and whether a block could have done all that.
//!
//! A block is a register: each read gives what the write gave that came last, at one moment between its begin and its end. As
//! every write has a value of its own, that can be decided without trying orders (Gibbons and Korach, Testing Shared Memories,
//! SIAM Journal on Computing 26, 1997): a write with the reads of its value is a cluster. From its earliest end to its latest
//! begin, where that is later, the register held its value, so such times of two clusters do not overlap; a cluster whose
//! operations all overlap at some time fits anywhere there, but not wholly into a time when another value was held.

use std::collections::BTreeMap;

/// Of a write, what it wrote; of a read, what it gave.
pub(super) type Value = u64;

/// What a block holds first.
pub(super) const FIRST: Value = 0;

/// An operation on one block, with times in any unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Operation {
    pub(super) value: Value,
    pub(super) writes: bool,
    pub(super) begin: u64,
    /// `None` of a write of which nobody knows whether it was done: it may have been at any time since, or never.
    pub(super) end: Option<u64>,
}

struct Cluster {
    first_end: u64,
    last_begin: u64,
    /// Of the write.
    begin: u64,
    reads: usize,
    is_known: bool,
}

/// Says what no register does.
pub(super) fn check(operations: &[Operation]) -> Result<(), String> {
    let first = Cluster { first_end: 0, last_begin: 0, begin: 0, reads: 0, is_known: true };
    let mut clusters = BTreeMap::from([(FIRST, first)]);
    for it in operations.iter().filter(|it| it.writes) {
        let end = it.end.unwrap_or(u64::MAX);
        let cluster = Cluster {
            first_end: end,
            last_begin: it.begin,
            begin: it.begin,
            reads: 0,
            is_known: it.end.is_some(),
        };
        if clusters.insert(it.value, cluster).is_some() {
            return Err(format!("two writes of {:#x}: the test is wrong", it.value));
        }
    }
    for it in operations.iter().filter(|it| !it.writes) {
        let Some(cluster) = clusters.get_mut(&it.value) else {
            return Err(format!("{:#x} was read, and nobody wrote it", it.value));
        };
        let end = it.end.unwrap_or(u64::MAX);
        if end < cluster.begin {
            return Err(format!("{:#x} was read before it was written", it.value));
        }
        cluster.first_end = cluster.first_end.min(end);
        cluster.last_begin = cluster.last_begin.max(it.begin);
        cluster.reads += 1;
    }
    // A write that nobody saw, and of which nobody knows, was not done.
    clusters.retain(|_, cluster| cluster.is_known || cluster.reads > 0);
    let held = |cluster: &Cluster| cluster.first_end < cluster.last_begin;
    let mut times: Vec<(u64, u64, Value)> = clusters
        .iter()
        .filter(|(_, cluster)| held(cluster))
        .map(|(value, cluster)| (cluster.first_end, cluster.last_begin, *value))
        .collect();
    times.sort_unstable();
    for pair in times.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(format!("{:#x} and {:#x} were held at the same time", pair[0].2, pair[1].2));
        }
    }
    for (value, cluster) in clusters.iter().filter(|(_, cluster)| !held(cluster)) {
        // The last time that begins before the cluster's.
        let before = times.partition_point(|(from, ..)| *from < cluster.last_begin);
        if let Some((_, to, other)) = before.checked_sub(1).map(|at| times[at])
            && cluster.first_end < to
        {
            return Err(format!("{value:#x} was there while {other:#x} was held"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: Value, begin: u64, end: u64) -> Operation {
        Operation { value, writes: true, begin, end: Some(end) }
    }

    fn unknown(value: Value, begin: u64) -> Operation {
        Operation { end: None, ..write(value, begin, 0) }
    }

    fn read(value: Value, begin: u64, end: u64) -> Operation {
        Operation { writes: false, ..write(value, begin, end) }
    }

    /// All orders, one after another: what the fast way is compared with.
    fn by_trying(operations: &[Operation], held: Value) -> bool {
        let first_end = operations.iter().map(|it| it.end.unwrap_or(u64::MAX)).min().unwrap_or(u64::MAX);
        operations.is_empty()
            || operations.iter().enumerate().any(|(at, it)| {
                let mut rest = operations.to_vec();
                rest.remove(at);
                let never = it.writes && it.end.is_none() && by_trying(&rest, held);
                let now = it.begin <= first_end
                    && (it.writes || it.value == held)
                    && by_trying(&rest, if it.writes { it.value } else { held });
                never || now
            })
    }

    #[test]
    fn what_a_register_does_is_accepted_and_nothing_else() {
        for good in [
            vec![],
            vec![read(FIRST, 1, 2), write(1, 1, 4), read(1, 2, 3), read(1, 5, 6)],
            vec![write(1, 1, 9), write(2, 2, 8), read(2, 10, 11), read(2, 12, 13)],
            vec![unknown(1, 1), read(FIRST, 2, 3), read(1, 9, 10)],
            vec![unknown(1, 1), write(2, 2, 3), read(1, 4, 5), read(1, 6, 7)],
            vec![unknown(1, 1), write(2, 2, 3), read(2, 4, 5)],
        ] {
            assert_eq!(check(&good), Ok(()), "{good:?}");
        }
        for bad in [
            vec![read(7, 1, 2)],
            vec![read(1, 1, 2), write(1, 3, 4)],
            vec![write(1, 1, 2), read(FIRST, 3, 4)],
            vec![write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
            vec![unknown(1, 1), read(1, 2, 3), read(FIRST, 4, 5)],
            // Done twice.
            vec![unknown(1, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9)],
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn it_says_what_trying_all_orders_says() {
        let mut dice = driver::dice::Dice(crate::scale::seed(1));
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let writes = 1 + dice.below(3);
            let operations: Vec<Operation> = (1..=writes + dice.below(4))
                .map(|number| {
                    // Times of their own: what begins as something else ends is not in question.
                    let begin = dice.below(12) * 64 + number * 2;
                    let end = begin + 1 + dice.below(6) * 64;
                    match number {
                        _ if number > writes => read(dice.below(writes + 1), begin, end),
                        _ if dice.below(4) == 0 => unknown(number, begin),
                        _ => write(number, begin, end),
                    }
                })
                .collect();
            let accepts = by_trying(&operations, FIRST);
            assert_eq!(check(&operations).is_ok(), accepts, "{operations:?}");
            accepted += u32::from(accepts);
            refused += u32::from(!accepts);
        }
        assert!(accepted > 1000 && refused > 1000, "{accepted} and {refused}");
    }
}
