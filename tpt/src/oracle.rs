//! The slow, obvious model of the tables, and a harness that applies the same operations to both and compares every
//! answer. Property tests, the exhaustive small cases and the fuzz target share it.

mod files;
mod harness;
mod model;

use alloc::vec::Vec;
use arbitrary::{Arbitrary, Unstructured};

pub use harness::Harness;

/// The widest domain number used is one less.
pub const DOMAINS: u8 = 3;

/// Which of the keys handed out so far, and how it is bent first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Arbitrary)]
pub struct Pick {
    /// Counted from the newest, modulo their number.
    pub back: u8,
    /// Modulo 16: 0 the next instance, 1 the next index, 2 an index beyond the table; else as it is.
    pub bend: u8,
}

impl Pick {
    /// The `back`-th newest key, as it is.
    pub const fn newest(back: u8) -> Self {
        Self { back, bend: 7 }
    }
}

/// A range of the device: first block modulo 64, count modulo 8 (0 is refused).
pub type SmallRange = (u8, u8);

/// A request in small numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Arbitrary)]
pub struct SmallRequest {
    /// Modulo 9, in the order read, write, write with FUA, flush, write zeroes, the same with deallocate, deallocate,
    /// compare, write bytes.
    pub operation: u8,
    /// Under which grant, or of which file.
    pub key: Pick,
    /// In which extension, of those of all files.
    pub extension: Option<Pick>,
    /// First block, modulo 16.
    pub block: u8,
    /// Blocks, modulo 8.
    pub blocks: u8,
    /// Modulo 16: 0 a skewed offset, 1 a skewed length, 2 an offset near the end of 64 bits, 3 such a length, 4 to 6 odd
    /// ones.
    pub skew: u8,
    /// In which region.
    pub region: Pick,
    /// Bytes into the region.
    pub memory: u8,
}

/// One operation on the tables or a poller. Numbers are taken modulo what there is.
#[derive(Clone, PartialEq, Eq, Debug, Arbitrary)]
#[allow(missing_docs)] // the fields are those of the operation named
pub enum Op {
    Create {
        domain: u8,
        access: u8,
        shared: bool,
        ranges: Vec<SmallRange>,
    },
    CreateFile {
        domain: u8,
        access: u8,
        shared: bool,
        extents: Vec<SmallRange>,
    },
    /// By a domain, or by the authority.
    ExtendFile {
        caller: Option<u8>,
        key: Pick,
        extents: Vec<SmallRange>,
    },
    /// As `Finish`, of a file, of which `keep` blocks stay.
    FinishFile {
        back: u8,
        access: Option<u8>,
        keep: Option<u8>,
        append: Vec<SmallRange>,
    },
    Query {
        domain: u8,
        key: Pick,
    },
    /// By a domain, or by the authority.
    BeginModify {
        caller: Option<u8>,
        key: Pick,
    },
    BeginDelete {
        caller: Option<u8>,
        key: Pick,
    },
    BeginRevoke {
        caller: Option<u8>,
        key: Pick,
    },
    /// Ends the newest but `back` operations begun, if all pollers are at a quiescent point.
    Finish {
        back: u8,
        access: Option<u8>,
        ranges: Option<Vec<SmallRange>>,
    },
    Cancel {
        back: u8,
    },
    CreateRegion {
        domain: u8,
        access: u8,
        bytes: u8,
    },
    BeginRegionDelete {
        caller: Option<u8>,
        region: Pick,
    },
    FinishRegionDelete {
        back: u8,
    },
    Check {
        poller: u8,
        domain: u8,
        request: SmallRequest,
    },
    /// Of the request only its key and its operation.
    LookAtFile {
        poller: u8,
        domain: u8,
        request: SmallRequest,
    },
    /// Without its memory.
    CheckScattered {
        poller: u8,
        domain: u8,
        request: SmallRequest,
    },
    /// Of the request only its operation, its memory and its length.
    Hold {
        poller: u8,
        domain: u8,
        request: SmallRequest,
    },
    ReleaseHold {
        back: u8,
    },
    /// The pieces of a grant in flight, from some block on.
    Resume {
        back: u8,
        done: u8,
    },
    Release {
        back: u8,
    },
    Evict {
        poller: u8,
        entry: u8,
    },
    /// Must change nothing.
    Prefetch {
        poller: u8,
        key: Pick,
    },
    /// From now on segments cannot be fetched, or can again.
    FailFetches {
        fail: bool,
    },
}

/// Runs operations on small tables and on the model.
///
/// # Panics
/// Where the two differ, or the tables' own invariants do not hold.
pub fn run_ops(ops: &[Op]) {
    let mut harness = Harness::new();
    for op in ops {
        harness.apply(op);
    }
    harness.tear_down();
}

/// As [`run_ops`] on the smallest tables in which two domains and two regions have room, and few extensions, with all invariants checked
/// only after the last operation: for those who also run each shorter sequence.
///
/// # Panics
/// As [`run_ops`].
pub fn run_last_op<'a>(before: impl Iterator<Item = &'a Op>, last: &Op) {
    let mut harness = Harness::smallest();
    for op in before {
        harness.step(op);
    }
    harness.apply(last);
    harness.tear_down();
}

/// The same with operations drawn from a fuzzer's bytes.
///
/// # Panics
/// As [`run_ops`].
pub fn run(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let mut harness = Harness::new();
    while !bytes.is_empty()
        && let Ok(op) = Op::arbitrary(&mut bytes)
    {
        harness.apply(&op);
    }
    harness.tear_down();
}
