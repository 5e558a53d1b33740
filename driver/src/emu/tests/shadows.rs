//! Shadow doorbells (NVM Express Base 2.0c, section 5.8), one step at a time: on a device that runs inside the doorbell
//! write.

use super::*;

const EVENTS: u64 = 4096;

struct Shadowed {
    host: Host,
    /// The shadows, and a page on, the event indexes.
    memory: Area,
    pair: Pair,
    data: Area,
}

fn configure(first: u64, second: u64) -> Entry {
    Entry::new(admin::DOORBELL_BUFFER_CONFIG, 0).prp(first, second)
}

fn config(on: bool) -> EmuConfig {
    let media = Arc::new(RamMedia::new(1 << 20).unwrap());
    EmuConfig { queues: 2, shadow_doorbells: on, ..EmuConfig::new(media) }
}

impl Shadowed {
    fn new() -> Self {
        let mut host = Host::new(config(true));
        let memory = host.area(8192);
        assert_eq!(host.admin(configure(memory.at(0), memory.at(EVENTS))).status, 0);
        let (pair, data) = (host.create(1), host.area(4096));
        Self { host, memory, pair, data }
    }

    fn put(&mut self, count: u32) {
        for _ in 0..count {
            Host::put(&mut self.pair, io(nvm::READ, 0, 1).prp(self.data.at(0), 0));
        }
    }

    fn tell_tail(&self, tail: u32) {
        self.memory.write(8, &tail.to_le_bytes());
    }

    fn tell_head(&self, head: u32) {
        self.memory.write(12, &head.to_le_bytes());
    }

    /// Writes the tail's doorbell, with whatever value: memory is what counts.
    fn ring(&self) {
        self.host.registers.write32(offset::DOORBELLS + 8, 0);
    }

    fn events(&self) -> (u32, u32) {
        let bytes: [u8; 8] = self.memory.read(4096 + 8);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }
}

#[test]
fn they_are_there_when_the_device_says_so() {
    for on in [false, true] {
        let mut host = Host::new(config(on));
        let memory = host.area(8192);
        let page = Entry::new(admin::IDENTIFY, 0).set(10, 1).prp(memory.at(0), 0);
        assert_eq!(host.admin(page).status, 0);
        assert_eq!(memory.read::<2>(256)[1] & 1 == 1, on, "OACS");
        let ended = host.admin(configure(memory.at(0), memory.at(EVENTS)));
        assert!(if on { ended.status == 0 } else { ended.is(Status::INVALID_OPCODE) });
        if on {
            for (first, second) in [(512, 4096), (0, 4100)] {
                let ended = host.admin(configure(memory.at(first), memory.at(second)));
                assert!(ended.is(Status::INVALID_FIELD));
            }
        }
    }
}

#[test]
fn the_tail_in_memory_counts_and_the_event_index_follows_it() {
    let mut device = Shadowed::new();
    device.put(3);
    device.tell_tail(2);
    assert_eq!(device.host.device.commands(), 0, "nobody rang");
    device.ring();
    assert_eq!((device.host.device.commands(), device.events().0), (2, 2));
    device.tell_tail(3);
    device.ring();
    assert_eq!((device.host.device.commands(), device.events().0), (3, 3));
    device.ring();
    assert_eq!(device.host.device.commands(), 3);
}

#[test]
fn a_tail_that_does_not_exist_runs_nothing() {
    let mut device = Shadowed::new();
    device.put(2);
    for tail in [u32::from(ENTRIES), u32::MAX, 0x1_0001] {
        device.tell_tail(tail);
        device.ring();
        assert_eq!(device.host.device.commands(), 0);
    }
    device.tell_tail(2);
    device.ring();
    assert_eq!((device.host.device.commands(), device.host.device.faults()), (2, 0));
}

#[test]
fn a_full_completion_queue_waits_for_the_head_in_memory() {
    let mut device = Shadowed::new();
    let most = u32::from(ENTRIES) - 1;
    device.put(most);
    device.tell_tail(most);
    device.ring();
    assert_eq!(device.host.device.commands(), u64::from(most));
    // Each has a place; the next one has none, and the device asks to be told of one.
    device.put(2);
    device.tell_tail((most + 2) % u32::from(ENTRIES));
    device.ring();
    assert_eq!((device.host.device.commands(), device.events().1), (u64::from(most) + 1, 0));
    device.tell_head(ENTRIES.into());
    device.ring();
    assert_eq!(device.host.device.commands(), u64::from(most) + 1, "there is no such head");
    // The doorbell wakes, and memory says how far.
    device.tell_head(3);
    device.host.registers.write32(offset::DOORBELLS + 12, 3);
    assert_eq!(device.host.device.commands(), u64::from(most) + 2);
}

#[test]
fn a_reset_forgets_them() {
    let mut device = Shadowed::new();
    device.host.disable();
    device.host.enable();
    device.pair = device.host.create(1);
    device.put(1);
    device.tell_tail(1);
    device.ring();
    assert_eq!(device.host.device.commands(), 0, "memory counts no more");
    device.host.ring(&device.pair);
    assert_eq!(device.host.device.commands(), 1);
}
