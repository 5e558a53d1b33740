//! Whose turn it is: which queues are looked at, and how much is taken from each.

use driver::block::BlockQueue;

use super::State;
use super::port::PortState;

impl State {
    /// Takes a bounded share from each queue, beginning with another one each turn.
    pub(super) fn take_entries<Q: BlockQueue>(&mut self, queue: &mut Q, burst: u32) -> usize {
        let count = self.ports.len();
        if count == 0 {
            return 0;
        }
        self.next_port = if self.next_port + 1 >= count { 0 } else { self.next_port + 1 };
        let mut work = 0;
        let mut index = self.next_port;
        for _ in 0..count {
            work += self.take_from(queue, index, burst);
            index = if index + 1 >= count { 0 } else { index + 1 };
        }
        work
    }

    pub(super) fn take_from<Q: BlockQueue>(&mut self, queue: &mut Q, index: usize, burst: u32) -> usize {
        let ports = self.ports.len();
        let Some(port) = self.ports[index].as_mut() else { return 0 };
        match port.state {
            PortState::Ready => {}
            PortState::Error => return port.flush(burst),
            PortState::Detaching(_) => return 0,
        }
        if port.ring.poll_doorbell().is_err() {
            self.fail_port(index);
            return 1;
        }
        let mut work = 0;
        // All that was rung, also in earlier turns whose share was used up.
        let mut share = port.ring.waiting().min(burst) as usize;
        while share > 0 {
            let Some(port) = self.ports[index].as_mut() else { break };
            // While the device is full each queue may have a burst of requests waiting for it, so that its cancels are
            // still seen; the rest waits in the application's own queue and delays nobody.
            let device_full = !self.starved.is_empty() && port.in_flight.len() >= burst as usize;
            // Of the second half of the slots nobody gets more than an equal part, whatever the first is held by.
            let crowded =
                self.slots.is_crowded() && port.in_flight.len() >= (self.slots.count() / 2 / ports).max(1);
            if device_full || crowded || !self.slots.has_room() {
                break;
            }
            match port.ring.take() {
                Ok(Some(entry)) => share = share.saturating_sub(self.process(queue, index, &entry)),
                Ok(None) => break, // No room for its completion: the application does not consume.
                Err(_) => {
                    self.fail_port(index);
                    break;
                }
            }
            work += 1;
        }
        work
    }
}
