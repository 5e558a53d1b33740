//! Over `null:`, which ends everything and moves nothing: what the path itself costs, beside `io_uring` requests that do
//! nothing and beside a bare ring.

use std::time::{Duration, Instant};

use adapter::Embedded;
use anyhow::Result;

use crate::figure::{Figure, median};
use crate::path::Client;
use crate::process::Served;
use crate::ring::Pair;
use crate::rounds::{Cores, Plan, interleave};
use crate::uring::{self, Ask};

const DEVICE: &str = "null:1G";
const VOLUME: u64 = 128 << 20;

/// The adapter in this process, `depth` requests there and back, beside as many NOPs of `io_uring`: all on one processor.
///
/// # Errors
/// The adapter's, the kernel's.
pub fn embedded(name: &str, depth: u32, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let adapter = Embedded::open(DEVICE)?;
    let mut client = Client::new(adapter.session()?, VOLUME)?;
    let mut ring = uring::fastest(depth)?;
    let mut figure = Figure::new(name, "ns/request");
    figure.note(format!("io_uring: {}", ring.describe()));
    interleave(
        &mut figure,
        plan,
        cores,
        &mut [
            ("embedded", Box::new(|time: Duration| client.batches(depth, time))),
            ("io_uring nop", Box::new(|time| ring.keep(Ask::Nop, depth, time))),
        ],
    )?;
    client.end()?;
    Ok(figure)
}

/// Requests of one burst of the bare ring: about a millisecond.
const BURST: u64 = 10_000;

/// The adapter in another process on another processor, `depth` requests in flight, beside a bare ring between two processes
/// on the same processors and beside NOPs of `io_uring`.
///
/// # Errors
/// The adapter's, the kernel's.
pub fn isolated(name: &str, depth: u32, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let served = Served::start(DEVICE, cores.other)?;
    let mut client = Client::new(served.session()?, VOLUME)?;
    let mut nops = uring::fastest(depth)?;
    let mut pair = Pair::start(cores.here, cores.other)?;
    let mut figure = Figure::new(name, "ns/request");
    figure.note(format!("io_uring: {}", nops.describe()));
    interleave(
        &mut figure,
        plan,
        cores,
        &mut [
            ("isolated", Box::new(|time: Duration| client.keep(depth, time))),
            ("bare ring", Box::new(|time| Ok(bare(&mut pair, depth, time)))),
            ("io_uring nop", Box::new(|time| nops.keep(Ask::Nop, depth, time))),
        ],
    )?;
    drop(pair);
    client.end()?;
    Ok(figure)
}

/// The median of bursts that fill about that time.
fn bare(pair: &mut Pair, depth: u32, time: Duration) -> f64 {
    let until = Instant::now() + time;
    let mut bursts = vec![pair.bare(depth, BURST)];
    while Instant::now() < until {
        bursts.push(pair.bare(depth, BURST));
    }
    median(&bursts)
}
