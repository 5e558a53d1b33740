//! Scatter gather lists, right ones and wrong ones (NVM Express Base 2.0c, section 4.1.2).

use super::super::sgl::MOST;
use super::*;
use crate::dice::Dice;
use crate::spec::nvme::{SglDescriptor, sgl_id};

const PAGE: u64 = 4096;

impl Entry {
    fn sgl(self, first: SglDescriptor) -> Self {
        let words: [u64; 2] = zerocopy::transmute!(first);
        self.set(0, self.0[0] | 1 << 14).prp(words[0], words[1])
    }
}

fn block(address: u64, length: u32) -> SglDescriptor {
    SglDescriptor::new(sgl_id::DATA_BLOCK, address, length)
}

fn last(address: u64, descriptors: usize) -> SglDescriptor {
    SglDescriptor::new(sgl_id::LAST_SEGMENT, address, descriptors as u32 * 16)
}

fn segment(address: u64, descriptors: usize) -> SglDescriptor {
    SglDescriptor::new(sgl_id::SEGMENT, address, descriptors as u32 * 16)
}

fn bytes(descriptors: &[SglDescriptor]) -> Vec<u8> {
    use zerocopy::IntoBytes;
    descriptors.as_bytes().to_vec()
}

#[test]
fn lists_lead_from_segment_to_segment_and_blocks_lie_anywhere() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    let (data, list, back) = (host.area(64 << 10), host.area(8192), host.area(4096));
    let content: Vec<u8> = (0..64u32 << 10).map(|n| (n * 7 / 8) as u8).collect();
    data.write(0, &content);
    // Odd addresses and lengths, empty blocks that lead nowhere, three segments.
    let blocks = [(1, 511), (4095, 1026), (0x8003, 1), (0x9000, 510)];
    list.write(0, &bytes(&[block(data.at(1), 511), block(u64::MAX, 0), segment(list.at(0x100), 2)]));
    list.write(0x100, &bytes(&[block(data.at(4095), 1026), segment(list.at(4096), 1)]));
    list.write(4096, &bytes(&[last(list.at(4096 + 64), 3)]));
    list.write(4096 + 64, &bytes(&[block(data.at(0x8003), 1), block(0, 0), block(data.at(0x9000), 510)]));
    let write = io(nvm::WRITE, 5, 4).sgl(segment(list.at(0), 3));
    assert_eq!(host.run(&mut pair, write).status, 0);
    assert_eq!(host.run(&mut pair, io(nvm::COMPARE, 5, 4).sgl(segment(list.at(0), 3))).status, 0);
    assert_eq!(host.run(&mut pair, io(nvm::READ, 5, 4).sgl(block(back.at(3), 2048))).status, 0);
    let expected: Vec<u8> =
        blocks.iter().flat_map(|&(at, len)| content[at..at + len].iter().copied()).collect();
    assert_eq!(back.read::<2048>(3).to_vec(), expected);
    assert_eq!((back.read::<3>(0), back.read::<2>(2051)), ([0; 3], [0; 2]));
    assert_eq!(host.device.faults(), 0);
}

#[test]
fn wrong_lists_are_refused_as_the_specification_says_and_move_nothing() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    let (data, list) = (host.area(8192), host.area(16 << 10));
    data.fill(0x3c);
    let whole = block(data.at(0), 1024);
    let half = |n: u64| block(data.at(n * 512), 512);
    let (at, more) = (list.at(0), list.at(8192));
    let of = |id, descriptor: SglDescriptor| SglDescriptor { id, ..descriptor };
    let length = |length, descriptor: SglDescriptor| SglDescriptor { length, ..descriptor };
    let two = || vec![half(0), half(1)];
    let cases: Vec<(SglDescriptor, Vec<SglDescriptor>, Status)> = vec![
        // Types that there are not: bit bucket, keyed, transport, vendor's, other sub types.
        (of(sgl_id::BIT_BUCKET, whole), vec![], Status::SGL_TYPE_INVALID),
        (of(0x40, whole), vec![], Status::SGL_TYPE_INVALID),
        (of(0x5a, whole), vec![], Status::SGL_TYPE_INVALID),
        (of(0xf0, whole), vec![], Status::SGL_TYPE_INVALID),
        (of(0x01, whole), vec![], Status::SGL_TYPE_INVALID),
        (of(0x31, last(at, 2)), two(), Status::SGL_TYPE_INVALID),
        (last(at, 2), vec![half(0), of(0x10, half(1))], Status::SGL_TYPE_INVALID),
        // Data too short and too long.
        (length(1023, whole), vec![], Status::SGL_LENGTH_INVALID),
        (length(1025, whole), vec![], Status::SGL_LENGTH_INVALID),
        (length(0, whole), vec![], Status::SGL_LENGTH_INVALID),
        (length(u32::MAX, whole), vec![], Status::SGL_LENGTH_INVALID),
        (last(at, 1), two(), Status::SGL_LENGTH_INVALID),
        (last(at, 3), vec![half(0), half(1), half(0)], Status::SGL_LENGTH_INVALID),
        // Segments of no descriptors, of parts of one, not at whole quadwords.
        (last(at, 0), two(), Status::SGL_SEGMENT_INVALID),
        (length(31, last(at, 2)), two(), Status::SGL_SEGMENT_INVALID),
        (segment(at, 0), two(), Status::SGL_SEGMENT_INVALID),
        (last(at + 4, 2), two(), Status::SGL_SEGMENT_INVALID),
        // The last leads on; one that is not leads nowhere; one leads on before its end.
        (last(at, 2), vec![half(0), last(more, 1)], Status::SGL_SEGMENT_INVALID),
        (segment(at, 2), two(), Status::SGL_SEGMENT_INVALID),
        (segment(at, 2), vec![last(more, 1), half(1)], Status::SGL_NUMBER_INVALID),
        // Too many, at once and in a ring.
        (last(at, MOST + 1), two(), Status::SGL_NUMBER_INVALID),
        (length(0xffff_fff0, last(at, 0)), two(), Status::SGL_NUMBER_INVALID),
        (segment(at, 1), vec![segment(at, 1)], Status::SGL_NUMBER_INVALID),
        // Not there: a list, a block, an address that wraps.
        (last(PAGE, 2), vec![], Status::DATA_TRANSFER_ERROR),
        (last(list.at(16 << 10), 2), vec![], Status::DATA_TRANSFER_ERROR),
        (last(!7, 2), vec![], Status::DATA_TRANSFER_ERROR),
        (block(data.at(8192 - 1023), 1024), vec![], Status::DATA_TRANSFER_ERROR),
        (last(at, 2), vec![half(0), block(PAGE, 512)], Status::DATA_TRANSFER_ERROR),
        (block(u64::MAX - 4, 1024), vec![], Status::DATA_TRANSFER_ERROR),
    ];
    for (first, descriptors, status) in cases {
        list.write(0, &bytes(&descriptors));
        for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE] {
            let ended = host.run(&mut pair, io(opcode, 0, 2).sgl(first));
            assert!(ended.is(status), "{opcode} {first:?} {descriptors:?}: {ended:x?}, not {status:x?}");
        }
    }
    assert_eq!(data.read::<8192>(0), [0x3c; 8192]);
    assert_eq!(host.run(&mut pair, io(nvm::READ, 0, 2).sgl(whole)).status, 0);
    assert_eq!(data.read::<1024>(0), [0; 1024], "nothing was written to the medium");
    // PRPs only: admin commands (section 4.1.2), and an SGL for metadata that does not exist.
    assert!(host.admin(Entry::new(admin::IDENTIFY, 0).set(10, 1).sgl(whole)).is(Status::INVALID_FIELD));
    let entry = io(nvm::READ, 0, 2).prp(data.at(0), 0);
    assert!(host.run(&mut pair, entry.set(0, entry.0[0] | 2 << 14)).is(Status::INVALID_FIELD));
}

/// Lists of noise: whatever they say, nothing outside of what is mapped for writing changes, and each ends.
#[test]
fn hostile_lists_are_bounded() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    let (data, list) = (host.area(8192), host.area(16 << 10));
    let source = area(&host.device, 4096, DmaAccess::Read);
    source.fill(0x77);
    let mut dice = Dice(1);
    let mut moved = 0;
    for _ in 0..5_000 {
        let mut any = || {
            let place = [list.at(0), data.at(0), source.at(0), 0, u64::MAX - 8192][dice.below(5) as usize];
            let id = [0, 0, 0x20, 0x30, dice.below(256) as u8][dice.below(5) as usize];
            let length = [0, 16, 512, dice.below(64) as u32 * 16, dice.number() as u32];
            let length = length[dice.below(5) as usize];
            SglDescriptor::new(id, place.wrapping_add(dice.below(2049) * 8), length)
        };
        let descriptors: Vec<SglDescriptor> = (0..1024).map(|_| any()).collect();
        list.write(0, &bytes(&descriptors));
        let ended = host.run(&mut pair, io(nvm::READ, 0, 1).sgl(any()));
        moved += u32::from(ended.status == 0);
    }
    assert!(moved > 0, "some are right");
    assert_eq!(source.read::<4096>(0), [0x77; 4096]);
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
}
