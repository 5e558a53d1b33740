//! Random operations against a plain model.

use proptest::prelude::*;

use super::*;
use crate::Rate;

#[derive(Clone, Debug)]
enum Op {
    Create { name: u8, bytes: u64, owner: u32 },
    Grow { name: u8, bytes: u64 },
    Shrink { name: u8, bytes: u64 },
    Rename { name: u8, new: u8 },
    Delete { name: u8 },
    Access { name: u8, subject: Subject, access: u8 },
    Limit { name: u8, limits: Limits },
    Reserve(u32),
    Reopen,
    PowerCut(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let name = || 0u8..6;
    let bytes = || 1u64..(40 * UNIT);
    let subject = prop_oneof![
        (0u32..3).prop_map(Subject::User),
        (0u32..3).prop_map(Subject::Group),
        Just(Subject::Everyone),
    ];
    let rate =
        || prop_oneof![Just(None), (1u64.., 0u64..).prop_map(|(rate, burst)| Some(Rate { rate, burst }))];
    let limits = (rate(), rate()).prop_map(|(requests, bytes)| Limits { requests, bytes });
    prop_oneof![
        4 => (name(), bytes(), 0u32..3).prop_map(|(name, bytes, owner)| Op::Create { name, bytes, owner }),
        2 => (name(), bytes()).prop_map(|(name, bytes)| Op::Grow { name, bytes }),
        2 => (name(), bytes()).prop_map(|(name, bytes)| Op::Shrink { name, bytes }),
        1 => (name(), name()).prop_map(|(name, new)| Op::Rename { name, new }),
        2 => name().prop_map(|name| Op::Delete { name }),
        2 => (name(), subject, 0u8..8).prop_map(|(name, subject, access)| Op::Access { name, subject, access }),
        1 => (name(), limits).prop_map(|(name, limits)| Op::Limit { name, limits }),
        1 => (0u32..100).prop_map(Op::Reserve),
        1 => Just(Op::Reopen),
        1 => any::<u64>().prop_map(Op::PowerCut),
    ]
}

/// What a volume should be.
#[derive(Clone)]
struct Expected {
    owner: u32,
    units: u64,
    access: BTreeMap<Subject, Access>,
    limits: Limits,
    /// What its owner wrote into all of it.
    value: u8,
}

struct World {
    disk: MemoryDisk,
    store: Option<Store>,
    volumes: BTreeMap<String, Expected>,
    units: u64,
    next_instance: u32,
    next_value: u8,
}

fn name(number: u8) -> String {
    format!("volume {number}")
}

impl World {
    fn new(shift: u8) -> Self {
        let disk = disk(shift, 12);
        soil(&disk);
        let store = format(&disk);
        let units = (store.data_blocks() << shift) / UNIT;
        let volumes = BTreeMap::new();
        Self { disk, store: Some(store), volumes, units, next_instance: 1, next_value: 1 }
    }

    fn free(&self) -> u64 {
        self.units - self.volumes.values().map(|volume| volume.units).sum::<u64>()
    }

    /// The owner writes all of a volume of which `kept` units were written before; the rest must be zero.
    fn fill(&mut self, volume: &Volume, kept: u64) {
        let found = content(&self.disk, volume);
        let (old, new) = found.split_at(usize::try_from(kept * UNIT).unwrap());
        let expected = self.volumes.get_mut(&volume.name).unwrap();
        assert!(is_all(old, expected.value), "what was there stays");
        assert!(is_all(new, 0), "new blocks are zero");
        self.next_value = self.next_value % 200 + 1;
        expected.value = self.next_value;
        scribble(&self.disk, volume, self.next_value);
        self.disk.flush().unwrap();
    }

    fn create(&mut self, store: &mut Store, name: String, bytes: u64, owner: u32) {
        let units = bytes.div_ceil(UNIT);
        match store.create(&name, bytes, owner) {
            Ok(volume) => {
                let limits = Limits::default();
                let expected = Expected { owner, units, access: BTreeMap::new(), limits, value: 0 };
                assert!(self.volumes.insert(name, expected).is_none());
                self.fill(&volume, 0);
            }
            Err(StoreError::Exists { .. }) => assert!(self.volumes.contains_key(&name)),
            Err(StoreError::NoSpace { .. }) => assert!(units > self.free()),
            Err(other) => panic!("{other}"),
        }
    }

    fn grow(&mut self, store: &mut Store, name: &str, bytes: u64) {
        let units = bytes.div_ceil(UNIT);
        let old = self.volumes.get(name).map(|volume| volume.units);
        match (store.grow(name, bytes), old) {
            (Ok(volume), Some(old)) => {
                self.volumes.get_mut(name).unwrap().units = units;
                self.fill(&volume, old);
            }
            (Err(StoreError::NoSuchVolume { .. }), None) => {}
            (Err(StoreError::Size { .. }), Some(old)) => assert!(units < old),
            (Err(StoreError::NoSpace { .. }), Some(old)) => assert!(units - old > self.free()),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn shrink(&mut self, store: &mut Store, name: &str, bytes: u64) {
        let units = bytes.div_ceil(UNIT);
        match (store.shrink(name, bytes), self.volumes.get_mut(name)) {
            (Ok(_), Some(volume)) => volume.units = units,
            (Err(StoreError::NoSuchVolume { .. }), None) => {}
            (Err(StoreError::Size { .. }), Some(old)) => assert!(units > old.units),
            (other, _) => panic!("{other:?}"),
        }
    }

    fn rename(&mut self, store: &mut Store, name: &str, new: String) {
        match store.rename(name, &new) {
            Ok(_) => {
                let volume = self.volumes.remove(name).unwrap();
                assert!(self.volumes.insert(new, volume).is_none());
            }
            Err(StoreError::NoSuchVolume { .. }) => assert!(!self.volumes.contains_key(name)),
            Err(StoreError::Exists { .. }) => assert!(self.volumes.contains_key(&new)),
            Err(other) => panic!("{other}"),
        }
    }

    fn set_access(&mut self, store: &mut Store, name: &str, subject: Subject, access: Access) {
        let result = store.set_access(name, subject, access);
        assert_eq!(result.is_ok(), self.volumes.contains_key(name));
        if let Some(volume) = self.volumes.get_mut(name) {
            volume.access.insert(subject, access);
            volume.access.retain(|_, access| *access != Access::NONE);
        }
    }

    fn apply(&mut self, op: &Op) {
        let Some(mut store) = self.store.take() else { unreachable!() };
        match *op {
            Op::Create { name: n, bytes, owner } => self.create(&mut store, name(n), bytes, owner),
            Op::Grow { name: n, bytes } => self.grow(&mut store, &name(n), bytes),
            Op::Shrink { name: n, bytes } => self.shrink(&mut store, &name(n), bytes),
            Op::Rename { name: n, new } => self.rename(&mut store, &name(n), name(new)),
            Op::Delete { name: n } => {
                assert_eq!(store.delete(&name(n)).is_ok(), self.volumes.remove(&name(n)).is_some());
            }
            Op::Access { name: n, subject, access } => {
                self.set_access(&mut store, &name(n), subject, Access::from_bits(access).unwrap());
            }
            Op::Limit { name: n, limits } => {
                let result = store.set_limits(&name(n), limits);
                assert_eq!(result.is_ok(), self.volumes.contains_key(&name(n)));
                self.volumes.get_mut(&name(n)).into_iter().for_each(|volume| volume.limits = limits);
            }
            Op::Reserve(count) => {
                let range = store.reserve_instances(count).unwrap();
                assert_eq!(range, self.next_instance..self.next_instance + count);
                self.next_instance = range.end;
            }
            Op::Reopen => {
                drop(store);
                store = open(&self.disk).unwrap();
            }
            Op::PowerCut(seed) => {
                let cut = self.disk.copy();
                cut.power_cut(seed);
                self.disk = cut;
                store = open(&self.disk).unwrap();
            }
        }
        self.compare(&mut store);
        self.store = Some(store);
    }

    fn compare(&self, store: &mut Store) {
        assert_eq!(store.check().unwrap(), []);
        let found = store.volumes().unwrap();
        assert!(found.iter().map(|volume| &volume.name).eq(self.volumes.keys()));
        let shift = self.disk.geometry().block_shift;
        let mut extents = store.metadata_extents();
        for (volume, expected) in found.iter().zip(self.volumes.values()) {
            assert_eq!(volume.owner, expected.owner);
            assert_eq!(volume.blocks << shift, expected.units * UNIT);
            assert_eq!(volume.access.iter().copied().collect::<BTreeMap<_, _>>(), expected.access);
            assert_eq!(volume.limits, expected.limits);
            assert!(is_all(&content(&self.disk, volume), expected.value));
            extents.extend(&volume.extents);
        }
        extents.sort_by_key(|extent| extent.first);
        assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].first), "S8-R2: disjoint");
        assert_eq!((store.free_blocks() << shift) / UNIT, self.free());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// S8-R1, S8-R2, S8-R3, S8-R10, S4-R15: whatever is done, volumes are disjoint, new blocks are zero, nothing
    /// leaks, and what was acknowledged is there after a restart and after a power cut.
    #[test]
    fn agrees_with_a_model(
        shift in prop_oneof![1 => Just(9u8), 3 => Just(12)],
        ops in proptest::collection::vec(op(), 1..30),
    ) {
        let mut world = World::new(shift);
        for op in &ops {
            world.apply(op);
        }
    }
}
