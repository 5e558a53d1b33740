//! `null:SIZE`: the store is kept in memory; what applications read and write is nowhere.

use std::sync::Arc;

use driver::block::BlockQueue;
use driver::disk::MemoryDisk;
use driver::null::{NullMapper, NullQueue};

use super::{Health, Identity, Losses, Opened, Supervisor};

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
        losses: Losses::default(),
    }
}

#[cfg(test)]
mod tests {
    use portcullis::Access;

    #[test]
    fn requests_complete_and_volumes_are_kept() {
        let adapter = crate::Embedded::open("null:64M").unwrap();
        let session = adapter.session().unwrap();
        session.create_volume("v", 1 << 20).unwrap();
        let volume = session.open("v", Access::READ_WRITE).unwrap();
        let mut queue = session.queue(8).unwrap();
        queue.write_at(&volume, 0, &[1; 8192]).unwrap();
        let mut read = [7; 8192];
        queue.read_at(&volume, 0, &mut read).unwrap();
        assert_eq!(session.volumes().count(), 1);
    }
}
