//! A queue over plain memory, with the faults that a disk must survive.
#![allow(unsafe_code)] // it plays the device: it copies to and from memory by address

use std::collections::VecDeque;

use super::*;
use crate::block::{Completed, Segment};
use crate::hal::Iova;

const BASE: u64 = 0x4000_0000;

struct Memory(memmap2::MmapRaw);

// SAFETY: an anonymous private mapping is page-aligned, readable and writable and stays where it is until dropped.
unsafe impl PinnedMemory for Memory {
    fn start(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

fn memory(bytes: usize) -> Arc<Memory> {
    Arc::new(Memory(memmap2::MmapMut::map_anon(bytes).unwrap().into()))
}

struct Identity;

struct Mapped(Arc<dyn PinnedMemory>);

impl Mapper for Identity {
    fn map(&self, memory: Arc<dyn PinnedMemory>, access: DmaAccess) -> Result<Box<dyn Mapping>, DmaError> {
        assert_eq!(access, DmaAccess::ReadWrite);
        Ok(Box::new(Mapped(memory)))
    }
    fn mappings(&self) -> u64 {
        0
    }
}

impl Mapping for Mapped {
    fn iova(&self) -> Iova {
        Iova(BASE)
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Commands on this block end with an error.
    bad_block: Option<u64>,
    /// Nothing ever ends.
    silent: bool,
    /// So many commands are ended by a reset before one goes through.
    resets: u32,
    gone: bool,
}

struct Device {
    geometry: Geometry,
    content: Vec<u8>,
    memory: Arc<Memory>,
    depth: usize,
    submitted: VecDeque<Command>,
    committed: VecDeque<Command>,
    most: usize,
    flushes: u32,
    faults: Faults,
}

impl Device {
    fn new(block_shift: u8, memory: Arc<Memory>) -> Self {
        let geometry = Geometry {
            block_shift,
            blocks: 256,
            max_transfer_blocks: 3,
            max_segments: 1,
            max_zeroes_blocks: 7,
            write_cache: true,
            write_zeroes: true,
            deallocate: true,
            deallocate_zeroes: false,
            compare: false,
        };
        Self {
            geometry,
            content: vec![0xee; 256 << block_shift],
            memory,
            depth: 4,
            submitted: VecDeque::new(),
            committed: VecDeque::new(),
            most: 0,
            flushes: 0,
            faults: Faults::default(),
        }
    }

    fn execute(&mut self, command: &Command) -> DeviceStatus {
        if self.faults.resets > 0 {
            self.faults.resets -= 1;
            return DeviceStatus::ABORTED;
        }
        let blocks = command.lba..command.lba + u64::from(command.blocks);
        if self.faults.bad_block.is_some_and(|bad| blocks.contains(&bad)) {
            return DeviceStatus::READ_ERROR;
        }
        let shift = self.geometry.block_shift;
        let range =
            usize::try_from(blocks.start << shift).unwrap()..usize::try_from(blocks.end << shift).unwrap();
        let content = &mut self.content[range];
        let offset = usize::try_from(command.data.0 - BASE).unwrap();
        if command.operation.moves_data() {
            assert!(offset + content.len() <= self.memory.len());
        }
        let data = self.memory.start().wrapping_add(offset);
        match command.operation {
            // SAFETY: in bounds (asserted above), and the disk does not touch its buffer while commands are out.
            Operation::Read => unsafe { data.copy_from_nonoverlapping(content.as_ptr(), content.len()) },
            // SAFETY: as above.
            Operation::Write { .. } => unsafe {
                data.copy_to_nonoverlapping(content.as_mut_ptr(), content.len());
            },
            Operation::WriteZeroes { .. } => content.fill(0),
            Operation::Flush => self.flushes += 1,
            Operation::Deallocate => content.fill(0xdd),
            Operation::Compare => unreachable!(),
        }
        DeviceStatus::OK
    }
}

impl BlockQueue for Device {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        if self.faults.gone {
            return Err(SubmitError::Down);
        }
        let most = match command.operation {
            Operation::WriteZeroes { .. } | Operation::Deallocate => self.geometry.max_zeroes_blocks,
            _ => self.geometry.max_transfer_blocks,
        };
        assert!(command.blocks <= most);
        assert_eq!(command.blocks == 0, command.operation == Operation::Flush);
        if self.outstanding() == self.depth {
            return Err(SubmitError::Full);
        }
        self.submitted.push_back(*command);
        self.most = self.most.max(self.outstanding());
        Ok(())
    }
    fn submit_scattered(&mut self, _: &Command, _: &[Segment]) -> Result<(), SubmitError> {
        unreachable!("a disk's buffer is contiguous")
    }
    fn commit(&mut self) {
        self.committed.append(&mut self.submitted);
    }
    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        if self.faults.silent {
            return 0;
        }
        let mut count = 0;
        while count < budget.min(2)
            && let Some(command) = self.committed.pop_back()
        {
            let status = self.execute(&command);
            ended(Completed { tag: command.tag, status });
            count += 1;
        }
        count
    }
    fn outstanding(&self) -> usize {
        self.submitted.len() + self.committed.len()
    }
    fn state(&self) -> QueueState {
        if self.faults.gone { QueueState::Gone } else { QueueState::Running }
    }
    fn arm_interrupt(&mut self, _armed: bool) {}
}

fn disk(block_shift: u8) -> BlockingQueue<Device> {
    let memory = memory(40 << 10);
    BlockingQueue::new(Device::new(block_shift, memory.clone()), &Identity, memory).unwrap()
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

#[test]
fn transfers_larger_than_the_bounce_buffer_keep_their_order() {
    for shift in [9, 12] {
        let mut disk = disk(shift);
        let data = pattern(101 << shift);
        disk.write(3, &data).unwrap();
        let mut back = vec![0; data.len()];
        disk.read(3, &mut back).unwrap();
        assert!(data == back);
        assert_eq!(disk.queue.content[(3 << shift) - 1], 0xee, "the block before is untouched");
        assert_eq!(disk.queue.content[104 << shift], 0xee, "the block after is untouched");
        assert_eq!(disk.queue.most, 4, "several commands are in flight");
    }
}

#[test]
fn zeroes_are_written_with_and_without_the_command() {
    for command in [true, false] {
        let mut disk = disk(12);
        disk.queue.geometry.write_zeroes = command;
        disk.write_zeroes(5, 100).unwrap();
        let zero: Vec<u64> = (0..256)
            .filter(|lba| disk.queue.content[*lba << 12..][..4096] == [0; 4096])
            .map(|lba| lba as u64)
            .collect();
        assert_eq!(zero, (5..105).collect::<Vec<u64>>());
    }
}

#[test]
fn flush_reaches_the_device_once() {
    let mut disk = disk(9);
    disk.flush().unwrap();
    assert_eq!(disk.queue.flushes, 1);
}

#[test]
fn deallocate_is_a_hint() {
    let mut disk = disk(9);
    disk.deallocate(0, 20).unwrap();
    assert_eq!(disk.queue.content[..20 << 9], [0xdd; 20 << 9]);
    disk.queue.geometry.deallocate = false;
    disk.deallocate(20, 20).unwrap();
    assert_eq!(disk.queue.content[20 << 9], 0xee);
}

#[test]
fn ranges_beyond_the_end_and_parts_of_blocks_are_refused() {
    let mut disk = disk(9);
    let bounds = |result: Result<(), DiskError>| assert_eq!(result.unwrap_err().cause, DiskFault::Bounds);
    bounds(disk.read(255, &mut [0; 1024]));
    bounds(disk.write(u64::MAX, &[0; 512]));
    bounds(disk.read(0, &mut [0; 100]));
    bounds(disk.write_zeroes(200, u64::MAX));
    bounds(disk.deallocate(256, 1));
    assert_eq!(disk.queue.most, 0, "the device saw nothing");
}

#[test]
fn an_error_names_the_block_and_leaves_the_disk_usable() {
    let mut disk = disk(9);
    disk.queue.faults.bad_block = Some(42);
    let error = disk.read(0, &mut vec![0; 256 << 9]).unwrap_err();
    assert_eq!(
        error,
        DiskError { what: "read", lba: 42, cause: DiskFault::Status(DeviceStatus::READ_ERROR) }
    );
    assert_eq!(error.to_string(), "read at device block 42: the device reports sct 2h sc 81h");
    assert_eq!(disk.queue.outstanding(), 0);
    disk.read(0, &mut [0; 42 << 9]).unwrap();
}

#[test]
fn commands_that_a_reset_ended_are_issued_again() {
    let mut disk = disk(9);
    disk.queue.faults.resets = 2;
    let data = pattern(4096);
    disk.write(0, &data).unwrap();
    assert_eq!(disk.queue.content[..4096], data);
    disk.queue.faults.resets = 1000;
    assert_eq!(disk.flush().unwrap_err().cause, DiskFault::Status(DeviceStatus::ABORTED));
}

#[test]
fn a_silent_device_ends_in_a_timeout_and_its_buffer_is_never_freed() {
    let memory = memory(8192);
    let kept = Arc::downgrade(&memory);
    let mut device = Device::new(9, memory.clone());
    device.faults.silent = true;
    let mut disk =
        BlockingQueue::new(device, &Identity, memory).unwrap().with_patience(Duration::from_millis(20));
    assert_eq!(disk.read(0, &mut [0; 512]).unwrap_err().cause, DiskFault::Timeout);
    // Even if it wakes up later.
    disk.queue.faults.silent = false;
    assert_eq!(disk.read(0, &mut [0; 512]).unwrap_err().cause, DiskFault::Gone);
    assert_eq!(disk.flush().unwrap_err().cause, DiskFault::Gone);
    drop(disk);
    assert!(kept.upgrade().is_some(), "the device may still write it");
}

#[test]
fn a_device_that_is_gone_says_so_at_once() {
    let mut disk = disk(9);
    disk.queue.faults.gone = true;
    assert_eq!(disk.write(0, &[0; 512]).unwrap_err().cause, DiskFault::Gone);
}

#[test]
fn a_memory_disk_loses_only_what_was_not_flushed() {
    let mut torn = 0;
    for seed in 0..50 {
        let mut disk = MemoryDisk::new(12, 16);
        disk.write(0, &[1; 8192]).unwrap();
        disk.flush().unwrap();
        disk.write(1, &[2; 8192]).unwrap();
        disk.clone().power_cut(seed);
        let mut data = [0; 4 * 4096];
        disk.read(0, &mut data).unwrap();
        assert_eq!(data[..4096], [1; 4096]);
        for (sector, old) in
            data[4096..8192].chunks(512).map(|s| (s, 1)).chain(data[8192..12288].chunks(512).map(|s| (s, 0)))
        {
            assert!(sector == [old; 512] || sector == [2; 512]);
        }
        torn += u32::from(data[4096..8192].contains(&1) && data[4096..8192].contains(&2));
        assert_eq!(data[12288..], [0; 4096]);
    }
    assert!(torn > 3, "some cuts tear a block");
}

#[test]
fn the_power_goes_at_the_step_that_was_asked_for() {
    let mut disk = MemoryDisk::new(9, 16);
    disk.power_off_at(1);
    disk.write(0, &[1; 512]).unwrap();
    assert_eq!(disk.write(1, &[2; 512]).unwrap_err().cause, DiskFault::Gone);
    assert_eq!(disk.flush().unwrap_err().cause, DiskFault::Gone);
    assert_eq!(disk.read(0, &mut [0; 512]).unwrap_err().cause, DiskFault::Gone);
    disk.power_cut(0);
    disk.read(0, &mut [0; 512]).unwrap();
}
