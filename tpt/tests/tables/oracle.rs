//! The tables against the slow model, by chance and by exhaustion.

use proptest::prelude::*;
use tpt::oracle::{Op, Pick, SmallRequest, run, run_ops};

/// Cases enough for a few seconds, and a bound on the shrinking of one that fails, in milliseconds.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// S4-R5..R14, S6-R2..R11, S8-R1..R13: any sequence of operations, every answer compared, every invariant checked.
    #[test]
    fn any_operations_agree_with_the_model(ops in prop::collection::vec(op(), 1..160)) {
        run_ops(&ops);
    }

    /// The fuzz target's door takes any bytes.
    #[test]
    fn any_bytes_are_operations(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        run(&bytes);
    }
}

fn pick() -> impl Strategy<Value = Pick> {
    // Mostly a recent key as it is.
    let back = prop_oneof![6 => 0..4u8, 1 => any::<u8>()];
    let bend = prop_oneof![8 => Just(7u8), 1 => 0..3u8];
    (back, bend).prop_map(|(back, bend)| Pick { back, bend })
}

fn ranges() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((any::<u8>(), prop_oneof![9 => 1..8u8, 1 => Just(0u8)]), 0..5)
}

fn access() -> impl Strategy<Value = u8> {
    prop_oneof![2 => Just(7u8), 1 => 0..8u8]
}

fn op() -> impl Strategy<Value = Op> {
    let caller = || prop_oneof![2 => Just(None), 1 => (0..3u8).prop_map(Some)];
    let small = || (0..9u8, pick(), 0..16u8, 0..5u8, any::<u8>(), pick(), 0..16u8);
    let request = || {
        small().prop_map(|(operation, key, block, blocks, skew, region, memory)| SmallRequest {
            operation,
            key,
            block: block / 2,
            blocks,
            skew,
            region,
            // Mostly a multiple of 4.
            memory: if memory % 8 == 7 { memory } else { memory * 4 },
        })
    };
    let optional = || (prop::option::of(access()), prop::option::of(ranges()));
    prop_oneof![
        4 => (0..3u8, access(), prop::bool::weighted(0.2), ranges())
            .prop_map(|(domain, access, shared, ranges)| Op::Create { domain, access, shared, ranges }),
        1 => (0..3u8, pick()).prop_map(|(domain, key)| Op::Query { domain, key }),
        2 => (caller(), pick()).prop_map(|(caller, key)| Op::BeginModify { caller, key }),
        2 => (caller(), pick()).prop_map(|(caller, key)| Op::BeginDelete { caller, key }),
        1 => (caller(), pick()).prop_map(|(caller, key)| Op::BeginRevoke { caller, key }),
        4 => (0..3u8, optional()).prop_map(|(back, (access, ranges))| Op::Finish { back, access, ranges }),
        1 => (0..3u8).prop_map(|back| Op::Cancel { back }),
        2 => (0..3u8, access(), any::<u8>())
            .prop_map(|(domain, access, bytes)| Op::CreateRegion { domain, access, bytes }),
        1 => (caller(), pick()).prop_map(|(caller, region)| Op::BeginRegionDelete { caller, region }),
        1 => (0..3u8).prop_map(|back| Op::FinishRegionDelete { back }),
        10 => (0..2u8, 0..3u8, request())
            .prop_map(|(poller, domain, request)| Op::Check { poller, domain, request }),
        2 => (0..2u8, 0..3u8, request())
            .prop_map(|(poller, domain, request)| Op::CheckScattered { poller, domain, request }),
        2 => (0..2u8, 0..3u8, request())
            .prop_map(|(poller, domain, request)| Op::Hold { poller, domain, request }),
        2 => any::<u8>().prop_map(|back| Op::ReleaseHold { back }),
        1 => (0..2u8, pick()).prop_map(|(poller, key)| Op::Prefetch { poller, key }),
        1 => any::<(u8, u8)>().prop_map(|(back, done)| Op::Resume { back, done: done % 8 }),
        5 => any::<u8>().prop_map(|back| Op::Release { back }),
        1 => (0..2u8, 0..40u8).prop_map(|(poller, entry)| Op::Evict { poller, entry }),
        1 => prop::bool::weighted(0.1).prop_map(|fail| Op::FailFetches { fail }),
    ]
}

/// A read of two blocks by poller 0.
fn read(domain: u8, key: u8, region: u8) -> Op {
    let request = SmallRequest {
        operation: 0,
        key: Pick::newest(key),
        block: 1,
        blocks: 2,
        skew: 9,
        region: Pick::newest(region),
        memory: 0,
    };
    Op::Check { poller: 0, domain, request }
}

/// Two domains with a region each and a grant of the first: every sequence of four of these steps.
#[test]
fn every_short_sequence_agrees_with_the_model() {
    let key = Pick::newest(0);
    let create =
        |domain, first| Op::Create { domain, access: 7, shared: false, ranges: vec![(first, 2), (8, 3)] };
    let setup = [
        Op::CreateRegion { domain: 0, access: 3, bytes: 200 },
        Op::CreateRegion { domain: 1, access: 3, bytes: 200 },
        create(0, 2),
    ];
    let steps = [
        create(0, 20),
        create(1, 2),
        Op::BeginModify { caller: Some(0), key },
        Op::BeginDelete { caller: Some(0), key },
        Op::BeginRevoke { caller: None, key },
        Op::Finish { back: 0, access: Some(1), ranges: Some(vec![(40, 6)]) },
        Op::Finish { back: 1, access: None, ranges: None },
        Op::Cancel { back: 0 },
        read(0, 0, 1),
        read(1, 0, 0),
        read(0, 1, 1),
        Op::Release { back: 0 },
        Op::BeginRegionDelete { caller: Some(0), region: Pick::newest(1) },
        Op::FinishRegionDelete { back: 0 },
    ];
    let depth = 4;
    for number in 0..steps.len().pow(depth) {
        let mut ops = setup.to_vec();
        let nth = |place| steps[number / steps.len().pow(place) % steps.len()].clone();
        ops.extend((0..depth).map(nth));
        run_ops(&ops);
    }
}
