//! What a controller says of itself, checked once and turned into what the driver and its callers use.

use crate::block::Geometry;
use crate::spec::nvme::{Cap, IdentifyController, IdentifyControllerNvm, IdentifyNamespace, css};

use super::{NvmeError, prp, sgl};

/// The largest transfer that one page of PRP list covers at any offset, in bytes.
pub(super) const MAX_TRANSFER: u64 = 512 * prp::PAGE;
/// NLB has 16 bits and counts from zero (NVM 1.0, 3.2).
const MAX_NLB: u64 = 1 << 16;

/// Which device this is. Text is printable ASCII, without the padding; anything else was replaced by `?`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// NVMe qualified name of the subsystem; empty if it has none.
    pub nqn: String,
    /// Controller id.
    pub controller: u16,
    /// The namespace that the queues work on.
    pub namespace: u32,
    /// Its IEEE extended unique id.
    pub eui64: Option<[u8; 8]>,
    /// Its globally unique id.
    pub nguid: Option<[u8; 16]>,
}

impl Identity {
    pub(super) fn new(controller: &IdentifyController, nsid: u32, namespace: &IdentifyNamespace) -> Self {
        Self {
            model: text(&controller.mn),
            serial: text(&controller.sn),
            firmware: text(&controller.fr),
            nqn: text(&controller.subnqn),
            controller: controller.cntlid.get(),
            namespace: nsid,
            eui64: Some(namespace.eui64).filter(|id| *id != [0; 8]),
            nguid: Some(namespace.nguid).filter(|id| *id != [0; 16]),
        }
    }
}

/// Text from a device, fit to be shown: cut at the first zero, blanks at the ends dropped.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let printable = bytes[..end].iter().map(|&b| if matches!(b, b' '..=b'~') { char::from(b) } else { '?' });
    printable.collect::<String>().trim().to_owned()
}

/// Refuses a controller that this driver cannot drive.
pub(super) fn check_capabilities(cap: Cap) -> Result<(), NvmeError> {
    let refuse = |what: String| Err(NvmeError::Unsupported(what));
    if cap.mpsmin() > 0 {
        return refuse(format!("its smallest memory page is {} KiB, not 4", 4u32 << cap.mpsmin()));
    }
    if cap.mqes_z() == 0 {
        return refuse("its queues have one entry; two are needed".to_owned());
    }
    if cap.css() & (css::NVM | css::IO_COMMAND_SETS) == 0 {
        return refuse(format!("it has no I/O command set (CAP.CSS {:02x}h)", cap.css()));
    }
    Ok(())
}

/// Refuses queue entries of other sizes than 64 and 16 bytes.
pub(super) fn check_entry_sizes(id: &IdentifyController) -> Result<(), NvmeError> {
    let allows = |sizes: u8, shift: u8| (sizes & 0xf) <= shift && shift <= sizes >> 4;
    if allows(id.sqes, 6) && allows(id.cqes, 4) {
        return Ok(());
    }
    let what = format!(
        "its queue entries are not of 64 and 16 bytes (SQES {:02x}h, CQES {:02x}h)",
        id.sqes, id.cqes
    );
    Err(NvmeError::Unsupported(what))
}

/// What a namespace can do, besides its shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Traits {
    pub(super) geometry: Geometry,
    /// Write Zeroes takes the deallocate bit.
    pub(super) zeroes_deallocate: bool,
    /// A deallocate is done as Write Zeroes with the deallocate bit, since Dataset Management is only a hint: the
    /// controller may leave the content as it was (NVM 1.0, 3.2.3).
    pub(super) deallocate_by_zeroes: bool,
}

impl Traits {
    /// Refuses what is not plain blocks of 512 or 4096 bytes. `limits` is what the NVM command set says of the
    /// controller, if it says anything.
    pub(super) fn new(
        id: &IdentifyController,
        limits: Option<&IdentifyControllerNvm>,
        nsid: u32,
        ns: &IdentifyNamespace,
    ) -> Result<Self, NvmeError> {
        let refuse = |what: String| Err(NvmeError::Namespace { nsid, what });
        let Some(format) = ns.format() else {
            return refuse(format!("its LBA format {:02x}h does not exist", ns.flbas.0));
        };
        let (shift, metadata) = (format.bits().lbads(), format.bits().ms());
        if shift != 9 && shift != 12 {
            return refuse(format!("its blocks have 2^{shift} bytes; 512 and 4096 are supported"));
        }
        if metadata != 0 || ns.dps & 7 != 0 {
            return refuse(format!(
                "it is formatted with {metadata} bytes of metadata and protection type {}; format it without",
                ns.dps & 7
            ));
        }
        let blocks = ns.nsze.get();
        if blocks == 0 || blocks > (i64::MAX as u64) >> shift {
            return refuse(format!("it claims {blocks} blocks"));
        }
        let (oncs, dlfeat) = (id.oncs(), ns.dlfeat);
        let zeroes_deallocate = oncs.write_zeroes() && dlfeat.deac();
        // Deallocated blocks read as zero (NVM 1.0, 4.1.5: DLFEAT).
        let deallocate_by_zeroes = zeroes_deallocate && dlfeat.read() == 1;
        let blocks_of = |bytes: u64| u32::try_from((bytes >> shift).clamp(1, MAX_NLB)).unwrap_or(1);
        let dmrsl = limits.map_or(0, |limits| limits.dmrsl.get());
        let wzsl = limits.map_or(0, |limits| limits.wzsl);
        let max_zeroes = blocks_of(pages(wzsl).unwrap_or(u64::MAX));
        // Blocks of one range, and of all ranges of a command (NVM 1.0, 4.1.6: DMRSL, DMSL; 0: no limit).
        let dmsl = limits.map_or(0, |limits| u32::try_from(limits.dmsl.get()).unwrap_or(u32::MAX));
        let most_by_ranges = [dmrsl, dmsl].into_iter().filter(|most| *most > 0).min().unwrap_or(u32::MAX);
        let by_ranges = oncs.dataset_management() && !deallocate_by_zeroes;
        let max_transfer_blocks = blocks_of(pages(id.mdts).unwrap_or(MAX_TRANSFER).min(MAX_TRANSFER));
        // Whole dwords are what segments are made of; 3 is reserved (Base 2.0, 5.17.2.1: SGLS).
        let sgl = matches!(id.sgls().support(), 1 | 2);
        let geometry = Geometry {
            block_shift: shift,
            blocks,
            max_transfer_blocks,
            max_segments: if sgl { sgl::MOST.min(max_transfer_blocks) } else { 1 },
            max_zeroes_blocks: if by_ranges { max_zeroes.min(most_by_ranges) } else { max_zeroes },
            write_cache: id.vwc.present(),
            write_zeroes: oncs.write_zeroes(),
            deallocate: oncs.dataset_management() || deallocate_by_zeroes,
            deallocate_zeroes: deallocate_by_zeroes,
            compare: oncs.compare(),
        };
        Ok(Self { geometry, zeroes_deallocate, deallocate_by_zeroes })
    }
}

impl Traits {
    /// Whether commands that were checked against these fit a namespace of `now`: all is the same, but that it may have
    /// grown.
    pub(super) fn hold_for(&self, now: &Self) -> bool {
        let blocks = self.geometry.blocks;
        let cut = Self { geometry: Geometry { blocks, ..now.geometry }, ..*now };
        blocks <= now.geometry.blocks && *self == cut
    }
}

/// A limit in powers of two of pages, in bytes; `None` for none.
fn pages(shift: u8) -> Option<u64> {
    (shift != 0).then(|| if shift < 32 { prp::PAGE << shift } else { u64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::{FromBytes, FromZeros};

    use super::*;
    use crate::spec::nvme::{Dlfeat, Flbas, LbaFormat, Lbaf, Oncs, Vwc};

    fn controller() -> IdentifyController {
        let mut id = IdentifyController::new_zeroed();
        let mut oncs = Oncs(0);
        oncs.set_compare(true);
        oncs.set_dataset_management(true);
        oncs.set_write_zeroes(true);
        id.oncs.set(oncs.0);
        id.mdts = 5;
        id.vwc = Vwc(1);
        (id.sqes, id.cqes) = (0x66, 0x44);
        id
    }

    fn namespace(lbads: u8, ms: u16) -> IdentifyNamespace {
        let mut ns = IdentifyNamespace::new_zeroed();
        let mut format = LbaFormat(0);
        format.set_lbads(lbads);
        format.set_ms(ms);
        ns.lbaf[0] = Lbaf::from(format);
        ns.nsze.set(1000);
        ns
    }

    fn refusal(ns: &IdentifyNamespace) -> String {
        Traits::new(&controller(), None, 7, ns).unwrap_err().to_string()
    }

    #[test]
    fn plain_blocks_are_taken() {
        for (shift, most) in [(9u8, 256), (12, 32)] {
            let traits = Traits::new(&controller(), None, 1, &namespace(shift, 0)).unwrap();
            let geometry = traits.geometry;
            assert_eq!((geometry.block_shift, geometry.blocks), (shift, 1000));
            assert_eq!((geometry.max_transfer_blocks, geometry.max_zeroes_blocks), (most, 65536));
            assert!(geometry.write_cache && geometry.write_zeroes && geometry.compare && geometry.deallocate);
            assert!(!geometry.deallocate_zeroes && !traits.zeroes_deallocate && !traits.deallocate_by_zeroes);
        }
    }

    #[test]
    fn what_is_not_plain_is_refused_with_the_reason() {
        assert!(refusal(&namespace(11, 0)).contains("2^11"));
        assert!(refusal(&namespace(255, 0)).contains("2^255"));
        assert!(refusal(&namespace(9, 8)).contains("8 bytes of metadata"));
        let mut ns = namespace(9, 0);
        ns.dps = 1;
        assert!(refusal(&ns).contains("protection type 1"));
        let mut ns = namespace(9, 0);
        ns.flbas = Flbas(3);
        assert!(refusal(&ns).contains("does not exist"));
        for blocks in [0, u64::MAX, (i64::MAX as u64 >> 9) + 1] {
            let mut ns = namespace(9, 0);
            ns.nsze.set(blocks);
            assert!(refusal(&ns).contains(&format!("{blocks} blocks")));
        }
    }

    /// A deallocate that must read as zero is never left to a hint.
    #[test]
    fn deallocate_zeroes_only_by_write_zeroes() {
        let mut ns = namespace(9, 0);
        ns.dlfeat = Dlfeat(0b0001);
        assert!(!Traits::new(&controller(), None, 1, &ns).unwrap().geometry.deallocate_zeroes);
        ns.dlfeat = Dlfeat(0b1001);
        let traits = Traits::new(&controller(), None, 1, &ns).unwrap();
        assert!(traits.geometry.deallocate_zeroes && traits.deallocate_by_zeroes);
        ns.dlfeat = Dlfeat(0b1010);
        let traits = Traits::new(&controller(), None, 1, &ns).unwrap();
        assert!(!traits.geometry.deallocate_zeroes && traits.zeroes_deallocate);
    }

    #[test]
    fn limits_of_the_command_set_count() {
        let mut limits = IdentifyControllerNvm::new_zeroed();
        limits.wzsl = 3;
        let of = |limits: &IdentifyControllerNvm| {
            Traits::new(&controller(), Some(limits), 1, &namespace(9, 0)).unwrap().geometry.max_zeroes_blocks
        };
        assert_eq!(of(&limits), 64);
        limits.dmrsl.set(10);
        assert_eq!(of(&limits), 10);
        limits.dmsl.set(6);
        assert_eq!(of(&limits), 6);
        limits.dmsl.set(u64::MAX);
        limits.wzsl = 255;
        limits.dmrsl.set(u32::MAX);
        assert_eq!(of(&limits), 65536);
    }

    #[test]
    fn scatter_lists_are_used_where_sgls_says_that_they_may_be() {
        let mut id = controller();
        let segments = |id: &IdentifyController| {
            Traits::new(id, None, 1, &namespace(9, 0)).unwrap().geometry.max_segments
        };
        for (sgls, most) in [(0, 1), (1, 32), (2, 32), (3, 1), (0xffff_fffd, 32), (0xffff_ffff, 1)] {
            id.sgls.set(sgls);
            assert_eq!(segments(&id), most, "{sgls:#x}");
        }
        // A segment has a block at least, and so a list no more segments than a command blocks.
        (id.mdts, id.sgls) = (1, 1.into());
        assert_eq!(segments(&id), 16);
    }

    #[test]
    fn capabilities_that_cannot_be_driven() {
        let mut cap = Cap(0);
        cap.set_mqes_z(63);
        cap.set_css(css::NVM);
        check_capabilities(cap).unwrap();
        let with = |change: fn(&mut Cap)| {
            let mut cap = cap;
            change(&mut cap);
            check_capabilities(cap).unwrap_err().to_string()
        };
        assert!(with(|cap| cap.set_mpsmin(15)).contains("131072 KiB"));
        assert!(with(|cap| cap.set_mqes_z(0)).contains("one entry"));
        assert!(with(|cap| cap.set_css(css::NO_IO)).contains("80h"));
        let mut id = controller();
        check_entry_sizes(&id).unwrap();
        id.sqes = 0x77;
        assert!(check_entry_sizes(&id).unwrap_err().to_string().contains("77h"));
    }

    #[test]
    fn text_is_fit_to_be_shown() {
        assert_eq!(text(b"  Disk 1   "), "Disk 1");
        assert_eq!(text(b"a\x1b[2J\xff\0hidden"), "a?[2J?");
        assert_eq!(text(&[0; 20]), "");
    }

    proptest! {
        /// Nothing a device says panics, and what is taken is sane.
        #[test]
        fn absurd_identify_data(
            head in proptest::collection::vec(any::<u8>(), 400),
            tail in proptest::collection::vec(any::<u8>(), 30),
            lbads in prop_oneof![Just(9u8), Just(12), any::<u8>()],
            plain in any::<bool>(),
        ) {
            let mut id = [0u8; 4096];
            id[..400].copy_from_slice(&head);
            id[512..542].copy_from_slice(&tail);
            let mut ns = [0u8; 4096];
            ns[..400].copy_from_slice(&head);
            if plain {
                (ns[7], ns[26], ns[29]) = (0, 0, 0);
                ns[128..132].copy_from_slice(&[0, 0, lbads, 0]);
            }
            let id = IdentifyController::read_from_bytes(&id).unwrap();
            let ns = IdentifyNamespace::read_from_bytes(&ns).unwrap();
            let limits = IdentifyControllerNvm::read_from_prefix(&head.repeat(11)).unwrap().0;
            _ = Identity::new(&id, 1, &ns);
            _ = check_entry_sizes(&id);
            if let Ok(Traits { geometry, .. }) = Traits::new(&id, Some(&limits), 1, &ns) {
                prop_assert!(geometry.block_shift == 9 || geometry.block_shift == 12);
                prop_assert!(geometry.blocks.checked_mul(u64::from(geometry.block_size())).is_some());
                let most = u64::from(geometry.max_transfer_blocks) << geometry.block_shift;
                prop_assert!(geometry.max_transfer_blocks >= 1 && most <= MAX_TRANSFER);
                prop_assert!((1..=65536).contains(&geometry.max_zeroes_blocks));
                prop_assert!((1..=sgl::MOST.min(geometry.max_transfer_blocks)).contains(&geometry.max_segments));
            }
        }
    }
}
