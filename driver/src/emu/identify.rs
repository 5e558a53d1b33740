//! What the controller says of itself: identify data (NVM Express Base 2.0c section 5.17, NVM Command Set 1.0c section
//! 4.1.5) and log pages (Base section 5.16).

use std::sync::atomic::Ordering;

use super::admin::{ERROR_LOG, EVENT_LIMIT};
use super::controller::{Controller, Shape};
use super::nvm::NAMESPACE;
use super::queue::SubmissionSlot;

const FIRMWARE: &[u8; 8] = b"1.0     ";
const PAGE: usize = 4096;

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// ASCII, padded with spaces.
fn put_text(page: &mut [u8], at: usize, len: usize, text: &str) {
    page[at..at + len].fill(b' ');
    let printable = text.bytes().filter(|byte| (0x20..0x7f).contains(byte));
    for (to, from) in page[at..at + len].iter_mut().zip(printable) {
        *to = from;
    }
}

/// A number made of the serial number, the same whenever it is the same (FNV-1a).
fn fingerprint(serial: &str) -> u64 {
    serial.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// CNS 01h.
pub(super) fn controller(shape: &Shape) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    put_text(&mut page, 4, 20, &shape.serial); // SN
    put_text(&mut page, 24, 40, "Portcullis software NVMe"); // MN
    put(&mut page, 64, FIRMWARE); // FR
    page[72] = 0; // RAB
    page[77] = shape.transfer_shift; // MDTS
    put(&mut page, 80, &0x0001_0400u32.to_le_bytes()); // VER
    page[111] = 1; // CNTRLTYPE: I/O controller
    page[258] = 3; // ACL: four aborts
    page[259] = EVENT_LIMIT as u8 - 1; // AERL
    page[260] = 0x3; // FRMW: one slot, read-only
    page[261] = 1 << 2; // LPA: offsets in Get Log Page
    page[262] = ERROR_LOG as u8 - 1; // ELPE
    put(&mut page, 266, &343u16.to_le_bytes()); // WCTEMP, K
    put(&mut page, 268, &353u16.to_le_bytes()); // CCTEMP, K
    page[512] = 0x66; // SQES
    page[513] = 0x44; // CQES
    put(&mut page, 516, &NAMESPACE.to_le_bytes()); // NN
    put(&mut page, 520, &0x000du16.to_le_bytes()); // ONCS: compare, dataset management, write zeroes
    page[525] = if shape.media.write_cache() { 0b111 } else { 0b110 }; // VWC; flush takes the broadcast NSID
    let name = format!(
        "nqn.2026-11.portcullis:software-nvme:{:016x}",
        fingerprint(&shape.serial)
    );
    put(&mut page, 768, name.as_bytes()); // SUBNQN
    put(&mut page, 2048, &2500u16.to_le_bytes()); // PSD0: 25 W
    page
}

/// CNS 00h.
pub(super) fn namespace(shape: &Shape) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    for at in [0, 8, 16] {
        put(&mut page, at, &shape.blocks.to_le_bytes()); // NSZE, NCAP, NUSE
    }
    page[25] = 1; // NLBAF: two formats
    page[26] = if shape.block_shift == 9 { 0 } else { 1 }; // FLBAS
    page[33] = 1 | 1 << 3; // DLFEAT: deallocated blocks read as zero; write zeroes may deallocate
    put(&mut page, 104, &identifier(shape)); // NGUID
    page[128 + 2] = 9; // LBAF0: LBADS 512
    page[132 + 2] = 12; // LBAF1: LBADS 4096
    page
}

/// NGUID: ours by its zero extension part, told apart by the serial number.
fn identifier(shape: &Shape) -> [u8; 16] {
    let mut bytes = *b"portcull\0\0\0\0\0\0\0\0";
    bytes[8..].copy_from_slice(&fingerprint(&shape.serial).to_be_bytes());
    bytes
}

/// CNS 02h: the active namespaces above `above`.
pub(super) fn active_namespaces(above: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    if above < NAMESPACE {
        put(&mut page, 0, &NAMESPACE.to_le_bytes());
    }
    page
}

/// CNS 03h: one descriptor, the NGUID.
pub(super) fn descriptors(shape: &Shape) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    put(&mut page, 0, &[2, 16]);
    put(&mut page, 4, &identifier(shape));
    page
}

/// Log page 02h: SMART / health.
pub(super) fn health(controller: &Controller) -> Vec<u8> {
    let sum = |counter: fn(&SubmissionSlot) -> u64| -> u128 {
        controller
            .submissions
            .iter()
            .skip(1)
            .map(|slot| u128::from(counter(slot)))
            .sum()
    };
    // Data units are thousands of 512-byte blocks, rounded up.
    let units = |blocks: u128| ((blocks << controller.shape.block_shift >> 9).div_ceil(1000)).to_le_bytes();
    let mut page = vec![0; 512];
    put(&mut page, 1, &300u16.to_le_bytes()); // composite temperature, K
    page[3] = 100; // available spare, %
    page[4] = 10; // its threshold, %
    put(
        &mut page,
        32,
        &units(sum(|slot| slot.traffic.blocks_read.load(Ordering::Relaxed))),
    );
    put(
        &mut page,
        48,
        &units(sum(|slot| slot.traffic.blocks_written.load(Ordering::Relaxed))),
    );
    put(
        &mut page,
        64,
        &sum(|slot| slot.traffic.reads.load(Ordering::Relaxed)).to_le_bytes(),
    );
    put(
        &mut page,
        80,
        &sum(|slot| slot.traffic.writes.load(Ordering::Relaxed)).to_le_bytes(),
    );
    put(
        &mut page,
        176,
        &u128::from(controller.error_count()).to_le_bytes(),
    );
    page
}

/// Log page 03h: firmware slots.
pub(super) fn firmware() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    put(&mut page, 8, FIRMWARE);
    page
}
