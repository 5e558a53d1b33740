//! Commands whose memory lies in pieces.

use driver::block::{Command, Completed, DeviceStatus, Geometry, Operation, Segment, SubmitError};
use driver::dice::Dice;
use driver::hal::Iova;

use super::io::{FILLER, Image, await_some, command};
use super::{Bench, Case, Memory, Needs};

pub(super) const CASES: &[Case] = &[
    Case { name: "scattered_memory_is_read_written_and_compared", needs: Needs::Data, run: there_and_back },
    Case { name: "scattered_commands_at_depth_keep_their_lists", needs: Needs::Data, run: at_depth },
    Case { name: "scatter_lists_that_do_not_fit_are_refused", needs: Needs::Queues, run: fit },
];

/// Pieces of one memory, in the order of the data: where, and how many bytes.
struct Scattered {
    memory: Memory,
    pieces: Vec<(usize, usize)>,
}

impl Scattered {
    /// `count` pieces of 1 to `most` blocks, in an order of their own, each at any place that is a multiple of 4, with
    /// a gap before and after it.
    fn new(bench: &Bench, count: usize, most: u64, dice: &mut Dice) -> Self {
        let size = bench.geometry().block_size() as usize;
        let mut end = 0;
        let mut pieces: Vec<(usize, usize)> = (0..count)
            .map(|_| {
                let blocks = usize::try_from(1 + dice.below(most)).expect("small");
                // Just before a page's end, at its start, anywhere.
                let gap = 64 + 4 * usize::try_from(dice.below(1024)).expect("small");
                let start = match dice.below(3) {
                    0 => (end + gap).next_multiple_of(4096),
                    1 => (end + gap).next_multiple_of(4096) + 4096 - 4,
                    _ => end + gap,
                };
                end = start + blocks * size;
                (start, blocks * size)
            })
            .collect();
        for at in (1..count).rev() {
            pieces.swap(at, usize::try_from(dice.below(at as u64 + 1)).expect("small"));
        }
        Self { memory: bench.memory(end + 64), pieces }
    }

    fn segments(&self) -> Vec<Segment> {
        let segment = |&(at, len): &(usize, usize)| Segment {
            data: self.memory.at(at),
            bytes: u32::try_from(len).expect("small"),
        };
        self.pieces.iter().map(segment).collect()
    }

    fn blocks(&self, geometry: &Geometry) -> u32 {
        let bytes: usize = self.pieces.iter().map(|(_, len)| len).sum();
        u32::try_from(bytes >> geometry.block_shift).expect("small")
    }

    fn fill(&self, content: &[u8]) {
        self.memory.fill(FILLER);
        let mut rest = content;
        for &(at, len) in &self.pieces {
            let (piece, more) = rest.split_at(len);
            self.memory.write(at, piece);
            rest = more;
        }
    }

    /// Panics unless the pieces hold `content`, byte for byte, and nothing around them has changed.
    fn check(&self, content: &[u8], what: &str) {
        let mut expected = vec![FILLER; self.memory.len()];
        let mut rest = content;
        for &(at, len) in &self.pieces {
            let (piece, more) = rest.split_at(len);
            expected[at..at + len].copy_from_slice(piece);
            rest = more;
        }
        let found = self.memory.read(0, self.memory.len());
        if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
            let (found, expected) = (found[at], expected[at]);
            panic!("{what}: byte {at} is {found:#04x}, not {expected:#04x}; pieces {:?}", self.pieces);
        }
    }
}

fn run(bench: &mut Bench, operation: Operation, lba: u64, scattered: &Scattered) -> DeviceStatus {
    let blocks = scattered.blocks(&bench.geometry());
    // The address that means nothing is one that would be noticed.
    let command = Command { tag: lba, ..command(operation, lba, blocks, Iova(0x1003)) };
    bench.queue().submit_scattered(&command, &scattered.segments()).expect("room and a list that fits");
    bench.queue().commit();
    let ended = await_some(bench.queue());
    assert_eq!((ended.len(), ended[0].tag, bench.queue().outstanding()), (1, lba, 0));
    ended[0].status
}

/// Numbers of segments: 1, 2, 3, one less than there may be, and as many as there may be.
fn counts(geometry: &Geometry) -> Vec<usize> {
    let most = geometry.max_segments;
    let mut counts: Vec<usize> =
        [1, 2, 3, most.saturating_sub(1).max(1), most].map(|n| n.min(most) as usize).to_vec();
    counts.sort_unstable();
    counts.dedup();
    counts
}

fn there_and_back(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 20);
    let span = u64::from(geometry.max_transfer_blocks) + 16;
    let mut image = Image::new(bench.queue(), &memory, 0, span, 90);
    let mut dice = Dice(91);
    for count in counts(&geometry) {
        for round in 0..8 {
            let most = match round {
                0 => 1,
                _ => (u64::from(geometry.max_transfer_blocks) / count as u64).min(24),
            };
            let scattered = Scattered::new(bench, count, most, &mut dice);
            let content = dice.bytes((scattered.blocks(&geometry) as usize) << geometry.block_shift);
            let lba = dice.below(16);
            scattered.fill(&content);
            let write = Operation::Write { fua: round == 1 };
            assert_eq!(run(bench, write, lba, &scattered), DeviceStatus::OK);
            scattered.check(&content, "a write changed its source");
            image.set(lba, &content);
            let other = Scattered { pieces: rotated(&scattered.pieces), memory: scattered.memory };
            other.memory.fill(FILLER);
            assert_eq!(run(bench, Operation::Read, lba, &other), DeviceStatus::OK);
            other.check(&content, "a read");
            if geometry.compare {
                assert_eq!(run(bench, Operation::Compare, lba, &other), DeviceStatus::OK);
                let mut unlike = content.clone();
                let at = usize::try_from(dice.below(content.len() as u64)).expect("small");
                unlike[at] ^= 1;
                other.fill(&unlike);
                assert_eq!(run(bench, Operation::Compare, lba, &other), DeviceStatus::COMPARE_FAILURE);
                other.check(&unlike, "a compare changed its source");
            }
        }
        image.verify(bench.queue(), &memory);
    }
}

/// The same pieces in another order.
fn rotated(pieces: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut pieces = pieces.to_vec();
    pieces.rotate_left(1);
    pieces
}

/// Each command has its list to itself while others come and go, among them those with PRP lists in the same places.
fn at_depth(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 20);
    let span = u64::from(geometry.max_transfer_blocks) + 256;
    let image = Image::new(bench.queue(), &memory, 0, span, 92);
    let mut dice = Dice(93);
    for _ in 0..30 {
        let commands: Vec<(u64, Scattered, bool)> = (0..24)
            .map(|_| {
                let whole = dice.below(3) == 0;
                let count = if whole { 1 } else { 1 + dice.below(u64::from(geometry.max_segments)) };
                let most = (u64::from(geometry.max_transfer_blocks) / count).min(if whole { 64 } else { 8 });
                let count = usize::try_from(count).expect("small");
                (dice.below(200), Scattered::new(bench, count, most, &mut dice), whole)
            })
            .collect();
        for (tag, (lba, scattered, whole)) in (0..).zip(&commands) {
            let segments = scattered.segments();
            let blocks = scattered.blocks(&geometry);
            let command = Command { tag, ..command(Operation::Read, *lba, blocks, segments[0].data) };
            let queue = bench.queue();
            let taken =
                if *whole { queue.submit(&command) } else { queue.submit_scattered(&command, &segments) };
            taken.expect("room and a list that fits");
        }
        bench.queue().commit();
        let mut ended = 0;
        while ended < commands.len() {
            for Completed { tag, status } in await_some(bench.queue()) {
                let (lba, scattered, _) = &commands[usize::try_from(tag).expect("a tag of ours")];
                assert_eq!(status, DeviceStatus::OK);
                scattered.check(image.get(*lba, scattered.blocks(&geometry)), "a read at depth");
                ended += 1;
            }
        }
        assert_eq!(bench.queue().outstanding(), 0);
    }
}

fn fit(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 20);
    let (size, at) = (geometry.block_size(), memory.at(0));
    let most = geometry.max_segments;
    let segment = |offset: u64, bytes: u32| Segment { data: Iova(at.0 + offset), bytes };
    let whole = segment(0, size);
    let many = |count: u32| vec![whole; count as usize];
    let mut wrong: Vec<(u32, Vec<Segment>)> = vec![
        (0, vec![]),
        (1, vec![]),
        (2, many(1)),
        (1, vec![segment(0, 2 * size)]),
        (1, vec![segment(0, size / 2), segment(0, size / 2)]),
        (1, vec![segment(1, size)]),
        (1, vec![segment(2, size)]),
        (1, vec![whole, segment(0, 0)]),
        (1, vec![Segment { data: Iova(u64::MAX - 3), bytes: size }]),
        (most + 1, many(most + 1)),
        (u32::MAX, vec![segment(0, u32::MAX)]),
        (geometry.max_transfer_blocks + 1, vec![segment(0, (geometry.max_transfer_blocks + 1) * size)]),
    ];
    if most > 1 {
        wrong.push((2, vec![whole, segment(3, size)]));
        wrong.push((2, vec![segment(0, size + 4), segment(0, size - 4)]));
        wrong.push((2, vec![whole, segment(0, 2 * size)]));
    }
    let operations = [Operation::Read, Operation::Write { fua: false }, Operation::Compare];
    for (blocks, segments) in wrong {
        for operation in operations {
            let command = command(operation, 0, blocks, at);
            let refused = bench.queue().submit_scattered(&command, &segments);
            assert_eq!(refused, Err(SubmitError::Invalid), "{command:?} {segments:?}");
        }
    }
    // No data, no list; blocks that are not there.
    let zeroes = Operation::WriteZeroes { deallocate: false };
    for (operation, lba) in
        [(Operation::Flush, 0), (zeroes, 0), (Operation::Deallocate, 0), (Operation::Read, geometry.blocks)]
    {
        let refused = bench.queue().submit_scattered(&command(operation, lba, 1, at), &[whole]);
        assert_eq!(refused, Err(SubmitError::Invalid), "{operation:?}");
    }
    assert_eq!(bench.queue().outstanding(), 0);
}
