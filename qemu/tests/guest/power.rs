//! The whole machine is killed, again and again; what was acknowledged and flushed is on the disk.
//!
//! In the guest an adapter over VFIO serves a workload (`tests::power`), which tells the host what it does before it does it.
//! QEMU gets SIGKILL at a random moment. Then an adapter on the host opens a copy of the image through the software device,
//! and the model, which knows what may be there, is compared with all that it shows. The next machine starts on the image
//! itself, finds the same through VFIO, and goes on.
//!
//! The host's page cache outlives QEMU, so whatever reached QEMU's device is kept; what a lost cache does is shown on `emu:`
//! (`tests::power::cuts`). Here dies all that is in the guest, at any point of any request.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::cell::Cell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adapter::{DeviceUri, Embedded, Format, Options};
use qemu::{Artifact, Command, Event, Exit, Guest, Machine, Nvme, Step};
use tests::power::Dice;
use tests::power::audit::audit;
use tests::power::machine::{MODEL, PORT, WORK, replay};
use tests::power::model::Model;
use tests::scale::{counted, often, seed};

const DISK: u64 = 32 << 20;
/// Bytes of the journal after which a machine dies at last.
const JOURNAL: u64 = 200_000;
/// How long a machine may live.
const LIFE: Duration = Duration::from_secs(300);

struct Bench {
    program: PathBuf,
    disk: PathBuf,
    folder: tempfile::TempDir,
    model: Model,
}

impl Bench {
    fn new() -> Self {
        qemu::install().unwrap();
        let program = qemu::build_static("tests", Artifact::Test("power")).unwrap();
        let disk = qemu::scratch_disk("power", DISK).unwrap();
        // What a former owner left.
        std::fs::write(&disk, vec![0xee; usize::try_from(DISK).unwrap()]).unwrap();
        drop(start(&disk, Format::Force));
        Self { program, disk, folder: tempfile::tempdir().unwrap(), model: Model::default() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A machine that audits the disk and then works by `seed`.
    fn guest(&self, seed: u64) -> Guest {
        std::fs::write(self.file("model"), serde_json::to_vec(&self.model).unwrap()).unwrap();
        let journal = format!("file,id=power,path={}", self.file("journal").display());
        let port = format!("virtserialport,chardev=power,name={PORT}");
        let machine = Machine::new()
            .iommu(true)
            .nvme(Nvme::new(&self.disk))
            .qemu_options(["-chardev", &journal, "-device", &port])
            .limit(LIFE);
        let work = Command::new("power")
            .env(WORK, seed.to_string())
            .env("PORTCULLIS_DEVICE", format!("vfio:{}", qemu::nvme_address(0)))
            .limit_s(LIFE.as_secs());
        Guest::new(machine)
            .program(&self.program, "power")
            .file(self.file("model"), MODEL)
            .step(Step::bind_vfio(qemu::nvme_address(0), None))
            .step(Step::run(work))
    }

    /// Starts a machine and kills it: mostly when its journal has grown to some size, sometimes earlier. The lines that it
    /// left.
    fn kill(&mut self, dice: &mut Dice) -> usize {
        let _ = std::fs::remove_file(self.file("journal"));
        let guest = self.guest(1 + dice.below(u64::MAX));
        let early = dice.chance(15).then(|| Duration::from_millis(dice.below(1500)));
        let (bytes, wait) = (dice.below(JOURNAL), Duration::from_millis(dice.below(40)));
        let journal = self.file("journal");
        let working: Cell<Option<Instant>> = Cell::new(None);
        let mut lines = Vec::new();
        let mut reached: Option<Instant> = None;
        let outcome = guest
            .run_until(
                &mut |event| match event {
                    Event::Started { step: 1 } => working.set(Some(Instant::now())),
                    Event::Output { line, .. } => lines.push(line.clone()),
                    _ => {}
                },
                &mut || match early {
                    Some(early) => working.get().is_some_and(|start| start.elapsed() >= early),
                    None => {
                        let grown = std::fs::metadata(&journal).is_ok_and(|file| file.len() >= bytes.max(1));
                        if grown && reached.is_none() {
                            reached = Some(Instant::now());
                        }
                        reached.is_some_and(|at| at.elapsed() >= wait)
                    }
                },
            )
            .unwrap();
        assert_eq!(outcome.exit, Exit::Killed, "it worked until it was killed: {outcome}{lines:#?}");
        let text = std::fs::read(&journal).unwrap_or_default();
        replay(&mut self.model, &String::from_utf8_lossy(&text))
    }

    /// What an adapter on the host finds on a copy of the disk.
    fn compare(&mut self) {
        let copy = self.file("copy.img");
        std::fs::copy(&self.disk, &copy).unwrap();
        let given = self.model.instance;
        let adapter = start(&copy, Format::Never);
        audit(&adapter, &mut self.model).unwrap_or_else(|wrong| panic!("{wrong}"));
        // The disk itself never saw this adapter.
        self.model.instance = given;
    }
}

fn start(disk: &Path, format: Format) -> Embedded {
    let options = Options { format, ..Options::new(DeviceUri::EmuFile(disk.to_owned())) };
    Embedded::start(&options).unwrap()
}

#[test]
#[ignore = "starts a guest"]
fn a_machine_that_is_killed_loses_nothing_that_was_flushed() {
    let kills = often(1, 20);
    let mut dice = Dice(seed(1));
    let mut bench = Bench::new();
    let mut lines = 0;
    for _ in 0..kills {
        lines += bench.kill(&mut dice);
        bench.compare();
    }
    // The last machine only looks, and ends in peace.
    let outcome = bench.guest(0).run(&mut |_| ()).unwrap();
    outcome.check().unwrap();
    assert!(outcome.output(1).any(|line| line.contains("are as the host saw them")), "{:?}", outcome.events);
    let durable = bench.model.durable_writes;
    let out = &mut std::io::stdout();
    writeln!(out, "{lines} events before the kills, {durable} writes of a sector acknowledged as durable")
        .unwrap();
    counted(kills, "kills of the whole machine");
}
