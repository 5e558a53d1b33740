//! `null:SIZE`: the store is kept in memory; what applications read and write is nowhere.

use std::sync::Arc;

use driver::block::BlockQueue;
use driver::disk::MemoryDisk;
use driver::null::{NullMapper, NullQueue};

use super::{Health, Identity, Opened, Supervisor};

struct NothingToLookAfter;

impl Supervisor for NothingToLookAfter {
    fn tend(&mut self, _stuck: bool) -> Health {
        Health::Running
    }

    fn shut_down(self: Box<Self>) {}
}

/// A null device of `bytes` bytes.
pub fn open(bytes: u64, queues: u16) -> Opened<NullQueue> {
    let blocks = bytes >> 9;
    let geometry = *NullQueue::new(blocks).geometry();
    Opened {
        identity: Identity { model: "null".into(), ..Identity::default() },
        geometry,
        mapper: Arc::new(NullMapper::default()),
        mapper_pins: false,
        queues: (0..queues).map(|_| (NullQueue::new(blocks), None)).collect(),
        disk: Box::new(MemoryDisk::new(9, blocks)),
        supervisor: Box::new(NothingToLookAfter),
    }
}
