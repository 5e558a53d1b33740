//! What the controller says of itself: identify data (NVM Express Base 2.0c, section 5.17; NVM Command Set 1.0c,
//! section 4.1.5) and log pages (Base, section 5.16).

use std::sync::atomic::Ordering;

use zerocopy::{FromZeros, IntoBytes};

use super::admin::{ERROR_LOG, EVENT_LIMIT};
use super::controller::{Controller, Shape, VERSION};
use super::nvm::NAMESPACE;
use super::queue::SubmissionSlot;
use crate::spec::nvme::{
    Dlfeat, EventNotices, Flbas, IDENTIFY_LEN, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
    LbaFormat, Oacs, Oncs, Sgls, SmartLog, Vwc,
};

/// CNS: the namespace's descriptors.
pub(super) const DESCRIPTORS: u8 = 0x03;
/// WZSL: write zeroes of at most 8 MiB, so that one does not keep a poller for long.
pub(super) const ZEROES_SHIFT: u8 = 11;
const FIRMWARE: [u8; 8] = *b"1.0     ";

/// `text`'s printable ASCII, padded with blanks.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let printable = text.bytes().filter(|byte| (0x20..0x7f).contains(byte));
    field.iter_mut().zip(printable).for_each(|(to, from)| *to = from);
    field
}

/// A number made of the serial number, the same whenever it is the same (FNV-1a).
fn fingerprint(serial: &str) -> u64 {
    serial
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The controller.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
pub(super) fn controller(shape: &Shape) -> Vec<u8> {
    let mut id = IdentifyController::new_zeroed();
    id.sn = text(&shape.serial);
    id.mn = text("Portcullis software NVMe");
    id.fr = FIRMWARE;
    id.mdts = shape.transfer_shift;
    id.ver = VERSION.into();
    let mut oacs = Oacs(0);
    oacs.set_doorbell_buffer(shape.shadow_doorbells);
    id.oacs = oacs.0.into();
    id.acl_z = 3;
    id.aerl_z = EVENT_LIMIT as u8 - 1;
    id.frmw = 0b11; // one slot, read-only
    id.lpa = 1 << 2; // offsets in Get Log Page
    id.elpe_z = ERROR_LOG as u8 - 1;
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = NAMESPACE.into();
    let mut notices = EventNotices(0);
    notices.set_namespaces(true);
    id.oaes = notices.0.into();
    let mut sgls = Sgls(0);
    sgls.set_support(1);
    id.sgls = sgls.0.into();
    let mut oncs = Oncs(0);
    oncs.set_compare(true);
    oncs.set_dataset_management(true);
    oncs.set_write_zeroes(true);
    id.oncs = oncs.0.into();
    id.vwc = Vwc(0);
    id.vwc.set_present(shape.media.write_cache());
    id.vwc.set_flush_all(3);
    let name = format!("nqn.2026-11.portcullis:software-nvme:{:016x}", fingerprint(&shape.serial));
    id.subnqn[..name.len()].copy_from_slice(name.as_bytes());
    id.as_bytes().to_vec()
}

/// Limits of the NVM command set.
pub(super) fn command_set() -> Vec<u8> {
    let mut id = IdentifyControllerNvm::new_zeroed();
    id.wzsl = ZEROES_SHIFT;
    id.as_bytes().to_vec()
}

/// The namespace.
pub(super) fn namespace(controller: &Controller) -> Vec<u8> {
    let mut id = IdentifyNamespace::new_zeroed();
    let Some((blocks, block_shift)) = controller.namespace.get() else { return vec![0; IDENTIFY_LEN] };
    id.nsze = blocks.into();
    id.ncap = blocks.into();
    id.nuse = blocks.into();
    id.dlfeat = Dlfeat(0);
    id.dlfeat.set_read(1);
    id.dlfeat.set_deac(true);
    id.nguid = identifier(&controller.shape);
    // Both sizes of block, one of them in use.
    id.nlbaf_z = 1;
    id.flbas = Flbas(u8::from(block_shift == 12));
    for (at, lbads) in [(0, 9), (1, 12)] {
        let mut format = LbaFormat(0);
        format.set_lbads(lbads);
        id.lbaf[at] = format.into();
    }
    id.as_bytes().to_vec()
}

/// NGUID: told apart by the serial number.
fn identifier(shape: &Shape) -> [u8; 16] {
    let mut bytes = *b"portcull\0\0\0\0\0\0\0\0";
    bytes[8..].copy_from_slice(&fingerprint(&shape.serial).to_be_bytes());
    bytes
}

/// The active namespaces above `above`.
pub(super) fn active_namespaces(controller: &Controller, above: u32) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_LEN];
    if above < NAMESPACE && controller.namespace.get().is_some() {
        page[..4].copy_from_slice(&NAMESPACE.to_le_bytes());
    }
    page
}

/// One descriptor: type 2, NGUID, of 16 bytes.
pub(super) fn descriptors(shape: &Shape) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_LEN];
    page[..2].copy_from_slice(&[2, 16]);
    page[4..20].copy_from_slice(&identifier(shape));
    page
}

/// The namespaces that changed, if one did.
pub(super) fn changed_namespaces(changed: bool) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_LEN];
    if changed {
        page[..4].copy_from_slice(&NAMESPACE.to_le_bytes());
    }
    page
}

/// The SMART log.
pub(super) fn health(controller: &Controller) -> Vec<u8> {
    let sum = |counter: fn(&SubmissionSlot) -> u64| -> u128 {
        controller.submissions.iter().skip(1).map(|slot| u128::from(counter(slot))).sum()
    };
    let block_shift = controller.namespace.get().map_or(9, |(_, block_shift)| block_shift);
    let units = |blocks: u128| (blocks << block_shift >> 9).div_ceil(1000);
    let mut log = SmartLog::new_zeroed();
    log.composite_temperature = 300.into();
    log.available_spare = 100;
    log.available_spare_threshold = 10;
    log.data_units_read = units(sum(|slot| slot.traffic.blocks_read.load(Ordering::Relaxed))).into();
    log.data_units_written = units(sum(|slot| slot.traffic.blocks_written.load(Ordering::Relaxed))).into();
    log.host_read_commands = sum(|slot| slot.traffic.reads.load(Ordering::Relaxed)).into();
    log.host_write_commands = sum(|slot| slot.traffic.writes.load(Ordering::Relaxed)).into();
    log.error_log_entries = u128::from(controller.error_count()).into();
    log.as_bytes().to_vec()
}

/// The firmware slot log: the first slot is active.
pub(super) fn firmware() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    page[8..16].copy_from_slice(&FIRMWARE);
    page
}
