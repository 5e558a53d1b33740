//! What the tests of the tables share.

use tpt::{
    Access, Directory, Domain, ExtensionKey, GrantSpec, Iova, Key, KeyInstance, LbaRange, Limits, Memory,
    Operation, Purpose, Quiesce, RegionKey, RegionSpec, Request, Tables,
};

/// Whether the large counts are wanted.
pub(crate) fn soak() -> bool {
    std::env::var("PORTCULLIS_SOAK").is_ok_and(|value| value == "1")
}

/// What was counted, for the table of `cargo xtask soak`.
pub(crate) fn counted(number: usize, what: &str) {
    println!("counted: {number} {what}");
}

/// The seed of this run, which is told; another one by PORTCULLIS_SEED.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|value| value.parse().ok()).unwrap_or(1);
    println!("PORTCULLIS_SEED={seed}");
    seed
}

/// Numbers by chance, the same for a seed (splitmix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

pub(crate) const A: Domain = Domain(7);
pub(crate) const B: Domain = Domain(8);
pub(crate) const LIMITS: Limits = Limits { entries: 64, lba_entries: 64, extensions: 0, regions: 8 };
pub(crate) const BLOCK: u64 = 4096;
pub(crate) const IOVA: u64 = 0x10_0000;

pub(crate) const OPERATIONS: [Operation; 9] = [
    Operation::Read,
    Operation::Write { fua: false },
    Operation::Write { fua: true },
    Operation::Flush,
    Operation::WriteZeroes { deallocate: false },
    Operation::WriteZeroes { deallocate: true },
    Operation::Deallocate,
    Operation::Compare,
    Operation::WriteBytes,
];

pub(crate) fn range(first: u64, count: u64) -> LbaRange {
    LbaRange::new(first, count).unwrap()
}

pub(crate) fn spec(domain: Domain, access: Access, ranges: &[LbaRange]) -> GrantSpec<'_> {
    GrantSpec { domain, access, block_shift: 12, ranges, shared: false }
}

/// Tables with one region of domain A and one of B, each for any operation on up to 1 MiB.
pub(crate) struct World<const W: u32 = 32> {
    pub(crate) tables: Tables<W>,
    pub(crate) directory: Directory,
    pub(crate) region_a: RegionKey,
    pub(crate) region_b: RegionKey,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(LIMITS, 1)
    }
}

impl<const W: u32> World<W> {
    pub(crate) fn with(limits: Limits, first_instance: u32) -> Self {
        let mut tables = Tables::new(limits, KeyInstance(first_instance));
        let mut region = |domain| {
            let spec = RegionSpec { domain, access: Access::READ_WRITE, iova: Iova(IOVA), bytes: 1 << 20 };
            tables.create_region(&spec).unwrap()
        };
        let (region_a, region_b) = (region(A), region(B));
        let directory = Directory::new(tables.published(), 4);
        Self { tables, directory, region_a, region_b }
    }

    /// A grant of A with these ranges and all rights.
    pub(crate) fn grant(&mut self, ranges: &[LbaRange]) -> Key {
        self.tables.create(&spec(A, Access::ALL, ranges)).unwrap()
    }

    /// A request of A for whole blocks.
    pub(crate) fn request(&self, operation: Operation, key: Key, block: u64, blocks: u64) -> Request {
        let memory = Memory { region: self.region_a, offset: 0 };
        Request {
            operation,
            key,
            extension: ExtensionKey::NONE,
            offset: block * BLOCK,
            length: blocks * BLOCK,
            memory,
        }
    }

    /// Begins, finds the poller idle, and deletes.
    pub(crate) fn delete(&mut self, key: Key) {
        let quiesce = self.tables.begin(Some(A), key, Purpose::Delete).unwrap();
        self.finish_delete(quiesce);
    }

    pub(crate) fn finish_delete(&mut self, quiesce: Quiesce) {
        assert!(self.directory.entry_is_idle(quiesce.entry()));
        self.tables.finish_delete(quiesce);
        self.tables.self_check().unwrap();
    }

    /// The device blocks that A's request would reach, one by one, and the grant given back.
    pub(crate) fn blocks(&mut self, request: &Request) -> Result<Vec<u64>, tpt::Denied> {
        let grant = self.directory.check(A, request)?;
        let pieces = self.directory.pieces(&grant, 0);
        let blocks = pieces.flat_map(|piece| piece.lba.0..piece.lba.0 + piece.blocks).collect();
        self.directory.release(grant);
        Ok(blocks)
    }
}
