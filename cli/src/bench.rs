//! `portcullis bench`: requests by the queue, and beside them by the kernel.

mod kernel;
mod queue;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use portcullis::Session;
use serde_json::{Value, json};

use crate::arguments::{BenchOptions, Where, Workload};
use crate::connect::connect;
use crate::output;
use crate::units::show_size;

use kernel::KernelFile;
use queue::Scratch;

/// The rows take turns so often, so that the machine's moods fall on all of them.
const ROUNDS: u32 = 3;
/// Latencies are recorded up to a minute, to three digits.
const LONGEST: u64 = 60_000_000_000;

/// What to do, for either path.
#[derive(Clone, Copy, Debug)]
struct Work {
    workload: Workload,
    /// Bytes of one request.
    block: usize,
    /// Whole blocks to work on.
    blocks: u64,
}

impl Work {
    fn new(options: &BenchOptions) -> Result<Self> {
        let block = usize::try_from(options.block_size).unwrap_or(usize::MAX);
        ensure!(
            block.is_multiple_of(512) && (512..=16 << 20).contains(&block),
            "a block size of {} bytes is not possible: give a multiple of 512 up to 16M",
            options.block_size
        );
        let blocks = options.size / options.block_size;
        ensure!(blocks > 0, "{} bytes to work on are less than one block of {block}", options.size);
        Ok(Self { workload: options.workload, block, blocks })
    }

    fn bytes(self) -> u64 {
        self.blocks * self.block as u64
    }
}

/// Where the next request goes: in order, or at random (xorshift64*, Vigna 2016, "An experimental exploration of
/// Marsaglia's xorshift generators, scrambled").
struct Places {
    work: Work,
    next: u64,
    state: u64,
}

impl Places {
    fn new(work: Work, seed: u64) -> Self {
        let start = if work.workload.is_random() { 0 } else { seed.wrapping_mul(work.blocks / 8 + 1) };
        Self { work, next: start, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn next(&mut self) -> u64 {
        let block = if self.work.workload.is_random() {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
        } else {
            self.next = self.next.wrapping_add(1);
            self.next
        };
        block % self.work.blocks * self.work.block as u64
    }
}

/// What was measured on one path at one depth.
struct Tally {
    path: &'static str,
    depth: u32,
    latencies: Histogram<u64>,
    took: Duration,
}

impl Tally {
    fn new(path: &'static str, depth: u32) -> Result<Self> {
        Ok(Self { path, depth, latencies: histogram()?, took: Duration::ZERO })
    }

    fn iops(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // counts are far below 2^52
        let requests = self.latencies.len() as f64;
        if self.took.is_zero() { 0.0 } else { requests / self.took.as_secs_f64() }
    }

    #[allow(clippy::cast_precision_loss)] // as above
    fn megabytes(&self, work: Work) -> f64 {
        self.iops() * work.block as f64 / 1e6
    }

    #[allow(clippy::cast_precision_loss)] // at most LONGEST
    fn microseconds(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }

    fn as_json(&self, work: Work) -> Value {
        json!({
            "path": self.path,
            "depth": self.depth,
            "requests": self.latencies.len(),
            "seconds": self.took.as_secs_f64(),
            "iops": self.iops(),
            "mb_per_s": self.megabytes(work),
            "latency_us": {
                "mean": self.latencies.mean() / 1e3,
                "p50": self.microseconds(0.5),
                "p90": self.microseconds(0.9),
                "p99": self.microseconds(0.99),
                "p99.9": self.microseconds(0.999),
                "max": self.microseconds(1.0),
            },
        })
    }

    fn as_row(&self, work: Work) -> Vec<String> {
        let mut row = vec![
            self.path.to_owned(),
            self.depth.to_string(),
            format!("{:.0}", self.iops()),
            format!("{:.1}", self.megabytes(work)),
            format!("{:.1}", self.latencies.mean() / 1e3),
        ];
        row.extend([0.5, 0.99, 0.999, 1.0].map(|quantile| format!("{:.1}", self.microseconds(quantile))));
        row
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST, 3)?)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LONGEST).clamp(1, LONGEST)
}

/// Bytes that no device or file system can shorten.
fn pattern(buffer: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in buffer {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
}

pub(crate) fn run(options: &BenchOptions, place: &Where) -> Result<()> {
    let work = Work::new(options)?;
    ensure!(
        options.seconds > 0.0 && options.seconds <= 86_400.0,
        "{} seconds cannot be measured: give more than 0 and at most 86400",
        options.seconds
    );
    if options.volume.is_some() && work.workload.is_write() && !options.overwrite {
        bail!("{} destroys what is in the volume: say --overwrite if that is meant", work.workload.name());
    }
    let session = connect(place)?;
    let device = session.device_info()?;
    let scratch = Scratch::new(&session, options, work)?;
    let kernel = if options.no_kernel {
        Err("left out by --no-kernel".to_owned())
    } else {
        kernel_file(options, &device.uri, work)
    };
    let result = measure(&session, &scratch, kernel.as_ref().ok(), options, work);
    scratch.remove()?;
    let rows = result?;

    if place.json {
        return output::print_json(&json!({
            "workload": work.workload.name(),
            "block_size": work.block,
            "bytes": work.bytes(),
            "device": { "uri": device.uri, "model": device.model },
            "kernel_file": kernel.as_ref().ok().map(|file| file.path().display().to_string()),
            "kernel_left_out": kernel.as_ref().err(),
            "rows": rows.iter().map(|row| row.as_json(work)).collect::<Value>(),
        }));
    }
    let heads = ["PATH", "DEPTH", "IOPS", "MB/S", "MEAN µs", "P50", "P99", "P99.9", "MAX"];
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.as_row(work)).collect();
    let kernel = match &kernel {
        Ok(file) => {
            format!("kernel: pread and pwrite with O_DIRECT on {}, DEPTH threads", file.path().display())
        }
        Err(reason) => format!("kernel: {reason}"),
    };
    output::print(&format!(
        "{} of {} at a time over {}\nportcullis: {} ({})\n{kernel}\nComparable only where both lie on the same kind of \
         medium.\n\n{}",
        work.workload.name(),
        show_size(work.block as u64),
        show_size(work.bytes()),
        output::name(&device.uri),
        output::name(&device.model),
        output::table(&heads, &cells)
    ))
}

/// Makes the kernel's file: where the command line says, beside the image of the device, or in the temporary directory.
fn kernel_file(options: &BenchOptions, uri: &str, work: Work) -> Result<KernelFile, String> {
    let name = format!("portcullis-bench-{}.tmp", std::process::id());
    let beside = uri.strip_prefix("emu:").map(std::path::Path::new).filter(|path| path.is_file());
    let path = match (&options.kernel_file, beside) {
        (Some(path), _) => path.clone(),
        (None, Some(image)) => image.with_file_name(name),
        (None, None) => std::env::temp_dir().join(name),
    };
    KernelFile::create(&path, work).map_err(|error| format!("left out: {error:#}"))
}

fn measure(
    session: &Session,
    scratch: &Scratch,
    kernel: Option<&KernelFile>,
    options: &BenchOptions,
    work: Work,
) -> Result<Vec<Tally>> {
    let depths = if options.depth == 1 { vec![1] } else { vec![1, options.depth] };
    let slice = Duration::from_secs_f64(options.seconds / f64::from(ROUNDS));
    let mut ours = Vec::new();
    for depth in &depths {
        ours.push((queue::Runner::new(session, scratch, work, *depth)?, Tally::new("portcullis", *depth)?));
    }
    let mut theirs = Vec::new();
    for depth in depths.iter().filter(|_| kernel.is_some()) {
        theirs.push(Tally::new("kernel", *depth)?);
    }
    for round in 0..ROUNDS {
        for (runner, tally) in &mut ours {
            runner.run(scratch, slice, tally)?;
        }
        for (tally, file) in theirs.iter_mut().zip(kernel.iter().cycle()) {
            file.run(slice, round, tally)?;
        }
    }
    Ok(ours.into_iter().map(|(_, tally)| tally).chain(theirs).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(workload: Workload) -> Work {
        Work { workload, block: 4096, blocks: 10 }
    }

    #[test]
    fn places_stay_inside_and_aligned() {
        for workload in [Workload::Read, Workload::Randwrite] {
            let mut places = Places::new(work(workload), 3);
            let mut seen = [false; 10];
            for _ in 0..1000 {
                let at = places.next();
                assert!(at.is_multiple_of(4096) && at < 10 * 4096);
                seen[usize::try_from(at / 4096).unwrap()] = true;
            }
            assert!(seen.iter().all(|seen| *seen), "{workload:?} reaches every block");
        }
    }

    #[test]
    fn a_tally_counts() {
        let mut tally = Tally::new("portcullis", 1).unwrap();
        tally.latencies.record_n(10_000, 100).unwrap();
        tally.took = Duration::from_millis(500);
        assert!((tally.iops() - 200.0).abs() < 1e-9);
        assert!((tally.megabytes(work(Workload::Read)) - 0.8192).abs() < 1e-9);
        let p50 = tally.as_json(work(Workload::Read))["latency_us"]["p50"].as_f64().unwrap();
        assert!((9.9..10.1).contains(&p50), "{p50}");
        assert!(Tally::new("kernel", 1).unwrap().iops() < 1e-9);
    }
}
