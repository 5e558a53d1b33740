//! Volumes and their access lists: who may do what, what a change does to grants that are open, and that nobody reads what
//! a former owner wrote.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use portcullis::wire::layout::opcode;
use portcullis::{Access, Session, Status, Subject};

use super::{Case, Client, Rig, VOLUME, pattern, somebody, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "zeroed_before_addressable", run: zeroed },
    Case { name: "access_lists_decide_who_opens", run: access_lists },
    Case { name: "s4_r10_rights_taken_away_end_running_grants", run: taken_away },
    Case { name: "s6_r8_s6_r13_growing_keeps_keys_and_data", run: growing },
    Case { name: "s6_r12_shrinking_and_deleting_cut_off", run: shrinking },
    Case { name: "s6_r5_revocation_under_load_on_two_pollers", run: two_pollers },
    Case { name: "renaming_keeps_grants", run: renaming },
    Case { name: "s8_r8_a_volume_in_pieces_is_one", run: pieces },
    Case { name: "s6_r3_more_than_there_is_changes_nothing", run: too_much },
    Case { name: "s6_r14_others_may_not_manage", run: strangers },
    Case { name: "a_restart_keeps_volumes_and_makes_old_keys_stale", run: restart },
];

fn write_all(session: &Session, name: &str, seed: u32) -> Vec<u8> {
    let volume = session.open(name, Access::READ_WRITE).unwrap();
    let data = pattern(seed, volume.size() as usize);
    let mut queue = session.queue(16).unwrap();
    queue.write_at(&volume, 0, &data).unwrap();
    queue.flush(&volume).unwrap();
    data
}

fn read_all(session: &Session, name: &str) -> Vec<u8> {
    let volume = session.open(name, Access::READ).unwrap();
    let mut data = vec![0xee; volume.size() as usize];
    session.queue(16).unwrap().read_at(&volume, 0, &mut data).unwrap();
    data
}

fn zeroed(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    for round in 0..3 {
        session.create_volume("v", VOLUME).unwrap();
        assert!(read_all(&session, "v").iter().all(|&b| b == 0), "round {round}");
        write_all(&session, "v", round);
        session.delete_volume("v").unwrap();
    }
    session.create_volume("small", VOLUME / 2).unwrap();
    write_all(&session, "small", 9);
    session.resize_volume("small", VOLUME / 4).unwrap();
    session.resize_volume("small", VOLUME).unwrap();
    let data = read_all(&session, "small");
    assert!(data[..VOLUME as usize / 4] == pattern(9, VOLUME as usize / 2)[..VOLUME as usize / 4]);
    assert!(data[VOLUME as usize / 4..].iter().all(|&b| b == 0), "what was cut off and came back is zero");
}

fn access_lists(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = adapter.session().unwrap();
    owner.create_volume("v", VOLUME).unwrap();
    let mut in_group = somebody(2002);
    in_group.groups = vec![77];
    let opens = |who: &wire::socket::Credentials, access| {
        adapter.session_as(who.clone()).unwrap().open("v", access).err().and_then(|e| e.status())
    };
    let alice = somebody(2001);
    assert_eq!(opens(&alice, Access::READ), Some(Status::E_NO_RESOURCE), "whether it exists is not told");
    owner.set_access("v", Subject::User(2001), Access::READ).unwrap();
    assert_eq!(opens(&alice, Access::READ), None);
    assert_eq!(opens(&alice, Access::READ_WRITE), Some(Status::E_AUTH));
    assert_eq!(opens(&in_group, Access::READ), Some(Status::E_NO_RESOURCE));
    owner.set_access("v", Subject::Group(77), Access::READ_WRITE).unwrap();
    assert_eq!(opens(&in_group, Access::READ_WRITE), None);
    assert_eq!(opens(&in_group, Access::TRIM), Some(Status::E_AUTH));
    owner.set_access("v", Subject::Everyone, Access::TRIM).unwrap();
    assert_eq!(opens(&in_group, Access::ALL), None, "entries add up");
    assert_eq!(opens(&somebody(3000), Access::TRIM), None);
    owner.set_access("v", Subject::Everyone, Access::NONE).unwrap();
    owner.set_access("v", Subject::User(2001), Access::NONE).unwrap();
    assert_eq!(opens(&alice, Access::READ), Some(Status::E_NO_RESOURCE));
    assert!(adapter.session_as(somebody(65_534)).is_err(), "the overflow user is nobody in particular");
}

fn taken_away(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = adapter.session().unwrap();
    owner.create_volume("v", VOLUME).unwrap();
    owner.set_access("v", Subject::User(2001), Access::READ_WRITE).unwrap();
    let mut writer = Client::open(adapter.session_as(somebody(2001)).unwrap(), "v", Access::READ_WRITE);
    let mut reader = Client::open(adapter.session_as(somebody(2001)).unwrap(), "v", Access::READ);
    assert_eq!(writer.status(&writer.request(opcode::WRITE)), Status::OK);
    let revoked = owner.set_access("v", Subject::User(2001), Access::READ).unwrap();
    assert_eq!((revoked.grants, revoked.draining), (1, 0), "only the grant that held the lost right ends");
    assert_eq!(writer.status(&writer.request(opcode::WRITE)), Status::E_ENTRY_INVALID);
    assert_eq!(writer.status(&writer.request(opcode::READ)), Status::E_ENTRY_INVALID);
    assert_eq!(reader.status(&reader.request(opcode::READ)), Status::OK);
}

fn growing(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let mut client = Client::create(session.clone(), "v");
    session.create_volume("behind", VOLUME).unwrap();
    let data = write_all(&session, "v", 5);
    let mut beyond = client.request(opcode::READ);
    beyond.offset = VOLUME;
    assert_eq!(client.status(&beyond), Status::E_BOUNDS);
    let error = session.resize_volume("v", 1 << 40).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_NO_RESOURCES));
    assert_eq!(client.status(&beyond), Status::E_BOUNDS, "a failed growth changes nothing");
    session.resize_volume("v", 2 * VOLUME).unwrap();
    assert_eq!(client.status(&beyond), Status::OK, "the old key reaches the new blocks");
    let grown = read_all(&session, "v");
    assert!(grown[..data.len()] == data && grown[data.len()..].iter().all(|&b| b == 0));
}

fn shrinking(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let mut client = Client::create(session.clone(), "v");
    write_all(&session, "v", 6);
    let mut cut = client.request(opcode::WRITE);
    cut.offset = VOLUME - u64::from(cut.length);
    assert_eq!(client.status(&cut), Status::OK);
    session.resize_volume("v", VOLUME / 2).unwrap();
    assert_eq!(client.status(&cut), Status::E_BOUNDS);
    assert_eq!(client.status(&client.request(opcode::READ)), Status::OK);
    session.create_volume("heir", VOLUME).unwrap();
    assert_eq!(client.status(&cut), Status::E_BOUNDS);
    assert_eq!(session.delete_volume("v").unwrap().grants, 1);
    assert_eq!(client.status(&client.request(opcode::WRITE)), Status::E_ENTRY_INVALID);
    assert!(read_all(&session, "heir").iter().all(|&b| b == 0));
}

/// Two applications on two pollers read without pause while their volume is deleted: each request ends once, and from the
/// moment the deletion is reported none is admitted.
fn two_pollers(rig: &Rig) {
    let options = adapter::Options { pollers: 2, ..rig.options() };
    let adapter = adapter::Adapter::start(&options, &rig.socket()).unwrap();
    let admin = Session::connect(adapter.socket()).unwrap();
    admin.create_volume("v", VOLUME).unwrap();
    let deleted = AtomicBool::new(false);
    let completed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let session = Session::connect(adapter.socket()).unwrap();
                    let mut client = Client::open(session, "v", Access::READ);
                    let request = client.request(opcode::READ);
                    loop {
                        let gone = deleted.load(Ordering::Acquire);
                        match client.status(&request) {
                            Status::OK => assert!(!gone, "admitted after the deletion was reported"),
                            status => break assert_eq!(status, Status::E_ENTRY_INVALID),
                        }
                        completed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        until("both read", || {
            completed.load(Ordering::Relaxed) > 200 && admin.volume_info("v").unwrap().grants == 2
        });
        let revoked = admin.delete_volume("v").unwrap();
        deleted.store(true, Ordering::Release);
        assert_eq!((revoked.grants, revoked.draining), (2, 0));
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    admin.create_volume("heir", VOLUME).unwrap();
    assert!(read_all(&admin, "heir").iter().all(|&b| b == 0));
}

fn renaming(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let mut client = Client::create(session.clone(), "old");
    session.rename_volume("old", "new").unwrap();
    assert_eq!(client.status(&client.request(opcode::READ)), Status::OK);
    assert_eq!(session.open("old", Access::READ).unwrap_err().status(), Some(Status::E_NO_RESOURCE));
    assert_eq!(session.delete_volume("new").unwrap().grants, 1, "the grant follows its volume");
}

fn pieces(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let unit = 64 << 10;
    for i in 0..40 {
        session.create_volume(&format!("filler-{i}"), unit).unwrap();
    }
    let free = session.device_info().unwrap();
    session.create_volume("rest", (free.free_blocks * u64::from(free.block_size)) / unit * unit).unwrap();
    for i in (0..40).step_by(2) {
        session.delete_volume(&format!("filler-{i}")).unwrap();
    }
    let info = session.create_volume("v", 20 * unit).unwrap();
    assert!(info.extents >= 10, "{} extents", info.extents);
    let data = write_all(&session, "v", 3);
    assert!(read_all(&session, "v") == data);
    for i in (1..40).step_by(2) {
        assert!(read_all(&session, &format!("filler-{i}")).iter().all(|&b| b == 0), "filler {i}");
    }
}

fn too_much(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let before = session.device_info().unwrap().free_blocks;
    for bytes in [1u64 << 40, u64::MAX, 0] {
        let error = session.create_volume("v", bytes).unwrap_err();
        let expected = [Some(Status::E_NO_RESOURCES), Some(Status::E_PARAM)];
        assert!(expected.contains(&error.status()), "{bytes}: {error}");
    }
    for name in ["", ".", "..", "a/b", "a:b", "a\nb", &"x".repeat(300)] {
        assert_eq!(
            session.create_volume(name, VOLUME).unwrap_err().status(),
            Some(Status::E_PARAM),
            "{name:?}"
        );
    }
    assert_eq!(session.device_info().unwrap().free_blocks, before);
    session.create_volume("v", VOLUME).unwrap();
    assert_eq!(session.create_volume("v", VOLUME).unwrap_err().status(), Some(Status::E_EXISTS));
}

fn strangers(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = adapter.session().unwrap();
    owner.create_volume("v", VOLUME).unwrap();
    owner.set_access("v", Subject::User(2001), Access::READ).unwrap();
    let stranger = adapter.session_as(somebody(2001)).unwrap();
    let refused = [
        stranger.create_volume("mine", VOLUME).err(),
        stranger.delete_volume("v").err(),
        stranger.resize_volume("v", 2 * VOLUME).err(),
        stranger.rename_volume("v", "w").err(),
        stranger.set_access("v", Subject::User(2001), Access::ALL).err(),
    ];
    for error in refused {
        assert_eq!(error.and_then(|e| e.status()), Some(Status::E_AUTH));
    }
    let device = stranger.device_info().unwrap();
    assert!(
        device.metadata.is_empty() && device.volumes.is_empty(),
        "absolute blocks are for administrators"
    );
    assert_eq!(stranger.volumes().count(), 1);
    assert_eq!(owner.volume_info("v").unwrap().bytes, VOLUME);
}

fn restart(rig: &Rig) {
    let path = rig.socket().with_extension("img");
    // What is in memory is gone with the adapter.
    let device = match rig.options().device {
        adapter::DeviceUri::EmuRam(_) => adapter::DeviceUri::EmuFile(path.clone()),
        adapter::DeviceUri::EmuVirtioRam(_) => adapter::DeviceUri::EmuVirtioFile(path.clone()),
        other => return restart_on(&adapter::Options { device: other, ..rig.options() }),
    };
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    restart_on(&adapter::Options { device, ..rig.options() });
}

fn restart_on(options: &adapter::Options) {
    let first = adapter::Embedded::start(options).unwrap();
    let client = Client::create(first.session().unwrap(), "v");
    let data = write_all(&client.session, "v", 4);
    let old = client.request(opcode::READ);
    drop((client, first));
    let options = adapter::Options { format: adapter::Format::Never, ..options.clone() };
    let second = adapter::Embedded::start(&options).unwrap();
    let mut client = Client::open(second.session().unwrap(), "v", Access::READ);
    assert!(read_all(&client.session, "v") == data);
    assert!(client.volume.key() >> 32 > old.key >> 32, "instances go on where they were reserved");
    let mut stale = client.request(opcode::READ);
    stale.key = old.key;
    assert_eq!(client.status(&stale), Status::E_KEY_INSTANCE);
}
