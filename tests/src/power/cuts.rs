//! The power of the software device is cut, again and again, and an adapter is started on what is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use adapter::device::emu;
use adapter::{DeviceUri, Embedded, Format, Options, StartError};
use driver::block::Geometry;
use driver::dice::Dice;
use driver::disk::{Disk, DiskError};
use driver::emu::EmuConfig;
use portcullis::{Access, Status};

use super::audit::audit;
use super::model::{Event, Model};
use super::supply::Supply;
use super::workload::{Journal, Workload};
use crate::scale::{counted, often, seed};

/// Bytes of the device.
const DEVICE: u64 = 32 << 20;
/// Cuts of one device, one after the other.
const CUTS: u64 = 8;
/// Things done before the power goes in any case.
const STEPS: u64 = 500;

/// Keeps no notes: the model outlives the machine by itself.
struct Watch(Arc<Supply>);

impl Journal for Watch {
    fn note(&mut self, _event: &Event) {}

    fn is_off(&self) -> bool {
        self.0.is_off()
    }
}

fn start(supply: &Arc<Supply>, block_size: u32, format: Format) -> Result<Embedded, StartError> {
    let uri = DeviceUri::EmuRam(DEVICE);
    let config = EmuConfig { block_size, ..EmuConfig::new(supply.clone()) };
    let options = Options { format, ..Options::new(uri.clone()) };
    Embedded::start_on(emu::open_with(&uri, config, 1)?, &options)
}

/// What a device went through.
#[derive(Default, Debug)]
struct Tally {
    cuts: u64,
    starting: u64,
    done: u64,
    sectors: u64,
    lost: u64,
    durable: u64,
}

/// One device, cut `cuts` times.
fn device(seed: u64, cuts: u64, tally: &mut Tally) {
    let mut dice = Dice(seed);
    let block_size = if seed & 1 == 0 { 512 } else { 4096 };
    let supply = Arc::new(Supply::new(DEVICE, seed & 2 == 0));
    drop(start(&supply, block_size, Format::Force).expect("an adapter on a new device"));
    let mut model = Model::default();
    for cut in 0..cuts {
        let operations = if dice.chance(20) { dice.below(60) } else { dice.below(1500) };
        supply.go_off_after(operations, dice.number());
        // In a part of the cuts the power goes before the adapter has started.
        match start(&supply, block_size, Format::Never) {
            Ok(adapter) => {
                let mut watch = Watch(supply.clone());
                let worked = Workload::new(&adapter, &mut model, &mut watch, dice.number())
                    .and_then(|mut workload| workload.run(STEPS));
                assert!(worked.is_ok() || supply.is_off());
                supply.go_off();
            }
            Err(error) => {
                assert!(supply.is_off(), "seed {seed}, cut {cut}: {error}");
                tally.starting += 1;
            }
        }
        supply.restore(dice.number());
        let found = start(&supply, block_size, Format::Never)
            .map_err(|error| error.to_string())
            .and_then(|adapter| audit(&adapter, &mut model));
        match found {
            Ok(seen) => {
                tally.cuts += 1;
                tally.done += u64::from(seen.done);
                tally.sectors += seen.sectors;
            }
            Err(error) => panic!("seed {seed}, cut {cut}: {error}"),
        }
    }
    tally.lost += supply.lost();
    tally.durable += model.durable_writes;
}

/// Many devices.
pub fn many() {
    let cuts = often(16, 200);
    let seed = seed(1);
    let mut tally = Tally::default();
    for device_number in 0..cuts / CUTS {
        device((seed << 16) + device_number, CUTS, &mut tally);
    }
    assert!(
        tally.lost > cuts && tally.durable > cuts,
        "cuts took something, and something was safe: {tally:?}"
    );
    let Tally { cuts, starting, done, sectors, lost, durable } = tally;
    println!(
        "{sectors} sectors looked at, {durable} writes of a sector acknowledged as durable, {lost} sectors taken back by \
         cuts, {starting} cuts while starting, {done} changes done without being acknowledged"
    );
    counted(cuts, "power cuts on emu");
}

/// A disk that panics when it is told to, as if the store or the driver beneath had a bug.
struct Fragile {
    disk: Box<dyn Disk>,
    panics: Arc<AtomicBool>,
}

impl Fragile {
    fn whole(&mut self) -> &mut dyn Disk {
        assert!(!self.panics.load(Ordering::SeqCst), "planted on purpose");
        &mut *self.disk
    }
}

impl Disk for Fragile {
    fn geometry(&self) -> &Geometry {
        self.disk.geometry()
    }

    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        self.whole().read(lba, data)
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.whole().write(lba, data)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.whole().flush()
    }

    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.whole().write_zeroes(lba, blocks)
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.whole().deallocate(lba, blocks)
    }
}

/// What `ask` returns, on a thread of its own, so that a call without an end ends the test.
fn answered<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(told.send(ask())));
    answer.recv_timeout(super::PATIENCE).unwrap_or_else(|_| {
        // Not by a panic: what would be dropped on its way waits for the same answer.
        eprintln!("the adapter does not answer");
        std::process::exit(101)
    })
}

/// A panic in the store, inside the database (a rename) or in its own code (the zeroing of a new volume), costs changes of
/// this device's volumes and nothing else: volumes that are open go on, and the error says what happened.
pub fn panics() {
    for in_database in [true, false] {
        let uri = DeviceUri::EmuRam(DEVICE);
        let supply = Arc::new(Supply::new(DEVICE, false));
        drop(start(&supply, 512, Format::Force).unwrap());
        let panics = Arc::new(AtomicBool::new(false));
        let mut opened = emu::open_with(&uri, EmuConfig::new(supply.clone()), 1).unwrap();
        opened.disk = Box::new(Fragile { disk: opened.disk, panics: panics.clone() });
        let options = Options { format: Format::Never, ..Options::new(uri) };
        let adapter = Embedded::start_on(opened, &options).unwrap();
        let session = adapter.session().unwrap();
        session.create_volume("v", 1 << 20).unwrap();
        let volume = session.open("v", Access::READ_WRITE).unwrap();
        let mut queue = session.queue(8).unwrap();

        panics.store(true, Ordering::SeqCst);
        let broken = || {
            let session = session.clone();
            let ask = move || {
                if in_database {
                    session.rename_volume("v", "w")
                } else {
                    session.create_volume("w", 1 << 20).map(drop)
                }
            };
            answered(ask).unwrap_err()
        };
        let error = broken();
        assert_eq!(error.status(), Some(Status::E_STORE));
        let text = error.to_string();
        assert!(text.contains("planted on purpose") && text.contains("opened again"), "{text}");
        panics.store(false, Ordering::SeqCst);
        assert_eq!(broken().to_string(), text, "it stays so, and answers");

        queue.write_at(&volume, 4096, &[7; 4096]).unwrap();
        queue.flush(&volume).unwrap();
        let again = session.open("v", Access::READ).unwrap();
        let mut back = [0; 8192];
        queue.read_at(&again, 0, &mut back).unwrap();
        assert!(back[..4096] == [0; 4096] && back[4096..] == [7; 4096], "open volumes go on");
        drop((volume, again, queue, session, adapter));
        let adapter = start(&supply, 512, Format::Never).unwrap();
        let names: Vec<String> =
            adapter.session().unwrap().volumes().map(|volume| volume.unwrap().name).collect();
        assert_eq!(names, ["v"], "nothing was changed");
    }
}
