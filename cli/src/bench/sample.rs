//! What was measured: rounds, their medians and their spread.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::Work;
use super::counters::{Counted, Counters};

/// Latencies are recorded up to a minute, to three digits.
const LONGEST: u64 = 60_000_000_000;

/// Latencies in nanoseconds.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST, 3)?)
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LONGEST).clamp(1, LONGEST)
}

/// The clock on the wall and that of all threads of this process.
pub(super) struct Clocks {
    wall: Instant,
    cpu: Duration,
    counters: Option<Counters>,
}

impl Clocks {
    pub(super) fn start() -> Self {
        let counters = Counters::start().ok();
        Self { wall: Instant::now(), cpu: cpu(), counters }
    }

    /// What was recorded since the start.
    pub(super) fn sample(mut self, latencies: Histogram<u64>) -> Sample {
        let (took, cpu) = (self.wall.elapsed(), cpu().saturating_sub(self.cpu));
        let counted = self.counters.as_mut().and_then(|counters| counters.read().ok());
        Sample { latencies, took, cpu, counted }
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// One round on one path at one depth.
pub(super) struct Sample {
    pub(super) latencies: Histogram<u64>,
    pub(super) took: Duration,
    /// Of all threads of this process.
    pub(super) cpu: Duration,
    /// If the machine counts.
    pub(super) counted: Option<Counted>,
}

/// All rounds on one path at one depth.
pub(super) struct Row {
    pub(super) path: &'static str,
    pub(super) depth: u32,
    /// Whether all that the path costs is spent in this process: else nothing can be said of cores.
    own_cpu: bool,
    pub(super) latencies: Histogram<u64>,
    /// IOPS of each round, and the cores that it kept busy.
    rounds: Vec<(f64, f64)>,
    requests: u64,
    took: Duration,
    /// Of all rounds; `None` if one was not counted.
    counted: Option<Counted>,
}

impl Row {
    pub(super) fn new(path: &'static str, depth: u32, own_cpu: bool) -> Result<Self> {
        Ok(Self {
            path,
            depth,
            own_cpu,
            latencies: histogram()?,
            rounds: Vec::new(),
            requests: 0,
            took: Duration::ZERO,
            counted: Some(Counted::default()),
        })
    }

    pub(super) fn add(&mut self, sample: &Sample) -> Result<()> {
        let seconds = sample.took.as_secs_f64();
        let requests = float(sample.latencies.len());
        if seconds > 0.0 {
            self.rounds.push((requests / seconds, sample.cpu.as_secs_f64() / seconds));
        }
        self.requests += sample.latencies.len();
        self.took += sample.took;
        self.counted = self.counted.zip(sample.counted).map(|(sum, more)| Counted {
            cycles: sum.cycles + more.cycles,
            instructions: sum.instructions + more.instructions,
        });
        self.latencies.add(&sample.latencies).map_err(|error| anyhow!("adding latencies: {error}"))
    }

    /// Of the rounds: the least, the median and the greatest.
    pub(super) fn iops(&self) -> [f64; 3] {
        middle(self.rounds.iter().map(|(iops, _)| *iops).collect())
    }

    /// The median of the rounds' IOPS for each core kept busy.
    fn iops_per_core(&self) -> Option<f64> {
        let per_core = self.rounds.iter().filter(|(_, cores)| *cores > 0.0);
        let [_, median, _] = middle(per_core.map(|(iops, cores)| iops / cores).collect());
        (self.own_cpu && median > 0.0).then_some(median)
    }

    /// Cycles and instructions of a request, if they were counted and all of them are spent in this process.
    pub(super) fn per_request(&self) -> Option<[f64; 2]> {
        let counted = self.counted.filter(|_| self.own_cpu && self.requests > 0)?;
        Some([counted.cycles, counted.instructions].map(|sum| float(sum) / float(self.requests)))
    }

    fn megabytes(&self, work: Work) -> f64 {
        self.iops()[1] * float(work.block as u64) / 1e6
    }

    pub(super) fn microseconds(&self, quantile: f64) -> f64 {
        float(self.latencies.value_at_quantile(quantile)) / 1e3
    }

    pub(super) fn as_json(&self, work: Work) -> Value {
        let [low, median, high] = self.iops();
        json!({
            "path": self.path,
            "depth": self.depth,
            "requests": self.requests,
            "seconds": self.took.as_secs_f64(),
            "iops": median,
            "iops_low": low,
            "iops_high": high,
            "iops_rounds": self.rounds.iter().map(|(iops, _)| *iops).collect::<Vec<_>>(),
            "iops_per_core": self.iops_per_core(),
            "cycles_per_request": self.per_request().map(|[cycles, _]| cycles),
            "instructions_per_request": self.per_request().map(|[_, instructions]| instructions),
            "mb_per_s": self.megabytes(work),
            "latency_us": {
                "mean": self.latencies.mean() / 1e3,
                "p50": self.microseconds(0.5),
                "p90": self.microseconds(0.9),
                "p99": self.microseconds(0.99),
                "p99.9": self.microseconds(0.999),
                "p99.99": self.microseconds(0.9999),
                "max": self.microseconds(1.0),
            },
        })
    }

    /// The cells of [`HEADS`].
    pub(super) fn as_cells(&self, work: Work) -> Vec<String> {
        let [low, median, high] = self.iops();
        let per_core = self.iops_per_core().map_or_else(|| "-".to_owned(), |iops| format!("{iops:.0}"));
        let mut cells = vec![
            self.path.to_owned(),
            self.depth.to_string(),
            format!("{median:.0}"),
            format!("{low:.0}-{high:.0}"),
            per_core,
            format!("{:.1}", self.megabytes(work)),
        ];
        cells.extend([0.5, 0.99, 0.999, 1.0].map(|quantile| format!("{:.1}", self.microseconds(quantile))));
        cells
    }
}

/// Of the table.
pub(super) const HEADS: [&str; 10] =
    ["PATH", "DEPTH", "IOPS", "RANGE", "IOPS/CORE", "MB/S", "P50 µs", "P99", "P99.9", "MAX"];

/// The least, the median and the greatest; zeros of nothing.
fn middle(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let (Some(&least), Some(&greatest)) = (values.first(), values.last()) else {
        return [0.0; 3];
    };
    let half = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        f64::midpoint(values[half - 1], values[half])
    } else {
        values[half]
    };
    [least, median, greatest]
}

#[allow(clippy::cast_precision_loss)] // counts and nanoseconds are far below 2^52
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Workload;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= b.abs() * 1e-9
    }

    fn sample(requests: u64, nanoseconds: u64, took_ms: u64, cpu_ms: u64) -> Sample {
        let mut latencies = histogram().unwrap();
        latencies.record_n(nanoseconds, requests).unwrap();
        Sample {
            latencies,
            took: Duration::from_millis(took_ms),
            cpu: Duration::from_millis(cpu_ms),
            counted: None,
        }
    }

    #[test]
    fn the_middle_of_rounds() {
        assert_eq!(middle(vec![]), [0.0; 3]);
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
        assert_eq!(middle(vec![4.0, 1.0, 2.0, 3.0]), [1.0, 2.5, 4.0]);
    }

    #[test]
    fn one_bad_round_moves_the_range_and_not_the_median() {
        let work = Work { block: 4096, ..Work::test(Workload::Read) };
        let mut row = Row::new("portcullis", 1, true).unwrap();
        for requests in [100, 102, 10, 101, 99] {
            row.add(&sample(requests, 10_000, 500, 250)).unwrap();
        }
        let [low, median, high] = row.iops();
        assert!(near(low, 20.0) && near(median, 200.0) && near(high, 204.0), "{low} {median} {high}");
        assert!(near(row.iops_per_core().unwrap(), 400.0));
        assert!(near(row.megabytes(work), 0.8192));
        let json = row.as_json(work);
        assert_eq!(json["requests"], 412);
        let p50 = json["latency_us"]["p50"].as_f64().unwrap();
        assert!((9.9..10.1).contains(&p50), "{p50}");
        assert_eq!(row.as_cells(work).len(), HEADS.len());
    }

    #[test]
    fn instructions_of_a_request_are_told_if_all_rounds_were_counted() {
        let mut row = Row::new("portcullis", 1, true).unwrap();
        let counted = Some(Counted { cycles: 400, instructions: 1000 });
        row.add(&Sample { counted, ..sample(5, 1000, 100, 100) }).unwrap();
        row.add(&Sample { counted, ..sample(5, 1000, 100, 100) }).unwrap();
        let [cycles, instructions] = row.per_request().unwrap();
        assert!(near(cycles, 80.0) && near(instructions, 200.0));
        row.add(&sample(5, 1000, 100, 100)).unwrap();
        assert!(row.per_request().is_none());
    }

    #[test]
    fn what_cannot_be_known_is_not_told() {
        let mut row = Row::new("portcullis", 1, false).unwrap();
        assert_eq!(row.iops(), [0.0; 3]);
        row.add(&sample(5, 1000, 100, 100)).unwrap();
        assert!(row.iops_per_core().is_none());
        assert!(row.per_request().is_none());
        let mut empty = Row::new("portcullis", 1, true).unwrap();
        empty.add(&sample(0, 1, 0, 0)).unwrap();
        assert!(empty.iops_per_core().is_none());
    }
}
