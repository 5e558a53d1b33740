//! The thinnest path through all layers, embedded and over the socket, on every device that needs no hardware.

use std::time::Duration;

use adapter::{Adapter, DeviceUri, Embedded, Options};
use portcullis::{Access, Session};

fn round_trip(session: &Session, keeps_data: bool) {
    session.create_volume("first", 1 << 20).unwrap();
    let volume = session.open("first", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(32).unwrap();
    let written: Vec<u8> = (0..65_536u32).map(|i| (i * 7 % 251) as u8).collect();
    queue.write_at(&volume, 4096, &written).unwrap();
    queue.flush(&volume).unwrap();
    let mut read = vec![0; written.len()];
    queue.read_at(&volume, 4096, &mut read).unwrap();
    if keeps_data {
        assert!(read == written);
    }
    drop(queue);
    volume.close().unwrap();
    session.delete_volume("first").unwrap();
}

#[test]
fn embedded_over_null() {
    round_trip(&Embedded::open("null:64M").unwrap().session().unwrap(), false);
}

#[test]
fn embedded_over_emulated_memory() {
    round_trip(&Embedded::open("emu:64M").unwrap().session().unwrap(), true);
}

#[test]
fn embedded_over_an_emulated_file_that_is_there_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let device = DeviceUri::EmuFile(path);
    let options = Options { format: adapter::Format::Blank, ..Options::new(device) };
    let adapter = Embedded::start(&options).unwrap();
    adapter.session().unwrap().create_volume("kept", 1 << 20).unwrap();
    drop(adapter);
    let adapter = Embedded::start(&Options { format: adapter::Format::Never, ..options }).unwrap();
    let session = adapter.session().unwrap();
    assert_eq!(session.volume_info("kept").unwrap().bytes, 1 << 20);
    round_trip(&session, true);
}

#[test]
fn isolated_over_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let adapter =
        Adapter::start(&Options::new(DeviceUri::EmuRam(64 << 20)), &dir.path().join("socket")).unwrap();
    let session = Session::connect(adapter.socket()).unwrap();
    round_trip(&session, true);
    // Idle long enough for the poller to fall asleep; it wakes for the next request.
    std::thread::sleep(Duration::from_millis(20));
    round_trip(&session, true);
    drop(session);
    adapter.stop().unwrap();
}
