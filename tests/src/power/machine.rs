//! The part in the guest of a test that kills the whole machine: `qemu/tests/guest/power.rs` has the other.
//!
//! The program audits what the last machine left, by the model that the host made of it, and then works until it dies. What
//! it does it tells a virtio-serial port, line by line; the host has a line before the write of it returns.

use std::fs::{File, OpenOptions, read_dir, read_to_string};

use adapter::{Embedded, Options};

use super::audit::audit;
use super::model::{Event, Model};
use super::workload::{Journal, Lines, Workload};

/// Set in the guest: the program works until it is killed, by this seed, or, for 0, only audits.
pub const WORK: &str = "PORTCULLIS_POWER_WORK";
/// Where the model is in the guest.
pub const MODEL: &str = "/data/model.json";
/// The name of the port.
pub const PORT: &str = "power";

/// Plays that part, if the environment says so; false if it does not.
pub fn play() -> bool {
    let Some(seed) = std::env::var(WORK).ok().and_then(|seed| seed.parse().ok()) else { return false };
    let device = std::env::var("PORTCULLIS_DEVICE").expect("a device");
    let adapter =
        Embedded::start(&Options::new(device.parse().expect("a device"))).expect("the adapter starts");
    let text = read_to_string(MODEL).expect("the model");
    let mut model: Model = serde_json::from_str(&text).expect("the model is one");
    let seen = audit(&adapter, &mut model).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{} volumes, {} sectors are as the host saw them", model.volumes.len(), seen.sectors);
    if seed > 0 {
        let mut journal = Lines(port());
        journal.note(&Event::Key(model.instance));
        let mut workload = Workload::new(&adapter, &mut model, &mut journal, seed).expect("there is power");
        workload.run(u64::MAX).expect("there is power");
    }
    true
}

/// The port that the host gave the name.
fn port() -> File {
    let ports = read_dir("/sys/class/virtio-ports").expect("ports").flatten();
    let named =
        |path: &std::path::Path| read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT);
    let port = ports.into_iter().find(|port| named(&port.path())).expect("a port of the name");
    let path = std::path::Path::new("/dev").join(port.file_name());
    OpenOptions::new().write(true).open(path).expect("the port opens")
}

/// What the journal of a machine that died says, added to `model`; how many lines. The last may be cut.
pub fn replay(model: &mut Model, journal: &str) -> usize {
    let whole = journal.rfind('\n').map_or("", |end| &journal[..end]);
    let lines = whole.lines().map(|line| serde_json::from_str::<Event>(line).expect("a line of the journal"));
    lines.map(|event| model.note(&event)).count()
}
