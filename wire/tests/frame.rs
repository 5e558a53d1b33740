//! Control packets: what is not one is refused, each malformation by its own error.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use wire::VERSION;
use wire::control::{
    AccessBits, Change, DeviceInfo, ErrorInfo, FRAME_MAGIC, GrantInfo, HealthInfo, LimitChange, LimitInfo,
    Limited, Limits, MAX_DETAIL, MAX_MESSAGE, Rate, Rates, Reply, Request, SMALL_REPLY, SessionInfo,
    Statistics, Subject, VolumeInfo, Welcome,
};
use wire::files::{
    AttributeChange, Bounded, CheckReport, Create, DirectoryEntry, EXTENSIONS_PAGE, ExtensionInfo,
    FileAttributes, FileInfo, FileKind, FileName, FilePath, FileSystemInfo, FileSystemKind, FileTarget,
    MAX_FILE_ACCESS, MAX_PATH, OpenFile, PathError, SetTime, Time, check_path,
};
use wire::frame::{
    EncodeError, FrameError, HEADER, decode_body, decode_reply, decode_request, encode, encode_body,
    encoded_len,
};
use wire::name::{NameError, beginning, check_name, escape, escape_bytes};
use wire::{Status, fuzz};

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        any::<u32>().prop_map(Subject::User),
        any::<u32>().prop_map(Subject::Group),
        Just(Subject::Everyone)
    ]
}

fn rate() -> impl Strategy<Value = Option<Rate>> {
    any::<Option<(u64, u64)>>().prop_map(|rate| rate.map(|(rate, burst)| Rate { rate, burst }))
}

fn rates() -> impl Strategy<Value = Rates> {
    (rate(), rate()).prop_map(|(requests, bytes)| Rates { requests, bytes })
}

fn limited() -> impl Strategy<Value = Limited> {
    prop_oneof![
        ".{0,40}".prop_map(Limited::Volume),
        any::<u32>().prop_map(Limited::User),
        any::<u64>().prop_map(Limited::Session)
    ]
}

fn limit() -> impl Strategy<Value = LimitInfo> {
    (limited(), rates(), any::<Option<u32>>()).prop_map(|(of, rates, weight)| LimitInfo { of, rates, weight })
}

fn volume() -> impl Strategy<Value = VolumeInfo> {
    let access = proptest::collection::vec((subject(), any::<AccessBits>()), 0..5);
    (".{0,30}", any::<u64>(), any::<u32>(), access, any::<u32>(), any::<u32>(), rates()).prop_map(
        |(name, bytes, owner, access, extents, grants, limits)| VolumeInfo {
            name,
            bytes,
            owner,
            access,
            extents,
            grants,
            limits,
        },
    )
}

fn session() -> impl Strategy<Value = SessionInfo> {
    (any::<[u64; 4]>(), any::<[u32; 6]>()).prop_map(
        |([session, pinned_bytes, completed, denied], [uid, gid, pid, queues, grants, regions])| {
            SessionInfo { session, uid, gid, pid, queues, grants, regions, pinned_bytes, completed, denied }
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let name = || ".{0,40}";
    prop_oneof![
        any::<(u16, u16)>()
            .prop_map(|(min_version, max_version)| Request::Hello { min_version, max_version }),
        any::<u32>().prop_map(|entries| Request::CreateQueue { entries }),
        any::<u32>().prop_map(|queue| Request::DestroyQueue { queue }),
        any::<(u64, u8)>().prop_map(|(length, access)| Request::RegisterMemory { length, access }),
        any::<u64>().prop_map(|region| Request::ReleaseMemory { region }),
        (name(), any::<u8>()).prop_map(|(name, access)| Request::OpenVolume { name, access }),
        (name(), any::<u8>()).prop_map(|(name, access)| Request::OpenExclusive { name, access }),
        (any::<[u8; 16]>(), change()).prop_map(|(id, change)| Request::Once { id, change }),
        any::<u64>().prop_map(|key| Request::Close { key }),
        any::<u64>().prop_map(|key| Request::Query { key }),
        (name(), any::<u64>()).prop_map(|(name, bytes)| Request::CreateVolume { name, bytes }),
        name().prop_map(|name| Request::DeleteVolume { name }),
        (name(), any::<u64>()).prop_map(|(name, bytes)| Request::ResizeVolume { name, bytes }),
        (name(), name()).prop_map(|(from, to)| Request::RenameVolume { from, to }),
        proptest::option::of(name()).prop_map(|after| Request::ListVolumes { after }),
        name().prop_map(|name| Request::ShowVolume { name }),
        (name(), subject(), any::<u8>()).prop_map(|(name, subject, access)| Request::SetAccess {
            name,
            subject,
            access
        }),
        Just(Request::ShowDevice),
        Just(Request::Statistics),
        (limited(), rate(), rate(), any::<Option<u32>>()).prop_map(|(of, requests, bytes, weight)| {
            Request::SetLimits { of, change: LimitChange { requests, bytes, weight } }
        }),
        proptest::option::of(limited()).prop_map(|after| Request::ListLimits { after }),
        Just(Request::ShowHealth),
        file_request(),
    ]
}

fn bounded<const MAX: usize>() -> impl Strategy<Value = Bounded<MAX>> {
    proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Bounded::new(bytes).unwrap())
}

fn path() -> impl Strategy<Value = FilePath> {
    bounded()
}

fn target() -> impl Strategy<Value = FileTarget> {
    prop_oneof![
        any::<u64>().prop_map(FileTarget::Key),
        (".{0,20}", path(), any::<bool>()).prop_map(|(volume, path, follow)| FileTarget::Path {
            volume,
            path,
            follow
        }),
    ]
}

fn time() -> impl Strategy<Value = Time> {
    any::<(i64, u32)>().prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds })
}

fn set_time() -> impl Strategy<Value = Option<SetTime>> {
    proptest::option::of(prop_oneof![Just(SetTime::Now), time().prop_map(SetTime::At)])
}

fn access_list() -> impl Strategy<Value = Vec<(Subject, AccessBits)>> {
    proptest::collection::vec((subject(), any::<AccessBits>()), 0..5)
}

fn file_request() -> impl Strategy<Value = Request> {
    let volume = || ".{0,20}";
    let open = (volume(), path(), any::<(u8, u16, u64)>(), 0..3usize, any::<(bool, bool)>()).prop_map(
        |(volume, path, (access, mode, allocate), create, (truncate, follow))| {
            let create = [Create::Never, Create::IfAbsent, Create::New][create];
            Request::OpenFile(OpenFile { volume, path, access, create, truncate, follow, mode, allocate })
        },
    );
    let change = (any::<(Option<u16>, Option<u32>, Option<u32>)>(), set_time(), set_time());
    let change = (change, proptest::option::of(access_list())).prop_map(
        |(((mode, owner, group), accessed, modified), access)| AttributeChange {
            mode,
            owner,
            group,
            accessed,
            modified,
            access,
        },
    );
    prop_oneof![
        open,
        any::<u64>().prop_map(|key| Request::QueryFile { key }),
        any::<(u64, u32)>().prop_map(|(key, skip)| Request::ListExtensions { key, skip }),
        any::<(u64, u64, bool)>().prop_map(|(key, bytes, keep)| Request::GrowFile { key, bytes, keep }),
        any::<(u64, u64)>().prop_map(|(key, bytes)| Request::SetLength { key, bytes }),
        (target(), change).prop_map(|(of, change)| Request::SetAttributes { of, change }),
        (volume(), path(), path(), any::<bool>())
            .prop_map(|(volume, from, to, replace)| Request::RenameFile { volume, from, to, replace }),
        (volume(), path()).prop_map(|(volume, path)| Request::UnlinkFile { volume, path }),
        (volume(), path(), any::<u16>()).prop_map(|(volume, path, mode)| Request::MakeDirectory {
            volume,
            path,
            mode
        }),
        (volume(), path()).prop_map(|(volume, path)| Request::RemoveDirectory { volume, path }),
        (volume(), path(), bounded(), any::<bool>()).prop_map(|(volume, path, from, attributes)| {
            Request::ListDirectory { volume, path, from, attributes }
        }),
        (volume(), path(), any::<bool>()).prop_map(|(volume, path, follow)| Request::StatPath {
            volume,
            path,
            follow
        }),
        (volume(), path()).prop_map(|(volume, path)| Request::ReadLink { volume, path }),
        volume().prop_map(|volume| Request::StatVolume { volume }),
        any::<(u64, bool)>().prop_map(|(key, data_only)| Request::SyncFile { key, data_only }),
        volume().prop_map(|volume| Request::SyncFiles { volume }),
        (volume(), any::<bool>()).prop_map(|(volume, force)| Request::FormatFiles { volume, force }),
        (volume(), any::<bool>()).prop_map(|(volume, repair)| Request::CheckFiles { volume, repair }),
        (volume(), any::<(u32, Option<u64>)>()).prop_map(|(volume, (user, bytes))| Request::SetFileQuota {
            volume,
            user,
            bytes
        }),
    ]
}

fn kind() -> impl Strategy<Value = FileKind> {
    (0..4usize)
        .prop_map(|kind| [FileKind::Regular, FileKind::Directory, FileKind::Symlink, FileKind::Other][kind])
}

fn attributes() -> impl Strategy<Value = FileAttributes> {
    let times = (time(), time(), time());
    (kind(), any::<[u64; 3]>(), any::<u16>(), any::<[u32; 3]>(), times, access_list()).prop_map(
        |(kind, [number, length, allocated], mode, [owner, group, links], times, access)| {
            let (accessed, modified, changed) = times;
            FileAttributes {
                kind,
                number,
                mode,
                owner,
                group,
                links,
                length,
                allocated,
                accessed,
                modified,
                changed,
                access,
            }
        },
    )
}

fn extensions() -> impl Strategy<Value = Vec<ExtensionInfo>> {
    let one = any::<(u64, u8, u64, u64)>().prop_map(|(key, access, offset, bytes)| ExtensionInfo {
        key,
        access,
        offset,
        bytes,
    });
    proptest::collection::vec(one, 0..5)
}

fn file_reply() -> impl Strategy<Value = Reply> {
    let info = (any::<(u64, u8, u32, u64)>(), attributes(), extensions(), any::<bool>()).prop_map(
        |((key, access, block_size, room), attributes, extensions, more)| {
            Reply::File(FileInfo { key, access, block_size, room, attributes, extensions, more })
        },
    );
    let entry = (bounded(), kind(), any::<u64>(), proptest::option::of(attributes()))
        .prop_map(|(name, kind, number, attributes)| DirectoryEntry { name, kind, number, attributes });
    let system = (any::<bool>(), any::<u32>(), any::<[u64; 6]>(), any::<bool>(), any::<Option<u64>>())
        .prop_map(|(ext4, block_size, n, in_place, quota)| {
            Reply::FileSystem(FileSystemInfo {
                kind: if ext4 { FileSystemKind::Ext4 } else { FileSystemKind::Portcullis },
                block_size,
                bytes: n[0],
                free: n[1],
                available: n[2],
                files: n[3],
                free_files: n[4],
                in_place,
                own: n[5],
                quota,
            })
        });
    let checked =
        (any::<[u64; 4]>(), proptest::collection::vec(".{0,30}", 0..4)).prop_map(|(n, findings)| {
            Reply::Checked(CheckReport { files: n[0], extents: n[1], found: n[2], repaired: n[3], findings })
        });
    prop_oneof![
        info,
        (extensions(), any::<bool>()).prop_map(|(extensions, more)| Reply::Extensions { extensions, more }),
        attributes().prop_map(Reply::Attributes),
        (proptest::collection::vec(entry, 0..4), proptest::option::of(bounded()))
            .prop_map(|(entries, next)| Reply::Directory { entries, next }),
        path().prop_map(|target| Reply::Link { target }),
        system,
        checked,
    ]
}

fn device() -> impl Strategy<Value = DeviceInfo> {
    let ranges = || proptest::collection::vec(any::<(u64, u64)>(), 0..4);
    (any::<[u64; 3]>(), any::<u32>(), any::<bool>(), ranges(), ".{0,20}", ranges()).prop_map(
        |([blocks, free_blocks, max_transfer], block_size, write_cache, metadata, text, extents)| {
            DeviceInfo {
                uri: text.clone(),
                model: text.clone(),
                serial: text.clone(),
                firmware: text.clone(),
                block_size,
                blocks,
                free_blocks,
                max_transfer,
                write_cache,
                metadata,
                volumes: vec![(text, extents)],
            }
        },
    )
}

fn health() -> impl Strategy<Value = HealthInfo> {
    let error = (any::<[u64; 3]>(), any::<[u16; 4]>(), any::<u32>(), any::<u8>()).prop_map(
        |([count, lba, command_specific], [queue, command, status, parameter], namespace, vendor_log)| {
            ErrorInfo {
                count,
                queue,
                command,
                status,
                parameter,
                lba,
                namespace,
                vendor_log,
                command_specific,
            }
        },
    );
    let small = (any::<[u8; 5]>(), any::<u16>(), any::<[u16; 8]>(), any::<[u32; 6]>());
    (".{0,20}", small, any::<[u128; 10]>(), proptest::collection::vec(error, 0..64)).prop_map(
        |(uri, (bytes, temperature, temperature_sensors, times), n, errors)| HealthInfo {
            uri,
            critical_warning: bytes[0],
            endurance_group_warning: bytes[1],
            temperature,
            available_spare: bytes[2],
            spare_threshold: bytes[3],
            percentage_used: bytes[4],
            data_units_read: n[0],
            data_units_written: n[1],
            host_read_commands: n[2],
            host_write_commands: n[3],
            controller_busy_minutes: n[4],
            power_cycles: n[5],
            power_on_hours: n[6],
            unsafe_shutdowns: n[7],
            media_errors: n[8],
            error_log_entries: n[9],
            warning_temperature_minutes: times[0],
            critical_temperature_minutes: times[1],
            temperature_sensors,
            thermal_transitions: [times[2], times[3]],
            thermal_seconds: [times[4], times[5]],
            errors,
        },
    )
}

fn statistics() -> impl Strategy<Value = Statistics> {
    let counts = (any::<[u64; 11]>(), any::<Option<u32>>());
    (counts, proptest::collection::vec(session(), 0..4)).prop_map(|((n, left), sessions)| Statistics {
        completed: n[0],
        denied: n[1],
        queue_errors: n[2],
        turns: n[3],
        entries: n[4],
        regions: n[5],
        pinned_bytes: n[6],
        mappings: n[7],
        mappings_left: left,
        lba_entries: n[8],
        fetches: n[9],
        evictions: n[10],
        sessions,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let name = || ".{0,40}";
    prop_oneof![
        (name(), any::<u64>()).prop_map(|(name, bytes)| Change::CreateVolume { name, bytes }),
        name().prop_map(|name| Change::DeleteVolume { name }),
        (name(), any::<u64>()).prop_map(|(name, bytes)| Change::ResizeVolume { name, bytes }),
        (name(), name()).prop_map(|(from, to)| Change::RenameVolume { from, to }),
        (name(), subject(), any::<u8>()).prop_map(|(name, subject, access)| Change::SetAccess {
            name,
            subject,
            access
        }),
        file_request().prop_filter_map("not a change", |request| Change::of(&request)),
    ]
}

fn welcome() -> impl Strategy<Value = Welcome> {
    (any::<u16>(), any::<[u64; 4]>(), any::<[u32; 4]>(), any::<bool>()).prop_map(
        |(version, [session, adapter, life, pinned_bytes], counts, settled)| {
            let [regions, queues, grants, outstanding] = counts;
            let limits = Limits { pinned_bytes, regions, queues, grants, outstanding };
            Welcome { version, session, adapter, life, settled, limits }
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<u16>(), ".{0,60}")
            .prop_map(|(status, detail)| Reply::Error { status: Status(status), detail }),
        Just(Reply::Done),
        welcome().prop_map(Reply::Welcome),
        any::<u32>().prop_map(|queue| Reply::Queue { queue }),
        any::<u64>().prop_map(|region| Reply::Region { region }),
        any::<(u64, u8, u64, u32, u128, bool)>().prop_map(
            |(key, access, bytes, block_size, volume, sole_writer)| Reply::Grant(GrantInfo {
                key,
                access,
                bytes,
                block_size,
                volume,
                sole_writer
            })
        ),
        (proptest::collection::vec(volume(), 0..5), any::<bool>())
            .prop_map(|(volumes, more)| Reply::Volumes { volumes, more }),
        volume().prop_map(Reply::Volume),
        any::<(u32, u32)>().prop_map(|(grants, draining)| Reply::Revoked { grants, draining }),
        device().prop_map(Reply::Device),
        statistics().prop_map(Reply::Statistics),
        (proptest::collection::vec(limit(), 0..4), any::<bool>())
            .prop_map(|(limits, more)| Reply::Limits { limits, more }),
        health().prop_map(|health| Reply::Health(Box::new(health))),
        file_reply(),
    ]
}

/// A packet made by hand.
fn packet(magic: u32, version: u16, reserved: u16, length: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = magic.to_le_bytes().to_vec();
    packet.extend(version.to_le_bytes());
    packet.extend(reserved.to_le_bytes());
    packet.extend(length.to_le_bytes());
    packet.extend(0xabcdu32.to_le_bytes());
    packet.extend(body);
    packet
}

#[test]
fn each_malformation_has_its_own_error() {
    let done = encode(0xabcd, &Request::ShowDevice).unwrap();
    let body = &done[HEADER..];
    assert_eq!(done, packet(FRAME_MAGIC, VERSION, 0, 1, body));
    assert_eq!(decode_request(&done), Ok((0xabcd, Request::ShowDevice)));
    let id = 0xabcd;
    let decode = |packet: &[u8]| {
        let error = decode_request(packet).expect_err("it must be refused");
        println!("{error}");
        error
    };
    assert_eq!(decode(&[]), FrameError::TooShort(0));
    assert_eq!(decode(&done[..HEADER - 1]), FrameError::TooShort(15));
    assert_eq!(decode(&vec![0; MAX_MESSAGE + 1]), FrameError::TooLong(MAX_MESSAGE + 1));
    assert_eq!(decode(&packet(0x2054_5447, VERSION, 0, 1, body)), FrameError::Magic(0x2054_5447));
    assert_eq!(decode(&packet(FRAME_MAGIC, 7, 9, 9, b"anything")), FrameError::Version { peer: 7, id });
    assert_eq!(decode(&packet(FRAME_MAGIC, VERSION, 9, 1, body)), FrameError::Reserved { reserved: 9, id });
    for said in [0, 2, u32::MAX] {
        assert_eq!(
            decode(&packet(FRAME_MAGIC, VERSION, 0, said, body)),
            FrameError::Length { said, actual: 1, id }
        );
    }
    assert!(matches!(decode(&packet(FRAME_MAGIC, VERSION, 0, 0, &[])), FrameError::Body { id: 0xabcd, .. }));
    assert!(matches!(decode(&packet(FRAME_MAGIC, VERSION, 0, 1, &[99])), FrameError::Body { .. }));
    let long = [body, &[1, 2, 3]].concat();
    assert_eq!(decode(&packet(FRAME_MAGIC, VERSION, 0, 4, &long)), FrameError::Trailing { bytes: 3, id });
    assert_eq!(decode(&packet(FRAME_MAGIC, 7, 0, 0, &[])).id(), Some(id));
    assert_eq!(decode(&[]).id(), None);
}

#[test]
fn what_fits_no_packet_is_not_sent() {
    let name = "n".repeat(MAX_MESSAGE);
    assert_eq!(encode(1, &Request::ShowVolume { name }), Err(EncodeError::TooLong(HEADER + 4 + MAX_MESSAGE)));
    let fits = "n".repeat(MAX_MESSAGE - HEADER - 3);
    assert_eq!(
        encode(1, &Request::DeleteVolume { name: fits }).unwrap().len(),
        HEADER + 1 + 2 + MAX_MESSAGE - HEADER - 3
    );
}

/// A body that promises more than there is must cost no memory.
#[test]
fn a_promised_length_is_not_believed() {
    let volumes = encode(1, &Reply::Volumes { volumes: vec![], more: false }).unwrap()[HEADER];
    let body = [volumes, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert!(matches!(
        decode_reply(&packet(FRAME_MAGIC, VERSION, 0, 11, &body)),
        Err(FrameError::Body { .. })
    ));
}

/// A promise of more bytes than a path has is refused before any is copied, and so is one byte too many that is there.
#[test]
fn a_path_is_bounded_where_it_is_decoded() {
    let long = vec![b'x'; MAX_PATH];
    let path = FilePath::new(long.clone()).unwrap();
    let request = Request::UnlinkFile { volume: "v".into(), path };
    let mut bytes = vec![0; MAX_MESSAGE];
    let length = encode_body(&request, &mut bytes).unwrap();
    assert_eq!(encoded_len(&request), Ok(length));
    assert_eq!(decode_body(&bytes[..length]), Ok(request));
    assert!(FilePath::new([long, vec![b'x']].concat()).is_err());
    // The same with one byte more: behind the volume's name comes the length in seven bits each.
    let at = length - MAX_PATH - 2;
    assert_eq!(bytes[at..at + 2], [0x80, 0x20]);
    bytes[at] = 0x81;
    assert!(matches!(decode_body::<Request>(&bytes[..=length]), Err(FrameError::Body { .. })));
    bytes[at..at + 5].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(decode_body::<Request>(&bytes[..length]), Err(FrameError::Body { .. })));
}

#[test]
fn a_body_is_whole_and_no_larger_than_a_message() {
    let mut bytes = vec![0; MAX_MESSAGE + 1];
    let length = encode_body(&Request::ShowDevice, &mut bytes).unwrap();
    assert_eq!(decode_body(&bytes[..length]), Ok(Request::ShowDevice));
    assert_eq!(decode_body::<Request>(&bytes[..length + 2]), Err(FrameError::Trailing { bytes: 2, id: 0 }));
    assert!(matches!(decode_body::<Request>(&[]), Err(FrameError::Body { .. })));
    assert_eq!(decode_body::<Request>(&bytes), Err(FrameError::TooLong(MAX_MESSAGE + 1)));
    let request = Request::ShowVolume { name: "n".repeat(100) };
    assert_eq!(encode_body(&request, &mut bytes[..50]), Err(EncodeError::TooLong(102)));
}

/// What an entry must have room for, its reply never exceeds.
#[test]
fn the_largest_small_replies_fit_their_room() {
    let access = vec![(Subject::User(u32::MAX), 7); MAX_FILE_ACCESS];
    let time = Time { seconds: i64::MIN, nanoseconds: u32::MAX };
    let attributes = FileAttributes {
        kind: FileKind::Other,
        number: u64::MAX,
        mode: u16::MAX,
        owner: u32::MAX,
        group: u32::MAX,
        links: u32::MAX,
        length: u64::MAX,
        allocated: u64::MAX,
        accessed: time,
        modified: time,
        changed: time,
        access,
    };
    let extension = ExtensionInfo { key: u64::MAX, access: 7, offset: u64::MAX, bytes: u64::MAX };
    let file = FileInfo {
        key: u64::MAX,
        access: 7,
        block_size: u32::MAX,
        room: u64::MAX,
        attributes: attributes.clone(),
        extensions: vec![extension; EXTENSIONS_PAGE],
        more: true,
    };
    let detail = "x".repeat(MAX_DETAIL);
    for reply in [
        Reply::File(file),
        Reply::Attributes(attributes),
        Reply::Extensions { extensions: vec![extension; EXTENSIONS_PAGE], more: true },
        Reply::Error { status: Status(u16::MAX), detail },
    ] {
        assert!(encoded_len(&reply).unwrap() <= SMALL_REPLY, "{reply:?}");
    }
    assert_eq!(Request::OpenFile(OpenFile::reading("v", FilePath::default())).reply_room(), SMALL_REPLY);
    assert_eq!(Request::ListVolumes { after: None }.reply_room(), MAX_MESSAGE);
}

#[test]
fn s6_r1_what_needs_descriptors_or_begins_a_session_goes_by_the_socket() {
    for request in [
        Request::Hello { min_version: 0, max_version: 1 },
        Request::CreateQueue { entries: 2 },
        Request::RegisterMemory { length: 4096, access: 1 },
    ] {
        assert!(!request.goes_by_queue());
    }
    assert!(Request::Query { key: 1 }.goes_by_queue() && Request::DestroyQueue { queue: 1 }.goes_by_queue());
}

#[test]
fn good_and_bad_paths() {
    let long = format!("/{}", "n".repeat(255));
    for good in ["/", "/a", "/a/b.c", "/...", "/ a ", "/a:b", "/größe", &long, "/\n\u{1b}"] {
        assert_eq!(check_path(good.as_bytes()), Ok(()), "{good}");
    }
    assert_eq!(check_path(b"/\xff\xfe"), Ok(()), "a path is bytes");
    let too_long = "/x".repeat(2049);
    let bad = [
        ("", PathError::Relative),
        ("a/b", PathError::Relative),
        ("//", PathError::Empty),
        ("/a/", PathError::Empty),
        ("/a//b", PathError::Empty),
        ("/.", PathError::Dots),
        ("/a/../b", PathError::Dots),
        ("/a\0b", PathError::Zero),
        (&format!("/{}", "n".repeat(256)), PathError::Component(256)),
        (&too_long, PathError::TooLong(4098)),
    ];
    for (path, error) in bad {
        assert_eq!(check_path(path.as_bytes()), Err(error), "{path:?}");
    }
    let name = FileName::new(*b"a\xff\x1b[2J\\\xe2\x80\xaeb").unwrap();
    assert_eq!(name.to_string(), r"a\xff\u{1b}[2J\\\u{202e}b");
    assert_eq!(format!("{name:?}"), format!("\"{name}\""));
}

#[test]
fn good_and_bad_names() {
    for good in ["a", "vol-1_x.y z", "größe", "日本", "'\"", "...", &"n".repeat(128)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    let bad = [
        ("", NameError::Empty),
        (".", NameError::Dots),
        ("..", NameError::Dots),
        ("a/b", NameError::Character('/')),
        ("a:b", NameError::Character(':')),
        ("a\n", NameError::Character('\n')),
        ("\0", NameError::Character('\0')),
        ("a\u{1b}[31m", NameError::Character('\u{1b}')),
        ("a\u{202e}b", NameError::Character('\u{202e}')),
        ("a\u{200b}", NameError::Character('\u{200b}')),
        ("a\u{a0}", NameError::Character('\u{a0}')),
        ("a\u{85}", NameError::Character('\u{85}')),
        (" a", NameError::Character(' ')),
        ("a ", NameError::Character(' ')),
        (&"ü".repeat(65), NameError::TooLong(130)),
    ];
    for (name, error) in bad {
        assert_eq!(check_name(name), Err(error), "{name:?}");
    }
    assert!(NameError::Character('\u{1b}').to_string().contains(r"'\u{1b}'"));
}

#[test]
fn a_beginning_has_whole_characters() {
    for (most, shown) in [(0, ""), (1, "a"), (2, "a"), (3, "aü"), (4, "aüb"), (99, "aüb")] {
        assert_eq!(beginning("aüb", most), shown);
    }
}

#[test]
fn shown_names_are_harmless() {
    assert_eq!(escape("größe 'x'"), "größe 'x'");
    assert_eq!(escape("a\nb\\n\u{1b}[2J\u{202e}"), r"a\nb\\n\u{1b}[2J\u{202e}");
}

proptest! {
    #[test]
    fn every_request_comes_back(id: u32, message in request()) {
        let packet = encode(id, &message).unwrap();
        fuzz::control(&packet);
        prop_assert_eq!(decode_request(&packet), Ok((id, message)));
    }

    #[test]
    fn every_reply_comes_back(id: u32, message in reply()) {
        let packet = encode(id, &message).unwrap();
        fuzz::control(&packet);
        prop_assert_eq!(decode_reply(&packet), Ok((id, message)));
    }

    #[test]
    fn a_cut_packet_is_refused(message in request(), cut: prop::sample::Index) {
        let packet = encode(1, &message).unwrap();
        prop_assert!(decode_request(&packet[..cut.index(packet.len())]).is_err());
    }

    /// Any bytes as a body, so that the decoder is reached.
    #[test]
    fn garbage_is_decoded_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz::control(&body);
        fuzz::control(&packet(FRAME_MAGIC, VERSION, 0, u32::try_from(body.len()).unwrap(), &body));
    }

    #[test]
    fn escaped_bytes_are_one_printable_line(name: Vec<u8>) {
        let shown = escape_bytes(&name);
        prop_assert!(!shown.chars().any(char::is_control), "{:?}", shown);
        prop_assert!(shown.lines().count() <= 1);
        if let Ok(text) = std::str::from_utf8(&name) {
            prop_assert_eq!(shown, escape(text));
        }
    }

    #[test]
    fn escaped_is_one_printable_line(name: String) {
        let shown = escape(&name);
        prop_assert!(!shown.chars().any(char::is_control), "{:?}", shown);
        prop_assert_eq!(shown.lines().count(), usize::from(!name.is_empty()));
        if check_name(&name).is_ok() && !name.contains('\\') {
            prop_assert_eq!(shown, name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// S5-R4, S5-R15: a peer that scribbles over its words never moves the adapter's end out of bounds.
    #[test]
    fn a_hostile_peer_breaks_no_invariant(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz::peer(&data);
    }
}
