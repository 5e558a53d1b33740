//! `portcullis bench`: requests by the queue, and beside them by the kernel and by the driver alone.

mod counters;
mod kernel;
mod plot;
mod queue;
mod raw;
mod sample;
mod uring;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use adapter::DeviceUri;
use anyhow::{Context, Result, anyhow, bail, ensure};
use portcullis::Session;
use serde_json::{Map, Value, json};

use crate::arguments::{BenchOptions, Where, Workload};
use crate::connect::connect_all;
use crate::output;
use crate::units::show_size;

use kernel::KernelFile;
use queue::Scratch;
use sample::{Row, Sample};

/// The rows take turns so often, so that the machine's moods fall on all of them.
const ROUNDS: u32 = 5;

/// Before the first round each row runs for at most so long without being recorded.
const WARM_UP: Duration = Duration::from_millis(50);

/// What to do, on any path.
#[derive(Clone, Copy, Debug)]
struct Work {
    workload: Workload,
    /// Of a hundred requests of a mixed workload, how many read.
    reads: u64,
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
        Ok(Self { workload: options.workload, reads: options.reads.into(), block, blocks })
    }

    fn bytes(self) -> u64 {
        self.blocks * self.block as u64
    }

    /// `randread of 4 KiB at a time over 64 MiB`
    fn describe(self) -> String {
        let name = match self.workload {
            Workload::Mixed => format!("mixed, {} % reads,", self.reads),
            workload => workload.name().to_owned(),
        };
        format!("{name} of {} at a time over {}", show_size(self.block as u64), show_size(self.bytes()))
    }

    #[cfg(test)]
    fn test(workload: Workload) -> Self {
        Self { workload, reads: 70, block: 4096, blocks: 10 }
    }
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    /// A byte.
    at: u64,
    write: bool,
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

    fn next(&mut self) -> Place {
        let block = if self.work.workload.is_random() {
            self.random()
        } else {
            self.next = self.next.wrapping_add(1);
            self.next
        };
        let write = match self.work.workload {
            Workload::Mixed => self.random() % 100 >= self.work.reads,
            workload => workload.is_write(),
        };
        Place { at: block % self.work.blocks * self.work.block as u64, write }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

/// A way to the bytes.
trait Path: Send {
    fn name(&self) -> &'static str;

    /// Keeps `depth` requests in flight for about `time`, and waits for all of them.
    fn run(&mut self, depth: u32, time: Duration, round: u32) -> Result<Sample>;
}

/// The same way several times at once, each in a thread of its own.
struct Beside<P>(Vec<P>);

impl<P: Path> Path for Beside<P> {
    fn name(&self) -> &'static str {
        self.0.first().map_or("", Path::name)
    }

    fn run(&mut self, depth: u32, time: Duration, round: u32) -> Result<Sample> {
        if let [one] = &mut self.0[..] {
            return one.run(depth, time, round);
        }
        let clocks = sample::Clocks::start();
        let samples: Vec<Result<Sample>> = std::thread::scope(|scope| {
            let runs: Vec<_> =
                self.0.iter_mut().map(|path| scope.spawn(move || path.run(depth, time, round))).collect();
            let join = |run: std::thread::ScopedJoinHandle<'_, _>| {
                run.join().unwrap_or_else(|_| bail!("a thread panicked"))
            };
            runs.into_iter().map(join).collect()
        });
        let mut latencies = sample::histogram()?;
        for sample in samples {
            latencies.add(sample?.latencies).map_err(|error| anyhow!("adding latencies: {error}"))?;
        }
        Ok(clocks.sample(latencies))
    }
}

/// A path, and what was measured on it at each depth.
struct Entry {
    path: Box<dyn Path>,
    rows: Vec<Row>,
}

impl Entry {
    fn new(path: Box<dyn Path>, depths: &[u32], own_cpu: bool) -> Result<Self> {
        let rows = depths.iter().map(|depth| Row::new(path.name(), *depth, own_cpu));
        Ok(Self { rows: rows.collect::<Result<_>>()?, path })
    }
}

/// Bytes that no device or file system can shorten.
fn pattern(buffer: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in buffer {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
}

/// Depths of a picture that has none given.
const PICTURED: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// What is measured, in words and numbers.
struct Bench<'a> {
    options: &'a BenchOptions,
    work: Work,
    depths: Vec<u32>,
    /// Queues in all, each driven by a thread.
    lanes: u32,
    /// The time of one round of one row.
    slice: Duration,
    /// Paths that were wanted and could not be measured, and why.
    left_out: Vec<(&'static str, String)>,
    /// What the reader has to know of a path.
    notes: Vec<String>,
    kernel_file: Option<String>,
}

pub(crate) fn run(options: &BenchOptions, place: &Where) -> Result<()> {
    let mut bench = Bench::new(options)?;
    let sessions = connect_all(place, options.sessions)?;
    let session = sessions.first().context("no session")?;
    let device = session.device_info()?;
    let embedded = session.is_embedded();
    let scratch = Scratch::new(session, options, bench.work)?;
    // Whatever happens, the volume goes, and before the driver has the device alone.
    let result = bench.with_adapter(&sessions, &scratch, &device.uri);
    scratch.remove()?;
    let mut rows = result?;
    drop(sessions);
    if options.raw || options.compare {
        rows.extend(bench.alone(place.device.as_deref())?);
    }
    if let Some(file) = &options.plot {
        let uri = place.device.as_ref().unwrap_or(&device.uri);
        let subtitle =
            format!("{}; {} ({})", bench.work.describe(), output::name(uri), output::name(&device.model));
        let text = plot::svg(&plot::titles(&subtitle, ROUNDS), &rows);
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let head = if embedded { "embedded in this process" } else { "over a running adapter" };
    bench.print(&rows, place.json, &device, head)
}

impl<'a> Bench<'a> {
    fn new(options: &'a BenchOptions) -> Result<Self> {
        let work = Work::new(options)?;
        ensure!(
            options.seconds > 0.0 && options.seconds <= 86_400.0,
            "{} seconds cannot be measured: give more than 0 and at most 86400",
            options.seconds
        );
        if options.volume.is_some() && work.workload.is_write() && !options.overwrite {
            bail!(
                "{} destroys what is in the volume: say --overwrite if that is meant",
                work.workload.name()
            );
        }
        let mut depths = match &options.depth {
            depths if !depths.is_empty() => depths.clone(),
            _ if options.plot.is_some() => PICTURED.to_vec(),
            _ => vec![1, 32],
        };
        depths.sort_unstable();
        depths.dedup();
        Ok(Self {
            options,
            work,
            depths,
            lanes: options.queues * options.sessions,
            slice: Duration::from_secs_f64(options.seconds / f64::from(ROUNDS)),
            left_out: Vec::new(),
            notes: Vec::new(),
            kernel_file: None,
        })
    }

    fn deepest(&self) -> u32 {
        self.depths.last().copied().unwrap_or(1)
    }

    /// Measures our path, and beside it those that do not need the device for themselves.
    fn with_adapter(&mut self, sessions: &[Session], scratch: &Scratch, uri: &str) -> Result<Vec<Row>> {
        let mut lanes = Vec::new();
        for session in sessions {
            let volume = Arc::new(scratch.open(session, self.work)?);
            for _ in 0..self.options.queues {
                let seed = lanes.len() as u64;
                lanes.push(queue::Runner::new(session, volume.clone(), self.work, self.deepest(), seed)?);
            }
        }
        let embedded = sessions.iter().all(Session::is_embedded);
        let mut entries = vec![Entry::new(Box::new(Beside(lanes)), &self.depths, embedded)?];
        if self.options.no_kernel {
            self.leave_out("kernel", "left out by --no-kernel");
        } else {
            entries.extend(self.kernel(uri)?);
        }
        self.measure(&mut entries)?;
        Ok(entries.into_iter().flat_map(|entry| entry.rows).collect())
    }

    fn leave_out(&mut self, path: &'static str, why: impl Into<String>) {
        self.left_out.push((path, why.into()));
    }

    /// The kernel's paths: over a file of the same size on the same kind of medium, as far as that can be had.
    fn kernel(&mut self, uri: &str) -> Result<Vec<Entry>> {
        let file = match kernel_file(self.options, uri, self.work) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                self.leave_out("kernel", format!("{error:#}"));
                return Ok(Vec::new());
            }
        };
        self.kernel_file = Some(file.place().to_owned());
        self.notes.push(format!("kernel: pread and pwrite on {}, DEPTH threads", file.place()));
        let threads = kernel::Threads::new(file.clone(), self.lanes);
        let mut entries = vec![Entry::new(Box::new(threads), &self.depths, true)?];
        if self.options.compare {
            let kinds = [
                ("io_uring", uring::Kind::Data),
                ("io_uring polled", uring::Kind::Polled),
                ("io_uring nop", uring::Kind::Nop),
            ];
            for (name, kind) in kinds {
                match self.rings(&file, kind) {
                    Ok(rings) => entries.push(Entry::new(Box::new(rings), &self.depths, true)?),
                    Err(error) => self.leave_out(name, format!("{error:#}")),
                }
            }
            self.notes.push("io_uring: the same file, file and buffers registered".to_owned());
            self.notes
                .push("io_uring polled: the same without interrupts, where file and device can".to_owned());
            self.notes.push("io_uring nop: requests that do nothing, the floor of io_uring".to_owned());
        }
        Ok(entries)
    }

    fn rings(&self, file: &KernelFile, kind: uring::Kind) -> Result<Beside<uring::Uring>> {
        let rings = (0..self.lanes).map(|lane| {
            let moves = self.lanes > 1;
            uring::Uring::new(file.file(), self.work, kind, self.deepest(), u64::from(lane), moves)
        });
        Ok(Beside(rings.collect::<Result<_>>()?))
    }

    /// Measures the driver alone, now that nobody else has the device.
    fn alone(&mut self, device: Option<&str>) -> Result<Vec<Row>> {
        const NAME: &str = "driver alone";
        let Some(uri) = device else {
            self.leave_out(NAME, "it needs the device for itself: give --device instead of a socket");
            return Ok(Vec::new());
        };
        let uri: DeviceUri = uri.parse()?;
        let keeps = !uri.is_transient();
        if keeps && self.work.workload.is_write() {
            self.leave_out(NAME, "it would write over the volumes of the device");
            return Ok(Vec::new());
        }
        if self.lanes > 1 {
            self.leave_out(NAME, "it is measured for one queue of one session only");
            return Ok(Vec::new());
        }
        let path = match raw::open(&uri, self.work, self.deepest(), !keeps) {
            Ok(path) => path,
            Err(error) => {
                self.leave_out(NAME, format!("{error:#}"));
                return Ok(Vec::new());
            }
        };
        self.notes.push(format!("{NAME}: one device queue, polled, after the others; no tables, no rings"));
        let mut entries = [Entry::new(path, &self.depths, true)?];
        self.measure(&mut entries)?;
        Ok(entries.into_iter().flat_map(|entry| entry.rows).collect())
    }

    fn measure(&self, entries: &mut [Entry]) -> Result<()> {
        for entry in entries.iter_mut() {
            for &depth in &self.depths {
                entry.path.run(depth, self.slice.min(WARM_UP), ROUNDS)?;
            }
        }
        for round in 0..ROUNDS {
            for entry in entries.iter_mut() {
                for row in &mut entry.rows {
                    row.add(&entry.path.run(row.depth, self.slice, round)?)?;
                }
            }
        }
        Ok(())
    }

    fn print(&self, rows: &[Row], as_json: bool, device: &portcullis::DeviceInfo, how: &str) -> Result<()> {
        if as_json {
            let reason =
                |name: &str| self.left_out.iter().find(|(path, _)| *path == name).map(|(_, why)| why);
            let left_out: Map<String, Value> =
                self.left_out.iter().map(|(path, why)| ((*path).to_owned(), json!(why))).collect();
            return output::print_json(&json!({
                "workload": self.work.workload.name(),
                "reads_percent": (self.work.workload == Workload::Mixed).then_some(self.work.reads),
                "block_size": self.work.block,
                "bytes": self.work.bytes(),
                "rounds": ROUNDS,
                "sessions": self.options.sessions,
                "queues": self.options.queues,
                "device": { "uri": device.uri, "model": device.model },
                "kernel_file": self.kernel_file,
                "kernel_left_out": reason("kernel"),
                "left_out": left_out,
                "rows": rows.iter().map(|row| row.as_json(self.work)).collect::<Value>(),
            }));
        }
        let mut text = format!(
            "{}, {ROUNDS} rounds\nportcullis: {} ({}), {how}",
            self.work.describe(),
            output::name(&device.uri),
            output::name(&device.model)
        );
        if self.lanes > 1 {
            text.push_str(&format!(
                ", {} sessions with {} queues each, a thread for each queue",
                self.options.sessions, self.options.queues
            ));
        }
        text.push('\n');
        text.push_str(&format!("cycles and instructions: {}\n", counted(rows)));
        self.notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
        self.left_out.iter().for_each(|(path, why)| text.push_str(&format!("left out: {path}: {why}\n")));
        let cells: Vec<Vec<String>> = rows.iter().map(|row| row.as_cells(self.work)).collect();
        text.push_str(
            "IOPS is the median of the rounds, RANGE their least and greatest. Comparable only on the same medium.\n\n",
        );
        text.push_str(&output::table(&sample::HEADS, &cells));
        output::print(&text)
    }
}

/// Of a request, for each path and depth where they were counted.
fn counted(rows: &[Row]) -> String {
    let one = |row: &Row| {
        let [cycles, instructions] = row.per_request()?;
        Some(format!("{} at {}: {cycles:.0} and {instructions:.0} a request", row.path, row.depth))
    };
    let all: Vec<String> = rows.iter().filter_map(one).collect();
    if !all.is_empty() {
        return all.join("; ");
    }
    match counters::Counters::start() {
        Err(error) => format!("not counted, as the machine or the kernel gives no counters ({error})"),
        Ok(_) => "not counted, as the adapter is another process".to_owned(),
    }
}

/// The file for the kernel's paths: where the command line says, beside the image of the device, in memory as the device
/// is, or in the temporary directory.
fn kernel_file(options: &BenchOptions, uri: &str, work: Work) -> Result<KernelFile> {
    let name = format!("portcullis-bench-{}.tmp", std::process::id());
    let path = match (&options.kernel_file, uri.parse::<DeviceUri>()) {
        (Some(path), _) => path.clone(),
        (None, Ok(DeviceUri::EmuFile(image) | DeviceUri::EmuVirtioFile(image))) => image.with_file_name(name),
        (None, Ok(uri)) if uri.is_transient() => return KernelFile::in_memory(work),
        (None, _) => std::env::temp_dir().join(name),
    };
    KernelFile::create(&path, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_inside_and_aligned() {
        for workload in [Workload::Read, Workload::Randwrite, Workload::Mixed] {
            let mut places = Places::new(Work::test(workload), 3);
            let mut seen = [false; 10];
            for _ in 0..1000 {
                let Place { at, .. } = places.next();
                assert!(at.is_multiple_of(4096) && at < 10 * 4096);
                seen[usize::try_from(at / 4096).unwrap()] = true;
            }
            assert!(seen.iter().all(|seen| *seen), "{workload:?} reaches every block");
        }
    }

    #[test]
    fn a_mixed_workload_writes_as_often_as_it_says() {
        let writes = |workload, reads| {
            let mut places = Places::new(Work { reads, ..Work::test(workload) }, 5);
            (0..10_000).filter(|_| places.next().write).count()
        };
        assert_eq!([writes(Workload::Randread, 0), writes(Workload::Write, 100)], [0, 10_000]);
        assert_eq!([writes(Workload::Mixed, 0), writes(Workload::Mixed, 100)], [10_000, 0]);
        assert!((2700..3300).contains(&writes(Workload::Mixed, 70)));
    }
}
