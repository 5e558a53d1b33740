//! Identify pages and capabilities that lie: a clear error or correct work, never a panic, never for long, and no byte of
//! memory that no command was given.
//!
//! `PORTCULLIS_SOAK=1` takes more seeds, `PORTCULLIS_SEED` chooses the first.
#![allow(clippy::cast_possible_truncation)] // noise and small numbers

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rig::{Rigged, RiggedRegisters, Rigging, command, ended, options, rigged};
use crate::block::{BlockQueue, Command, DeviceStatus, Operation, Segment, SubmitError};
use crate::dice::Dice;
use crate::dma::DmaBuffer;
use crate::emu::{EmuConfig, Emulator, Faults, RamMedia};
use crate::hal::{Device, DmaAccess, Registers};
use crate::nvme::{Controller, NvmeError, Queue, ResetProgress};
use crate::spec::nvme::{Cap, admin, cns, offset};

const DISK: u64 = 1 << 20;
const DATA: usize = 64 << 10;
const FILLER: u8 = 0x77;
/// No open, no reset and no command takes this long.
const BOUND: Duration = Duration::from_secs(20);

/// Zero, ones, one bit, the largest and its neighbours, noise.
fn extreme(dice: &mut Dice) -> u64 {
    match dice.below(8) {
        0 | 1 => 0,
        2 => u64::MAX,
        3 => u64::MAX - 1,
        4 => 1 << dice.below(64),
        5 => 1 + dice.below(4),
        6 => (1 << dice.below(64)) - 1,
        _ => dice.number(),
    }
}

/// Fields of the pages: page, first byte, bytes.
const FIELDS: [(u8, usize, usize); 50] = [
    // Controller: SN, MN, MDTS, CNTLID, VER, OAES, OACS, ACL, AERL, FRMW, LPA, ELPE, NPSS, SQES, CQES, MAXCMD, NN, ONCS,
    // FUSES, FNA, VWC, AWUN, AWUPF, SGLS, SUBNQN.
    (cns::CONTROLLER, 4, 8),
    (cns::CONTROLLER, 24, 8),
    (cns::CONTROLLER, 77, 1),
    (cns::CONTROLLER, 78, 2),
    (cns::CONTROLLER, 80, 4),
    (cns::CONTROLLER, 92, 4),
    (cns::CONTROLLER, 256, 2),
    (cns::CONTROLLER, 258, 1),
    (cns::CONTROLLER, 259, 1),
    (cns::CONTROLLER, 260, 1),
    (cns::CONTROLLER, 261, 1),
    (cns::CONTROLLER, 262, 1),
    (cns::CONTROLLER, 263, 1),
    (cns::CONTROLLER, 512, 1),
    (cns::CONTROLLER, 513, 1),
    (cns::CONTROLLER, 514, 2),
    (cns::CONTROLLER, 516, 4),
    (cns::CONTROLLER, 520, 2),
    (cns::CONTROLLER, 522, 2),
    (cns::CONTROLLER, 524, 1),
    (cns::CONTROLLER, 525, 1),
    (cns::CONTROLLER, 526, 2),
    (cns::CONTROLLER, 528, 2),
    (cns::CONTROLLER, 536, 4),
    (cns::CONTROLLER, 768, 8),
    // Namespace: NSZE, NCAP, NUSE, NSFEAT, NLBAF, FLBAS, MC, DPC, DPS, NMIC, RESCAP, FPI, DLFEAT, NOIOB, NGUID, EUI64,
    // the formats and the sizes of their blocks.
    (cns::NAMESPACE, 0, 8),
    (cns::NAMESPACE, 8, 8),
    (cns::NAMESPACE, 16, 8),
    (cns::NAMESPACE, 24, 1),
    (cns::NAMESPACE, 25, 1),
    (cns::NAMESPACE, 26, 1),
    (cns::NAMESPACE, 27, 1),
    (cns::NAMESPACE, 28, 1),
    (cns::NAMESPACE, 29, 1),
    (cns::NAMESPACE, 30, 1),
    (cns::NAMESPACE, 33, 1),
    (cns::NAMESPACE, 46, 2),
    (cns::NAMESPACE, 104, 8),
    (cns::NAMESPACE, 120, 8),
    (cns::NAMESPACE, 128, 4),
    (cns::NAMESPACE, 130, 1),
    (cns::NAMESPACE, 132, 4),
    (cns::NAMESPACE, 134, 1),
    // The NVM command set: VSL, WZSL, DMRSL, DMSL.
    (cns::CONTROLLER_COMMAND_SET, 0, 1),
    (cns::CONTROLLER_COMMAND_SET, 1, 1),
    (cns::CONTROLLER_COMMAND_SET, 4, 4),
    (cns::CONTROLLER_COMMAND_SET, 8, 8),
    // The active namespaces.
    (cns::ACTIVE_NAMESPACES, 0, 4),
    (cns::ACTIVE_NAMESPACES, 4, 4),
    (cns::ACTIVE_NAMESPACES, 4092, 4),
];

/// What is wrong with a page.
#[derive(Clone, Debug)]
enum Lie {
    Field(u8, usize, Vec<u8>),
    Noise(u8, u64),
}

fn lies(dice: &mut Dice) -> Vec<Lie> {
    let pages = [cns::CONTROLLER, cns::NAMESPACE, cns::CONTROLLER_COMMAND_SET, cns::ACTIVE_NAMESPACES];
    if dice.below(12) == 0 {
        return vec![Lie::Noise(pages[dice.below(4) as usize], dice.number())];
    }
    let field = |dice: &mut Dice| {
        let (page, at, len) = FIELDS[dice.below(FIELDS.len() as u64) as usize];
        Lie::Field(page, at, extreme(dice).to_le_bytes()[..len].to_vec())
    };
    (0..1 + dice.below(4)).map(|_| field(dice)).collect()
}

impl Lie {
    fn tell(&self, page: u32, data: &mut [u8]) {
        match self {
            Self::Field(of, at, bytes) if u32::from(*of) == page => {
                data[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Noise(of, seed) if u32::from(*of) == page => {
                let mut dice = Dice(*seed);
                data.fill_with(|| dice.number() as u8);
            }
            _ => {}
        }
    }
}

/// CAP with a field or two at an extreme; CAP.TO at most 3, so that waiting for it is short.
fn capabilities(dice: &mut Dice, honest: u64) -> u64 {
    let mut cap = Cap(honest);
    cap.set_to(dice.below(4) as u8);
    for _ in 0..dice.below(3) {
        let value = extreme(dice);
        match dice.below(8) {
            0 => cap.set_mqes_z(value as u16),
            1 => cap.set_cqr(value & 1 == 1),
            2 => cap.set_ams(value as u8 & 3),
            3 => cap.set_dstrd(value as u8 & 15),
            4 => cap.set_css(value as u8),
            5 => cap.set_mpsmin(value as u8 & 15),
            6 => cap.set_mpsmax(value as u8 & 15),
            _ => cap.0 ^= 1 << (dice.below(24) + 40),
        }
    }
    cap.0
}

#[derive(Default)]
struct Outcomes {
    refused: AtomicU64,
    worked: AtomicU64,
    commands: AtomicU64,
    errors: AtomicU64,
}

struct Bench {
    what: String,
    block_size: u32,
    controller: Controller<Rigged>,
    queue: Queue<RiggedRegisters>,
    data: DmaBuffer,
    /// The device kept a command.
    lost: bool,
}

impl Bench {
    fn run(&mut self, command: &Command, scattered: bool) -> Option<DeviceStatus> {
        let taken = if scattered {
            let bytes = command.blocks << self.queue.geometry().block_shift;
            self.queue.submit_scattered(command, &[Segment { data: command.data, bytes }])
        } else {
            self.queue.submit(command)
        };
        match taken {
            Ok(()) => {}
            Err(SubmitError::Invalid) => return None,
            Err(SubmitError::Down) if self.lost => return None,
            Err(error) => panic!("{}: {error}", self.what),
        }
        self.queue.commit();
        let mut all = ended(&mut self.queue);
        if all.is_empty() {
            // Doorbells that are elsewhere: it hears nothing. A reset ends what it has.
            self.lost = true;
            self.reset(&mut all);
        }
        assert!(all.len() == 1 && all[0].0 == command.tag, "{}: {all:?}", self.what);
        Some(all[0].1)
    }

    /// Writes and reads back at random places that there are, and at the ends of what the device claims.
    fn work(&mut self, dice: &mut Dice, outcomes: &Outcomes) {
        let geometry = *self.queue.geometry();
        let (size, there) = (geometry.block_size(), DISK / u64::from(self.block_size));
        let most = (DATA as u32 / 2 / size).min(geometry.max_transfer_blocks);
        for round in 0..12 {
            if self.lost {
                return;
            }
            let blocks = 1 + dice.below(u64::from(most)) as u32;
            let lba = match round {
                0 => geometry.blocks - u64::from(blocks).min(geometry.blocks),
                1 => dice.below(geometry.blocks),
                _ => dice.below(geometry.blocks.min(there).saturating_sub(u64::from(blocks)).max(1)),
            };
            let bytes = (blocks * size) as usize;
            let content: Vec<u8> = (0..bytes).map(|_| dice.number() as u8).collect();
            self.data.copy_in(0, &content);
            let half = self.data.iova(DATA / 2);
            let zeroes = Operation::WriteZeroes { deallocate: dice.below(2) == 0 };
            for other in [Operation::Flush, zeroes, Operation::Deallocate, Operation::Compare] {
                self.run(&command(other, lba, blocks, half), false);
            }
            let write = command(Operation::Write { fua: true }, lba, blocks, self.data.iova(0));
            let written = self.run(&write, dice.below(2) == 0);
            let read = self.run(&command(Operation::Read, lba, blocks, half), dice.below(2) == 0);
            outcomes.commands.fetch_add(2, Ordering::Relaxed);
            if written != Some(DeviceStatus::OK) || read != Some(DeviceStatus::OK) {
                outcomes.errors.fetch_add(1, Ordering::Relaxed);
            } else if size == self.block_size {
                let mut back = vec![0; bytes];
                self.data.copy_out(DATA / 2, &mut back);
                assert!(back == content, "{}: wrong data at {lba}", self.what);
            }
        }
    }

    fn reset(&mut self, all: &mut Vec<(u64, DeviceStatus)>) -> ResetProgress {
        self.controller.begin_reset();
        loop {
            let progress = self.controller.finish_reset();
            all.extend(ended(&mut self.queue));
            if progress != ResetProgress::Pending {
                return progress;
            }
        }
    }
}

fn lying(seed: u64, outcomes: &Outcomes) {
    let mut dice = Dice(seed);
    let block_size = if dice.below(2) == 0 { 512 } else { 4096 };
    let faults = Faults::new(seed);
    let media = Arc::new(RamMedia::new(DISK).unwrap());
    let shadow_doorbells = seed % 2 == 1;
    if seed % 4 == 3 {
        faults.lie_about_events(|event| event.wrapping_mul(0x9e37_79b9) >> 27);
    }
    let config = EmuConfig {
        block_size,
        queues: 2,
        shadow_doorbells,
        interposer: Some(faults.clone()),
        ..EmuConfig::new(media)
    };
    let emulator = Emulator::new(config).unwrap();
    let rigging = Arc::new(Rigging::default());
    let cap = capabilities(&mut dice, emulator.registers().read64(offset::CAP));
    rigging.read_as(offset::CAP, cap);
    if dice.below(8) == 0 {
        rigging.read_as(offset::VS, extreme(&mut dice) & 0xffff_ffff);
    }
    let told = lies(&mut dice);
    let what = format!("seed {seed}, CAP {cap:#x}, {told:?}");
    faults.edit_data(move |command, data| {
        if command.cdw0.opc() == admin::IDENTIFY {
            told.iter().for_each(|lie| lie.tell(command.cdw10 & 0xff, data));
        }
    });
    let canary = DmaBuffer::new(&*emulator.mapper(), DATA, DmaAccess::ReadWrite).unwrap();
    canary.copy_in(0, &[FILLER; DATA]);
    let start = Instant::now();
    match Controller::open_with(Rigged { emulator, rigging }, &options(1)) {
        Err(error) => {
            assert!(error.to_string().len() > 20, "{what}: {error}");
            outcomes.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(mut controller) => {
            let queue = controller.take_queue().unwrap();
            let data = DmaBuffer::new(&*controller.mapper(), DATA, DmaAccess::ReadWrite).unwrap();
            let mut bench = Bench { what: what.clone(), block_size, controller, queue, data, lost: false };
            bench.work(&mut dice, outcomes);
            if dice.below(4) == 0 && bench.reset(&mut Vec::new()) == ResetProgress::Done {
                bench.work(&mut dice, outcomes);
            }
            outcomes.worked.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert!(start.elapsed() < BOUND, "{what}: took {:?}", start.elapsed());
    let mut bytes = vec![0; DATA];
    canary.copy_out(0, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == FILLER), "{what}: memory of no command changed");
}

#[test]
fn identify_pages_that_lie_are_refused_or_do_no_harm() {
    let soak = std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1");
    let first = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0u64);
    let seeds = if soak { 10_000 } else { 400 };
    let outcomes = Outcomes::default();
    for seed in first..first.wrapping_add(seeds) {
        lying(seed, &outcomes);
    }
    let Outcomes { refused, worked, commands, errors } = outcomes;
    let [refused, worked, commands, errors] = [refused, worked, commands, errors].map(AtomicU64::into_inner);
    println!("{refused} refused, {worked} worked; {commands} commands, {errors} with errors");
    assert!(refused > seeds / 10 && worked > seeds / 10 && errors < commands / 2);
    println!("counted: {seeds} identify pages that lie");
}

/// The longest that CAP.TO can say is kept, and no longer than a controller needs is waited.
#[test]
fn the_longest_timeout_delays_nobody() {
    let (device, rigging) = rigged(512);
    let mut cap = Cap(device.emulator.registers().read64(offset::CAP));
    cap.set_to(255);
    cap.set_mqes_z(u16::MAX);
    rigging.read_as(offset::CAP, cap.0);
    let start = Instant::now();
    match Controller::open_with(device, &options(1)).map(|_| ()) {
        Ok(()) | Err(NvmeError::Admin { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}
