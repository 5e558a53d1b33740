//! Requests whose memory is a list of pieces, of one region or of several.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use portcullis::wire::layout::{ScatterSegment, SubmissionEntry, flag, opcode};
use portcullis::{Access, Buffer, MemoryAccess, Request, Session, Status};

use super::{Case, Client, PATIENCE, Rig, VOLUME, pattern};

pub(super) const CASES: &[Case] = &[
    Case { name: "s4_r1_s8_r9_several_regions_byte_for_byte_with_one_completion", run: several_regions },
    Case { name: "every_fault_of_a_list_is_refused_and_moves_nothing", run: refusals },
    Case { name: "a_list_that_is_rewritten_while_it_is_read_gains_nothing", run: rewriter },
];

/// Between the pieces of memory that requests use, and around them.
const CANARY: u8 = 0xc5;

fn several_regions(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", VOLUME).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let block = volume.block_size() as usize;
    let mut queue = session.queue(16).unwrap();
    let rounds = if rig.is_software() { 60 } else { 12 };
    for round in 0..rounds {
        // Pieces of three regions, with canaries between them, and what does not end or begin with a page.
        let count = 1 + round * 7 % Request::MAX_BUFFERS;
        let mut pieces = Vec::new();
        let mut canaries = Vec::new();
        for region in 0..3 {
            let mut rest = session.register(256 << 10, MemoryAccess::Both).unwrap().into_buffer();
            rest.fill(CANARY);
            for number in (region..count).step_by(3) {
                let (gap, behind) = rest.split_at(4 * (1 + (round + number) % 5));
                let (piece, behind) = behind.split_at(block * (1 + (round * 5 + number * 3) % 4));
                canaries.push(gap);
                pieces.push((number, piece));
                rest = behind;
            }
            canaries.push(rest);
        }
        pieces.sort_by_key(|(number, _)| *number);
        let mut buffers: Vec<Buffer> = pieces.into_iter().map(|(_, piece)| piece).collect();
        let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let offset = (round % 9 * block) as u64;
        let data = pattern(round as u32, bytes);
        let mut from = 0;
        for buffer in &mut buffers {
            let length = buffer.len();
            buffer.copy_from_slice(&data[from..from + length]);
            from += length;
        }

        let done = queue.execute(Request::write_vectored(&volume, offset, buffers).tag(7)).unwrap();
        assert_eq!((done.result.unwrap() as usize, done.tag), (bytes, 7));
        let mut read = vec![0; bytes];
        queue.read_at(&volume, offset, &mut read).unwrap();
        assert!(read == data, "round {round}: {count} pieces are on the volume, one behind the other");

        let mut buffers = done.buffers;
        assert_eq!(buffers.len(), count);
        buffers.iter_mut().for_each(|buffer| buffer.fill(0));
        let done = queue.execute(Request::read_vectored(&volume, offset, buffers)).unwrap();
        assert_eq!(done.result.unwrap() as usize, bytes);
        let read: Vec<u8> = done.buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        assert!(read == data, "round {round}: each piece has its own part");
        assert!(canaries.iter().all(|canary| canary.iter().all(|byte| *byte == CANARY)), "round {round}");
        assert!(queue.poll().unwrap().is_none(), "one completion for each request");
    }
    queue.flush(&volume).unwrap();
}

/// Writes a list where it begins in `buffer`.
fn write_list(buffer: &mut [u8], list: &[ScatterSegment]) {
    for (entry, segment) in buffer.chunks_exact_mut(24).zip(list) {
        entry[..8].copy_from_slice(&segment.region.to_le_bytes());
        entry[8..16].copy_from_slice(&segment.offset.to_le_bytes());
        entry[16..20].copy_from_slice(&segment.length.to_le_bytes());
        entry[20..].copy_from_slice(&segment.reserved.to_le_bytes());
    }
}

fn refusals(rig: &Rig) {
    let adapter = rig.embedded();
    let other = Client::create(adapter.session().unwrap(), "other");
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let block = client.volume.block_size();
    let secret = pattern(5, 16 * block as usize);
    client.session.queue(8).unwrap().write_at(&client.volume, 0, &secret).unwrap();
    let mut target = client.session.register(1 << 20, MemoryAccess::DeviceWrites).unwrap().into_buffer();
    target.fill(CANARY);
    let mut lists = client.session.register(4096, MemoryAccess::DeviceReads).unwrap().into_buffer();
    let region = target.region();
    let good = ScatterSegment { region, offset: 0, length: block, reserved: 0 };
    let entry = SubmissionEntry {
        flags: flag::SCATTER,
        scatter_count: 2,
        length: 2 * block,
        region: lists.region(),
        ..client.request(opcode::READ)
    };
    // The second segment is wrong.
    let wrong = [
        ScatterSegment { region: other.memory.key(), ..good },
        ScatterSegment { region: region + (1 << 32), ..good },
        ScatterSegment { region: lists.region(), ..good }, // the device may not write there
        ScatterSegment { region: u64::MAX, ..good },
        ScatterSegment { offset: 1 << 20, ..good },
        ScatterSegment { offset: (1 << 20) - u64::from(block) + 4, ..good },
        ScatterSegment { offset: u64::MAX - 3, ..good },
        ScatterSegment { offset: 2, ..good },
        ScatterSegment { length: 0, ..good },
        ScatterSegment { length: block - 4, ..good },
        ScatterSegment { length: 2 * block, ..good },
        ScatterSegment { reserved: 1, ..good },
    ];
    for second in wrong {
        write_list(&mut lists, &[good, second]);
        assert_eq!(client.status(&entry), Status::E_LOCAL_MEM, "{second:?}");
    }
    write_list(&mut lists, &[good, ScatterSegment { offset: 8192, ..good }]);
    let spoiled: [(SubmissionEntry, Status); 12] = [
        (SubmissionEntry { region: region + (1 << 32), ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region: other.memory.key(), ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region, ..entry }, Status::E_LOCAL_MEM), // no list where the device only writes
        (SubmissionEntry { region_offset: 4, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region_offset: 4096 - 24, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { region_offset: u64::MAX - 7, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { length: block, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { length: 3 * block, ..entry }, Status::E_LOCAL_MEM),
        (SubmissionEntry { scatter_count: 0, ..entry }, Status::E_OPCODE),
        (SubmissionEntry { scatter_count: 33, ..entry }, Status::E_OPCODE),
        (SubmissionEntry { opcode: opcode::WRITE_BYTES, ..entry }, Status::E_OPCODE),
        (SubmissionEntry { offset: VOLUME, region: 77, ..entry }, Status::E_BOUNDS),
    ];
    for (entry, expected) in spoiled {
        assert_eq!(client.status(&entry), expected, "{entry:?}");
    }
    assert!(target.iter().all(|byte| *byte == CANARY), "no refused request moved a byte");
    assert_eq!(client.status(&entry), Status::OK);
    let (first, second) = (&target[..block as usize], &target[8192..8192 + block as usize]);
    assert!([first, second].concat() == secret[..2 * block as usize]);
}

/// A second thread rewrites the list while the adapter reads it. Whatever mixture is copied is checked as it was copied.
fn rewriter(rig: &Rig) {
    let adapter = rig.isolated();
    let victim = Client::create(Session::connect(adapter.socket()).unwrap(), "victim");
    let mut treasure = victim.session.register(1 << 20, MemoryAccess::Both).unwrap().into_buffer();
    treasure.fill(CANARY);

    let mut client = Client::create(Session::connect(adapter.socket()).unwrap(), "attacker");
    let block = client.volume.block_size();
    client.session.queue(8).unwrap().write_at(&client.volume, 0, &pattern(9, 1 << 20)).unwrap();
    let mut source = client.session.register(4096, MemoryAccess::DeviceReads).unwrap().into_buffer();
    source.fill(CANARY);
    let mut lists = client.session.register(4096, MemoryAccess::DeviceReads).unwrap().into_buffer();
    let own = ScatterSegment { region: client.memory.key(), offset: 0, length: block, reserved: 0 };
    let foreign = ScatterSegment { region: treasure.region(), offset: 4096, length: block, reserved: 0 };
    let protected = ScatterSegment { region: source.region(), offset: 0, length: 2 * block, reserved: 0 };
    let entry = SubmissionEntry {
        flags: flag::SCATTER,
        scatter_count: 2,
        length: 2 * block,
        region: lists.region(),
        ..client.request(opcode::READ)
    };
    let stop = AtomicBool::new(false);
    let (mut done, mut refused) = (0u32, 0u32);
    let wanted = if rig.is_software() { 2000 } else { 200 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for list in [[own, own], [own, foreign], [foreign, own], [own, own], [own, protected]] {
                    write_list(std::hint::black_box(&mut lists), &list);
                }
            }
        });
        let end = Instant::now() + PATIENCE;
        while done.min(refused) < wanted && Instant::now() < end {
            match client.status(&entry) {
                Status::OK => done += 1,
                Status::E_LOCAL_MEM => refused += 1,
                other => panic!("a list that was rewritten ended its request with {other}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{done} lists were good when they were copied, {refused} were not");
    assert!(done.min(refused) >= wanted, "only {done} and {refused}");
    assert!(treasure.iter().all(|byte| *byte == CANARY), "another session's memory changed");
    assert!(source.iter().all(|byte| *byte == CANARY), "memory that the device may only read changed");
}
