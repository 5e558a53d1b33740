//! A session that keeps its queue full, and another beside it that has one request at a time, both driven by one thread.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::figure::Figure;
use crate::path::{Client, DEEPEST};
use crate::process::Served;
use crate::rounds::{Cores, Plan, interleave};

const DEVICE: &str = "null:1G";
const VOLUME: u64 = 64 << 20;
/// Completions of the competitor that are taken between two looks at the quiet session's.
const BETWEEN: u32 = 8;

/// The 99th percentile of what the quiet session waits for a request: beside a flood, and beside a competitor that has one
/// request at a time, too.
///
/// # Errors
/// The adapter's.
pub fn flood(name: &str, plan: Plan) -> Result<Figure> {
    let cores = Cores::two()?;
    let served = Served::start(DEVICE, cores.other)?;
    let client = || -> Result<Client> { Client::unwritten(served.session()?, VOLUME) };
    let quiet = std::cell::RefCell::new(client()?);
    let (mut flooding, mut equal) = (client()?, client()?);
    let mut figure = Figure::new(name, "ns at p99");
    figure.note(format!("the flood has {DEEPEST} in flight; both sessions are driven by one thread"));
    interleave(
        &mut figure,
        plan,
        cores,
        &mut [
            (
                "beside a flood",
                Box::new(|time| beside(&mut quiet.borrow_mut(), &mut flooding, DEEPEST, time)),
            ),
            ("beside one at a time", Box::new(|time| beside(&mut quiet.borrow_mut(), &mut equal, 1, time))),
        ],
    )?;
    quiet.into_inner().end()?;
    flooding.end()?;
    equal.end()?;
    Ok(figure)
}

fn beside(quiet: &mut Client, other: &mut Client, depth: u32, time: Duration) -> Result<f64> {
    let mut took = Vec::with_capacity(1 << 16);
    other.start(depth)?;
    let began = Instant::now();
    while began.elapsed() < time || took.is_empty() {
        let sent = Instant::now();
        quiet.start(1)?;
        while quiet.take(1)? == 0 {
            other.again(BETWEEN)?;
        }
        took.push(sent.elapsed());
    }
    other.drain()?;
    took.sort_unstable();
    let p99 = took[(took.len() - 1) * 99 / 100];
    #[expect(clippy::cast_precision_loss, reason = "seconds at most")]
    let nanoseconds = p99.as_nanos() as f64;
    Ok(nanoseconds)
}
