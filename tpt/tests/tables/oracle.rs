//! The tables against the slow model, by chance and by exhaustion.

use proptest::prelude::*;
use tpt::oracle::{Op, Pick, SmallRequest, run, run_last_op, run_ops};

use crate::support::{counted, soak};

/// Cases enough for a few seconds, in soak for a minute, and a bound on the shrinking of one that fails, in milliseconds.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    }
}

fn cases() -> u32 {
    if soak() { 40_000 } else { 400 }
}

proptest! {
    #![proptest_config(config())]

    /// Any sequence of operations, every answer compared, every invariant checked, every block of every grant followed:
    /// so a refused request changes no field (S4-R14), and S8-R1 to R4 hold after each operation.
    #[test]
    fn s4_r13_r14_s8_r1_r2_r3_r4_any_operations_agree_with_the_model(ops in prop::collection::vec(op(), 1..160)) {
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
    let extension = || prop::option::weighted(0.3, pick());
    let small = || (0..9u8, pick(), extension(), 0..16u8, 0..5u8, any::<u8>(), pick(), 0..16u8);
    let request = || {
        small().prop_map(|(operation, key, extension, block, blocks, skew, region, memory)| SmallRequest {
            operation,
            key,
            extension,
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
        4 => (0..3u8, access(), prop::bool::weighted(0.2), ranges())
            .prop_map(|(domain, access, shared, extents)| Op::CreateFile { domain, access, shared, extents }),
        3 => (caller(), pick(), ranges())
            .prop_map(|(caller, key, extents)| Op::ExtendFile { caller, key, extents }),
        4 => (0..3u8, prop::option::of(access()), prop::option::of(0..20u8), ranges())
            .prop_map(|(back, access, keep, append)| Op::FinishFile { back, access, keep, append }),
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
        1 => (0..2u8, 0..3u8, request())
            .prop_map(|(poller, domain, request)| Op::LookAtFile { poller, domain, request }),
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

/// Two blocks by poller 0.
fn request(operation: u8, key: u8, region: u8) -> SmallRequest {
    SmallRequest {
        operation,
        key: Pick::newest(key),
        extension: None,
        block: 1,
        blocks: 2,
        skew: 9,
        region: Pick::newest(region),
        memory: 0,
    }
}

fn read(domain: u8, key: u8, region: u8) -> Op {
    Op::Check { poller: 0, domain, request: request(0, key, region) }
}

fn create(domain: u8, first: u8) -> Op {
    Op::Create { domain, access: 7, shared: false, ranges: vec![(first, 2), (8, 3)] }
}

/// The steps of the exhaustive runs; the first ones in every run, all of them in soak.
fn steps() -> Vec<Op> {
    let key = Pick::newest(0);
    let mut steps = vec![
        create(1, 2),
        Op::BeginModify { caller: Some(0), key },
        Op::BeginDelete { caller: Some(0), key },
        Op::BeginRevoke { caller: None, key },
        Op::Finish { back: 0, access: Some(1), ranges: Some(vec![(40, 3), (50, 3)]) },
        Op::Cancel { back: 0 },
        read(0, 0, 1),
        read(1, 0, 0),
        Op::Release { back: 0 },
        Op::Hold { poller: 0, domain: 0, request: request(1, 0, 1) },
        Op::BeginRegionDelete { caller: Some(0), region: Pick::newest(1) },
        Op::FinishRegionDelete { back: 0 },
    ];
    if soak() {
        steps.extend([
            create(0, 20),
            Op::Finish { back: 1, access: None, ranges: None },
            read(0, 1, 1),
            Op::CheckScattered { poller: 1, domain: 0, request: request(8, 0, 1) },
            Op::ReleaseHold { back: 0 },
            Op::Evict { poller: 0, entry: 0 },
        ]);
    }
    steps
}

/// Two domains with a region each and a grant of the first: every sequence of up to five steps, no more and no less.
#[test]
fn s4_r14_s8_r1_r2_r3_r4_every_sequence_of_five_steps_agrees_with_the_model() {
    let setup = [
        Op::CreateRegion { domain: 0, access: 3, bytes: 200 },
        Op::CreateRegion { domain: 1, access: 3, bytes: 200 },
        create(0, 2),
    ];
    every_sequence(&setup, &steps(), 5, "exhaustive sequences");
}

fn create_file(domain: u8, first: u8) -> Op {
    Op::CreateFile { domain, access: 7, shared: false, extents: vec![(first, 2), (8, 3)] }
}

/// As `steps`, with what is done to files.
fn file_steps() -> Vec<Op> {
    let key = Pick::newest(0);
    let named = |back| SmallRequest { extension: Some(Pick::newest(back)), block: 0, ..request(0, 0, 1) };
    let append = vec![(20, 1)];
    let mut steps = vec![
        create_file(0, 2),
        create(1, 2),
        Op::ExtendFile { caller: Some(0), key, extents: vec![(30, 2)] },
        Op::BeginModify { caller: Some(0), key },
        Op::FinishFile { back: 0, access: None, keep: Some(3), append: append.clone() },
        Op::FinishFile { back: 0, access: Some(1), keep: None, append: vec![(40, 1), (50, 1)] },
        Op::BeginDelete { caller: None, key },
        Op::Finish { back: 0, access: None, ranges: None },
        read(0, 0, 1),
        Op::Check { poller: 0, domain: 0, request: named(0) },
        Op::Check { poller: 0, domain: 0, request: named(1) },
        Op::Release { back: 0 },
    ];
    if soak() {
        steps.extend([
            create_file(1, 20),
            Op::FinishFile { back: 0, access: None, keep: Some(0), append },
            Op::BeginRevoke { caller: None, key },
            Op::Cancel { back: 0 },
            read(0, 1, 1),
            Op::Evict { poller: 0, entry: 0 },
        ]);
    }
    steps
}

/// The same with an opened file of two extensions, of which the key of the first has an instance that its number never had
/// before.
#[test]
fn s5_r7_r9_r11_s6_r13_every_sequence_on_a_file_agrees_with_the_model() {
    let setup = [
        Op::CreateRegion { domain: 0, access: 3, bytes: 200 },
        Op::CreateRegion { domain: 1, access: 3, bytes: 200 },
        create_file(0, 2),
    ];
    every_sequence(&setup, &file_steps(), if soak() { 5 } else { 4 }, "exhaustive sequences on files");
}

/// Every sequence of up to so many steps after the setup.
fn every_sequence(setup: &[Op], steps: &[Op], deepest: u32, what: &str) {
    let mut runs = 0;
    for depth in 1..=deepest {
        let sequences = steps.len().pow(depth);
        // Two cores share them.
        std::thread::scope(|scope| {
            for odd in 0..2 {
                scope.spawn(move || {
                    for number in (odd..sequences).step_by(2) {
                        let nth = |place| &steps[number / steps.len().pow(place) % steps.len()];
                        // The sequence without its last step was looked at by itself.
                        run_last_op(setup.iter().chain((0..depth - 1).map(nth)), nth(depth - 1));
                    }
                });
            }
        });
        runs += sequences;
    }
    assert_eq!(runs, (1..=deepest).map(|depth| steps.len().pow(depth)).sum::<usize>());
    counted(runs, what);
}
