//! What is measured in a QEMU guest: NVMe by the kernel's driver and by ours, and how often ours rings.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qemu::{Artifact, Command, Event, Guest, Machine, Nvme, StaticBuild, Step, Stream};

use super::figure::{Figure, Side};
use crate::tree;

/// Bytes of each disk.
const DISK: u64 = 1 << 30;
/// Of one program in the guest, in seconds.
const LIMIT_S: u64 = 1500;
const QUICK_LIMIT_S: u64 = 300;

fn limit(quick: bool) -> u64 {
    if quick { QUICK_LIMIT_S } else { LIMIT_S }
}

/// Two controllers: one without a medium, one on a file in the host's memory.
fn machine(file: &PathBuf, quick: bool) -> Machine {
    let null = Nvme::without_medium(DISK).serial("null");
    Machine::new()
        .memory_mb(1024)
        .cpu("max")
        .nvme(null)
        .nvme(Nvme::new(file).serial("file"))
        .limit(Duration::from_secs(2 * limit(quick) + 60))
}

fn guest(machine: Machine) -> Result<Guest> {
    qemu::install().context("there is no guest to be had (--no-guest does without)")?;
    let program = StaticBuild::new("benches", Artifact::Bin("measure")).release().build()?;
    // Polled completions need queues that raise no interrupts.
    Ok(Guest::new(machine).module("nvme", "poll_queues=1").program(program, "measure"))
}

fn measure(words: &[&str], quick: bool) -> Step {
    let command = Command::new("measure").args(words.iter().copied()).args(quick.then_some("--quick"));
    Step::run(command.memlock(1 << 30).limit_s(limit(quick)))
}

/// Runs it; the lines that its programs printed.
fn run(guest: &Guest) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let outcome = guest.run(&mut |event| match event {
        Event::Output { stream: Stream::Out, line, .. } => lines.push(line.clone()),
        Event::Output { stream: Stream::Err, line, .. } => eprintln!("           guest: {line}"),
        _ => {}
    })?;
    outcome.check()?;
    Ok(lines)
}

/// A file of zeros in the host's memory, gone when dropped.
struct InMemory(PathBuf);

impl InMemory {
    fn new() -> Result<Self> {
        let path = PathBuf::from(format!("/dev/shm/portcullis-bench-{}.img", std::process::id()));
        let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
        file.set_len(DISK)?;
        Ok(Self(path))
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Every figure of both controllers.
pub(crate) fn compare(quick: bool) -> Result<Vec<Figure>> {
    let file = InMemory::new()?;
    let guest = guest(machine(&file.0, quick))?
        .step(measure(&["guest", "null", &qemu::nvme_address(0)], quick))
        .step(measure(&["guest", "file", &qemu::nvme_address(1)], quick));
    let lines = run(&guest)?;
    let figures: Vec<Figure> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    ensure!(!figures.is_empty(), "the guest measured nothing: {lines:?}");
    Ok(figures)
}

/// Writes to doorbells for each request of the embedded adapter with 32 in flight.
pub(crate) fn doorbells(quick: bool) -> Result<Figure> {
    let file = InMemory::new()?;
    let folder = tree::target_dir().join("xtask").join("bench");
    fs::create_dir_all(&folder)?;
    let trace = folder.join("doorbells.trace");
    let machine = machine(&file.0, quick).qemu_options([
        "-trace".to_owned(),
        "enable=pci_nvme_mmio_doorbell_*".to_owned(),
        "-D".to_owned(),
        trace.display().to_string(),
    ]);
    let guest = guest(machine)?.step(measure(&["doorbells", &qemu::nvme_address(0)], quick));
    let lines = run(&guest)?;
    let requests = lines.iter().find_map(|line| line.strip_prefix("requests ")?.parse::<u32>().ok());
    let requests = requests.with_context(|| format!("the guest did not say how many requests: {lines:?}"))?;
    ensure!(requests > 0, "the guest made no requests");
    let told = fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
    let rung = told.lines().filter(|line| is_of_data(line)).count();
    let _ = fs::remove_file(&trace);
    let each = f64::from(u32::try_from(rung)?) / f64::from(requests);
    Ok(Figure {
        name: "doorbells".into(),
        unit: "writes/request".into(),
        sides: vec![Side { name: "embedded".into(), rounds: vec![each] }],
        notes: vec![format!("{rung} doorbell writes for {requests} requests")],
        ..Figure::default()
    })
}

/// Whether a line of QEMU's trace tells of a doorbell that is not the admin queue's.
fn is_of_data(line: &str) -> bool {
    let Some((_, rest)) = line.split_once("pci_nvme_mmio_doorbell_") else { return false };
    let mut words = rest.split_whitespace();
    words.any(|word| word == "sqid" || word == "cqid") && words.next().is_some_and(|number| number != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_of_the_admin_queue_do_not_count() {
        let count = |lines: &[&str]| lines.iter().filter(|line| is_of_data(line)).count();
        let lines = [
            "pci_nvme_mmio_doorbell_sq sqid 1 new_tail 12",
            "1234@1.5:pci_nvme_mmio_doorbell_cq cqid 2 new_head 3",
            "pci_nvme_mmio_doorbell_sq sqid 0 new_tail 4",
            "pci_nvme_mmio_write addr 0x1000 data 0x1 size 4",
        ];
        assert_eq!(count(&lines), 2);
    }
}
