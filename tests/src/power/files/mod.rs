//! Files of several sessions, under whose adapter the power is cut everywhere.
//!
//! A `workload` runs once, through the whole adapter, on a software device whose media remember every write and every flush. Then
//! each state that a cut may leave, before each flush, is made from that record and audited: the store opens, its check and that of
//! the files find nothing, and all that was acknowledged is there, as docs/files.md promises it (`history`).
//!
//! The states are audited on the store and its file system alone: what a cut leaves is on the device, and an adapter that starts
//! does with it what they do. One state in a hundred is also read through a whole adapter, which must agree.

mod audit;
mod history;
mod workload;

use std::sync::Arc;

use adapter::device::emu;
use adapter::{DeviceUri, Embedded, Format, Options};
use driver::emu::EmuConfig;

use super::record::{Cuts, Image, Recorder};
use crate::scale::{counted, number, often, seed};
use audit::{Auditor, Tree};
use workload::Workload;

/// The volume that has the files.
const VOLUME: &str = "v";
/// Bytes of the device and of the volume, with a file system that syncs by itself often, and with one that rarely does.
const SIZES: [(u64, u64); 2] = [(48 << 20, 24 << 20), (320 << 20, 256 << 20)];
/// Of so many states one is also looked at through an adapter.
const THROUGH: u64 = 100;

fn start(recorder: &Arc<Recorder>, bytes: u64, block_size: u32, format: Format) -> Embedded {
    let uri = DeviceUri::EmuRam(bytes);
    let config = EmuConfig { block_size, ..EmuConfig::new(recorder.clone()) };
    let options = Options { format, ..Options::new(uri.clone()) };
    Embedded::start_on(emu::open_with(&uri, config, 1).expect("a device"), &options).expect("an adapter")
}

/// What was done and looked at.
#[derive(Default)]
struct Tally {
    operations: u64,
    states: u64,
    boundaries: u64,
    whole: u64,
}

/// One workload, and all its cuts.
fn run(seed: u64, operations: u64, tally: &mut Tally) {
    let block_size = if seed & 1 == 0 { 512 } else { 4096 };
    let (bytes, volume) = SIZES[(seed >> 1 & 1) as usize];
    let recorder = Arc::new(Recorder::over(bytes, Image::default()));
    let adapter = start(&recorder, bytes, block_size, Format::Force);
    let session = adapter.session().unwrap();
    session.create_volume(VOLUME, volume).unwrap();
    let files = session.files().unwrap();
    files.format(VOLUME, false).unwrap();
    files.sync(VOLUME).unwrap();
    let begin = recorder.begin();
    let mut workload = Workload::new(&adapter, &recorder, block_size.into(), seed);
    workload.run(operations);
    let log = recorder.take();
    let history = std::mem::take(&mut workload.history);
    drop((workload, files, session, adapter));
    let mut auditor = Auditor::new(&history, bytes, block_size.ilog2() as u8);
    let mut cuts = Cuts::new(begin, block_size as usize, seed);
    let mut looked = 0;
    cuts.every(&log, |position, image| {
        looked += 1;
        let tree = auditor.audit(position, image.clone()).unwrap_or_else(|wrong| {
            panic!("seed {seed}, a cut after step {position}, state {looked}: {wrong}")
        });
        if looked % THROUGH == 0 {
            through_adapter(image, bytes, block_size, &tree);
        }
    });
    tally.operations += history.operations;
    tally.states += cuts.states;
    tally.boundaries += cuts.boundaries;
    tally.whole += cuts.whole;
}

/// An adapter that starts on what a cut left shows the same.
fn through_adapter(image: Image, bytes: u64, block_size: u32, tree: &Tree) {
    let recorder = Arc::new(Recorder::over(bytes, image));
    let adapter = start(&recorder, bytes, block_size, Format::Never);
    let files = adapter.session().unwrap().files().unwrap();
    let report = files.check(VOLUME, false).unwrap();
    assert_eq!((report.found, report.findings), (0, vec![]));
    for (path, found) in tree {
        let Some(content) = &found.content else { continue };
        let file = files.open(format!("{VOLUME}:{path}")).unwrap();
        let mut read = vec![0; content.len() + 1];
        assert_eq!(file.read_at(&mut read, 0).unwrap(), content.len(), "the length of {path}");
        assert!(read[..content.len()] == content[..], "{path}");
    }
}

/// Many workloads, one after the other.
pub fn many() {
    let (first, runs) = (seed(1), number("PORTCULLIS_SEEDS").unwrap_or_else(|| often(1, 4)));
    let operations = often(2_000, 3_000);
    let mut tally = Tally::default();
    for seed in first..first + runs {
        run(seed, operations, &mut tally);
    }
    let Tally { operations, states, boundaries, whole } = tally;
    println!(
        "the power was cut before all {boundaries} flushes of {operations} operations on files; before {whole} of them in \
         every way, before the others in 32"
    );
    counted(operations, "operations on files with the power cut under them");
    counted(states, "states of files after a power cut under an adapter");
}
