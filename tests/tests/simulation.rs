//! The engine in simulation, over many seeds: a few thousand, or with `PORTCULLIS_SOAK=1` a million. `PORTCULLIS_SEED` is
//! the first of them, `PORTCULLIS_SEEDS` how many; with a seed alone that one is replayed.

#![allow(clippy::unwrap_used)] // a thread that panicked has failed

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tests::scale::{counted, number, soak};
use tests::simulation::{Driver, Finding, STATUSES, Seen, Simulator, files, hush, shares};
use wire::Status;

/// Seeds of a run by every change, and of a soak.
const FEW: u64 = 10_000;
const MANY: u64 = 1_000_000;

/// Seeds that one thread takes at a time.
const PORTION: u64 = 50;

/// A word of progress so often.
const PROGRESS: Duration = Duration::from_secs(10);

/// The first seed and how many.
fn seeds() -> (u64, u64) {
    let first = number("PORTCULLIS_SEED");
    let usual = match (soak(), first) {
        (true, _) => MANY,
        (false, Some(_)) => 1,
        (false, None) => FEW,
    };
    (first.unwrap_or(1), number("PORTCULLIS_SEEDS").unwrap_or(usual))
}

/// What all seeds together came to.
#[derive(Default)]
struct Sum {
    seeds: AtomicU64,
    steps: AtomicU64,
    statuses: Mutex<[u64; STATUSES]>,
    special: Mutex<[u64; 4]>,
    finding: Mutex<Option<Finding>>,
    found: AtomicBool,
}

fn simulate(first: u64, count: u64) -> Sum {
    let sum = Sum::default();
    let next = AtomicU64::new(first);
    let started = Instant::now();
    let shown = Mutex::new(started);
    let work = || {
        let mut simulator = Simulator::default();
        if count == 1 {
            simulator.events = usize::MAX; // A replay is to be read from the beginning.
        }
        while !sum.found.load(Ordering::Relaxed) {
            let from = next.fetch_add(PORTION, Ordering::Relaxed);
            let (to, end) = (from.saturating_add(PORTION), first.saturating_add(count));
            for seed in from..to.min(end) {
                let outcome = simulator.run(seed, Driver::Right);
                sum.seeds.fetch_add(1, Ordering::Relaxed);
                sum.steps.fetch_add(outcome.steps, Ordering::Relaxed);
                let mut statuses = sum.statuses.lock().unwrap();
                statuses.iter_mut().zip(outcome.statuses).for_each(|(sum, seen)| *sum += seen);
                let mut special = sum.special.lock().unwrap();
                special.iter_mut().zip(outcome.special).for_each(|(sum, seen)| *sum += seen);
                if let Some(finding) = outcome.finding {
                    sum.found.store(true, Ordering::Relaxed);
                    // The lowest, so that a range of seeds always names the same.
                    let mut lowest = sum.finding.lock().unwrap();
                    if lowest.as_ref().is_none_or(|other| seed < other.seed) {
                        *lowest = Some(finding);
                    }
                    return;
                }
            }
            if to >= end {
                return;
            }
            let mut shown = shown.lock().unwrap();
            if shown.elapsed() > PROGRESS {
                *shown = Instant::now();
                let done = sum.seeds.load(Ordering::Relaxed);
                eprintln!("simulation: {done} of {count} seeds in {} s", started.elapsed().as_secs());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get().min(2)) {
            scope.spawn(work);
        }
    });
    sum
}

/// What a few thousand seeds have to meet: with none of it a simulation shows little.
const MET: [Status; 17] = [
    Status::OK,
    Status::E_OPCODE,
    Status::E_KEY_RANGE,
    Status::E_ENTRY_INVALID,
    Status::E_KEY_INSTANCE,
    Status::E_PD_MISMATCH,
    Status::E_ACCESS,
    Status::E_BOUNDS,
    Status::E_ALIGN,
    Status::E_LOCAL_MEM,
    Status::E_DEVICE,
    Status::E_FLUSHED,
    Status::E_PATH,
    Status::E_CANCELLED,
    Status::E_DEADLINE,
    Status::E_NOT_FOUND,
    Status::E_MISCOMPARE,
];

fn every_rule_holds() -> Result<(), Failed> {
    let (first, count) = seeds();
    // A driver that panics, in another test, drops what the engine was just submitting.
    let before = tpt::leaked_grants();
    let sum = simulate(first, count);
    if let Some(finding) = sum.finding.into_inner().unwrap() {
        return Err(finding.to_string().into());
    }
    let dropped = tpt::leaked_grants() - before;
    if dropped != 0 {
        return Err(format!("{dropped} grants were dropped, not released").into());
    }
    let statuses = sum.statuses.into_inner().unwrap();
    if count >= FEW
        && let Some(never) = MET.iter().find(|status| statuses[usize::from(status.0)] < 20)
    {
        return Err(format!("{count} seeds met {never} fewer than 20 times").into());
    }
    let special = sum.special.into_inner().unwrap();
    if count >= FEW && special.iter().any(|&ended| ended < 1000) {
        let few = "requests with lists, writes of bytes, parked queues that were woken, or queues that moved";
        return Err(format!("{count} seeds met few {few}").into());
    }
    counted(sum.seeds.into_inner(), "simulation seeds");
    counted(sum.steps.into_inner(), "simulation steps");
    Ok(())
}

fn a_seed_replays_exactly() -> Result<(), Failed> {
    let (first, _) = seeds();
    let (mut one, mut other) = (Simulator::default(), Simulator::default());
    for seed in first..first + 100 {
        // The other one has used memory from other seeds: nothing may depend on it.
        other.run(seed + 7, Driver::Right);
        let (a, b) = (one.run(seed, Driver::Right), other.run(seed, Driver::Right));
        if (a.steps, a.hash) != (b.steps, b.hash) {
            return Err(format!("seed {seed} went two ways").into());
        }
    }
    Ok(())
}

/// A watcher that sees nothing would find nothing wrong with anything.
fn a_driver_that_is_wrong_is_noticed() -> Result<(), Failed> {
    for driver in Driver::WRONG {
        let mut simulator = Simulator::default();
        let noticed = (1..=20).filter(|&seed| simulator.run(seed, driver).finding.is_some()).count();
        if noticed < 12 {
            return Err(format!("{driver:?} was noticed in {noticed} of 20 worlds").into());
        }
    }
    Ok(())
}

/// Worlds in which shares are counted.
const SHARES: u64 = 300;

fn sessions_share() -> Result<(), Failed> {
    let first = number("PORTCULLIS_SEED").unwrap_or(1);
    let count = if soak() { 20 * SHARES } else { SHARES };
    for seed in first..first + count {
        shares(seed)?;
    }
    counted(count, "simulated worlds of shares");
    Ok(())
}

/// Worlds in which files are appended to and cut, of a run by every change, and of a slice of a soak.
const FILES: u64 = 200;
const MANY_FILES: u64 = 5_000;

fn files_are_appended_to() -> Result<(), Failed> {
    let first = number("PORTCULLIS_SEED").unwrap_or(1);
    let usual = if soak() { MANY_FILES } else { FILES };
    let count = number("PORTCULLIS_SEEDS").unwrap_or(usual);
    let mut seen = Seen::default();
    for seed in first..first + count {
        files(seed, &mut seen).map_err(|why| format!("seed {seed}: {why}"))?;
    }
    let Seen { appends: [done, failed], reads, cuts } = seen;
    println!(
        "{done} appends, {failed} that failed, {reads} reads that showed something, {cuts} times that a file was cut"
    );
    if count >= FILES && [done, 4 * failed, reads, cuts].iter().any(|number| *number < count) {
        return Err("that is too little of something".into());
    }
    counted(count, "simulated worlds of files");
    Ok(())
}

fn main() -> ExitCode {
    hush();
    let mut arguments = Arguments::from_args();
    // Each uses both cores, or hardly any time.
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("a_seed_replays_exactly", a_seed_replays_exactly),
        Trial::test("a_driver_that_is_wrong_is_noticed", a_driver_that_is_wrong_is_noticed),
        Trial::test("s5_r13_in_each_turn_sessions_get_what_their_weights_say", sessions_share),
        Trial::test("s6_r7_s6_r10_appends_are_whole_and_in_their_places", files_are_appended_to),
        Trial::test("s4_r2_r3_r4_r6_r7_r11_r13_r15_s8_r2_r5_r6_r9_every_rule_holds", every_rule_holds),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}
