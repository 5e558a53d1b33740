//! What is promised: every row of the table, with its gate, its goal, and how it is measured.

use super::judge::Bound::{self, AtLeast, AtMost, Below, Within};
use super::judge::Measure::{self, Excess, Ours, Ratio, Speed};
use super::judge::{Criterion, When};

/// A row of the table.
pub(crate) struct Row {
    pub(crate) number: u32,
    pub(crate) title: &'static str,
    /// In a paragraph.
    pub(crate) method: &'static str,
}

pub(crate) const ROWS: [Row; 16] = [
    Row {
        number: 1,
        title: "The table part of the check",
        method: "Index, instance, domain, access, bounds and the device block, decided by the protection tables, beside an \
                 array of records with the same fields in one cache line each. Independent requests at random places, in one \
                 thread, in turns; making up the request costs both sides the same and is in both. Instructions are counted \
                 by callgrind, without that loop.",
    },
    Row {
        number: 2,
        title: "The whole decision",
        method: "As row 1, with the memory region, the LBA table, the active counts, and giving the grant back.",
    },
    Row {
        number: 3,
        title: "Isolated: one request at a time",
        method: "The adapter is a process of its own over `null:`, all its threads on the second processor; the application, \
                 on the first, sends one request and polls for its completion. Beside it a bare ring between two processes on \
                 the same processors: 64-byte requests and 32-byte answers with their sequence number in the slot, answered \
                 at once, nothing checked, counted or woken. Rounds whose ping-pong is neither near nor far, or changes, do \
                 not count.",
    },
    Row {
        number: 4,
        title: "Isolated: many requests at a time",
        method: "As row 3 with 32 and 128 in flight: what has come back is sent again at once, one doorbell for all that was \
                 found. Beside it `io_uring` requests that do nothing, as many in flight, by the faster of two setups (with \
                 and without SINGLE_ISSUER and DEFER_TASKRUN); they cross no core, so this is judged while the cores are near. \
                 While they are far, the bare ring is what is compared with.",
    },
    Row {
        number: 5,
        title: "Embedded, beside io_uring",
        method: "The adapter in the application's own process over `null:`: requests written, announced by one doorbell, and \
                 polled for until all are back. Beside it `io_uring` NOPs, one or 128 in a system call, by the faster setup. \
                 One thread on one processor.",
    },
    Row {
        number: 6,
        title: "Instructions of a turn",
        method: "Callgrind counts what one turn of the engine over `null:` does with 32 announced reads: take, parse, check, \
                 submit, reap, complete. Beside it the same commands submitted to and reaped from a null device with nothing \
                 above it. The difference, for each request, is what the adapter adds. The same turn with reads by the key of an \
                 opened file shows what a file costs above a grant of blocks. Of a file of 1,000 extensions, which is told without a gate, \
                 a good part is that each of them has to be found once within the 32,000 reads.",
    },
    Row {
        number: 7,
        title: "Guest, NVMe: embedded beside the driver alone",
        method: "In a QEMU guest (no KVM on this machine unless the versions say so) with an emulated NVMe controller: the \
                 embedded adapter over `vfio:` with 32 requests in flight, beside our own driver polled with no tables and no \
                 rings above it, on the same controller, in turns. Both look again at once where nothing has come, and at the \
                 clock once in 64 requests.",
    },
    Row {
        number: 8,
        title: "Guest, NVMe: isolated beside the driver alone",
        method: "As row 7 with the adapter in a process of its own. Application, adapter and QEMU's own thread share two \
                 processors, so how they wait is part of what is measured: the application does by the library's call for that, \
                 which sleeps after a while.",
    },
    Row {
        number: 9,
        title: "Guest, NVMe: embedded beside the kernel's driver",
        method: "The controller goes to the kernel's nvme driver (`poll_queues=1`) and back to vfio-pci in every round. The \
                 kernel is asked through `io_uring`: plainly (O_DIRECT, interrupts), and at its best (registered file and \
                 buffers, IOPOLL). 4 KiB at random places, reads and writes, over a device without medium (`null-co`) and over \
                 a file in the host's memory. Nothing reads a clock for a single request on either side.",
    },
    Row {
        number: 10,
        title: "Doorbells",
        method: "QEMU's own trace of doorbell writes (submission and completion queues but the admin queue's) during a run of \
                 the embedded adapter with 32 in flight, divided by the requests.",
    },
    Row {
        number: 11,
        title: "Data in memory, beside the page cache",
        method: "`emu:`, a software NVMe controller over memory, which copies 4 KiB for each request; random reads over \
                 256 MiB, embedded. Beside it a file of 256 MiB on a disk's file system, all of it in the page cache, read by \
                 pread(2) one at a time, and by `io_uring` (registered file and buffers, the faster setup) 32 at a time.",
    },
    Row {
        number: 12,
        title: "Idle sessions beside a busy one",
        method: "The instructions of a turn as in row 6, with 1,000 more queues attached that nobody uses.",
    },
    Row {
        number: 13,
        title: "A hundred idle sessions",
        method: "A hundred sessions with a queue each are connected to an adapter process and ask for nothing; the processor \
                 time of all its threads is read twice, some seconds apart (schedstat of proc(5)).",
    },
    Row {
        number: 14,
        title: "From asleep to the completion",
        method: "A request finds the poller asleep in epoll(7) and wakes it by its eventfd; the application sleeps on its futex \
                 until the completion wakes it, or polls for it. Beside it the same wake-ups with nothing between: an eventfd \
                 there, and a futex back or a line that is polled. Wake-ups are milliseconds apart, each value is the median of \
                 a turn's.",
    },
    Row {
        number: 15,
        title: "A flood beside one request at a time",
        method: "One thread drives an embedded adapter, a session that keeps 128 requests in flight, and another with one at a \
                 time; beside it the same with a competitor that has one at a time, too. The 99th percentile of the quiet \
                 session is compared. A session with a limit of its own, and one whose volume has one, ask for all that they \
                 can get; what they get is compared with the limit. Exact shares of each turn are asserted by the simulation \
                 in the test suites.",
    },
    Row {
        number: 16,
        title: "Lines written by more than one poller",
        method: "Two engines with requests in flight have turns one at a time, each on a thread of its own; before and after \
                 each turn a test reads the whole memory of its process. Lines that both wrote are counted (the test `lines` \
                 of the adapter; in memory, so nothing is timed).",
    },
];

/// A criterion in a line.
struct Short(u32, &'static str, &'static str, &'static str, &'static str, When, Measure);

impl Short {
    const fn gate(self, gate: Bound) -> Criterion {
        let Self(row, what, figure, ours, peer, when, measure) = self;
        let peer = if peer.is_empty() { None } else { Some(peer) };
        Criterion { row, what, figure, ours, peer, when, measure, gate: Some(gate), goal: None }
    }
}

impl Criterion {
    const fn goal(self, bound: Bound) -> Self {
        Self { goal: Some((self.measure, bound)), ..self }
    }

    const fn goal_of(self, measure: Measure, bound: Bound) -> Self {
        Self { goal: Some((measure, bound)), ..self }
    }

    const fn told(self) -> Self {
        Self { gate: None, ..self }
    }
}

use When::{Always, Far, Known, Near};

/// In the order of the page.
#[rustfmt::skip] // a table
pub(crate) const CRITERIA: &[Criterion] = &[
    Short(1, "1,000 entries", "check-1k", "table part", "bare index", Always, Ratio).gate(AtMost(2.0)).goal(AtMost(1.3)),
    Short(1, "10^6 entries", "check-1m", "table part", "bare index", Always, Ratio).gate(AtMost(1.5)).goal(AtMost(1.3)),
    Short(1, "instructions", "check-instructions", "table part", "bare index", Always, Ours).gate(AtMost(45.0)),
    Short(2, "1,000 entries", "check-1k", "whole decision", "bare index", Always, Ratio).gate(AtMost(4.0)).goal_of(Ours, AtMost(10.0)),
    Short(2, "10^6 entries", "check-1m", "whole decision", "bare index", Always, Ratio).gate(AtMost(3.0)).goal_of(Ours, AtMost(50.0)),
    Short(3, "isolated, one at a time, beside a bare ring", "isolated-1", "isolated", "bare ring", Known, Ratio).gate(AtMost(2.0)).goal(AtMost(1.4)),
    Short(4, "isolated, 32, beside io_uring NOP, near", "isolated-32", "isolated", "io_uring nop", Near, Speed).gate(AtLeast(0.8)).goal(AtLeast(1.5)),
    Short(4, "isolated, 128, beside io_uring NOP, near", "isolated-128", "isolated", "io_uring nop", Near, Speed).gate(AtLeast(1.0)).goal(AtLeast(1.5)),
    Short(4, "isolated, 32, beside a bare ring, far", "isolated-32", "isolated", "bare ring", Far, Speed).gate(AtLeast(0.5)),
    Short(4, "isolated, 128, beside a bare ring, far", "isolated-128", "isolated", "bare ring", Far, Speed).gate(AtLeast(0.5)),
    Short(5, "embedded, 1, beside io_uring NOP", "null-1", "embedded", "io_uring nop", Always, Speed).gate(AtLeast(2.0)).goal(AtLeast(3.5)),
    Short(5, "embedded, 32, beside io_uring NOP", "null-32", "embedded", "io_uring nop", Always, Speed).gate(AtLeast(1.0)).told(),
    Short(5, "embedded, 128, beside io_uring NOP", "null-128", "embedded", "io_uring nop", Always, Speed).gate(AtLeast(1.0)).goal(AtLeast(1.5)),
    Short(6, "a turn with 32, above submit and reap", "turn-instructions", "turn", "submit and reap", Always, Excess).gate(AtMost(350.0)).goal(AtMost(200.0)),
    Short(6, "a read by a file's key in its first extension, above one of a grant", "file-instructions", "first extension", "grant of blocks", Always, Excess).gate(AtMost(60.0)),
    Short(6, "in its later extensions in order, of 16", "file-instructions", "later extensions in order, of 16", "grant of blocks", Always, Excess).gate(AtMost(60.0)),
    Short(6, "in its later extensions in order, of 1,000", "file-instructions", "later extensions in order, of 1,000", "grant of blocks", Always, Excess).gate(AtMost(60.0)).told(),
    Short(6, "in any of 16 extensions", "file-instructions", "any extension, of 16", "grant of blocks", Always, Excess).gate(AtMost(60.0)),
    Short(6, "in any of 1,000 extensions", "file-instructions", "any extension, of 1,000", "grant of blocks", Always, Excess).gate(AtMost(60.0)).told(),
    Short(7, "null-co, reads, 32", "guest-null-read-32", "embedded", "driver", Always, Speed).gate(AtLeast(0.85)).goal(AtLeast(0.95)),
    Short(7, "null-co, writes, 32", "guest-null-write-32", "embedded", "driver", Always, Speed).gate(AtLeast(0.85)).goal(AtLeast(0.95)),
    Short(7, "file, reads, 32", "guest-file-read-32", "embedded", "driver", Always, Speed).gate(AtLeast(0.85)).goal(AtLeast(0.95)),
    Short(7, "file, writes, 32", "guest-file-write-32", "embedded", "driver", Always, Speed).gate(AtLeast(0.85)).goal(AtLeast(0.95)),
    Short(8, "null-co, reads, 32", "guest-null-read-32", "isolated", "driver", Always, Speed).gate(AtLeast(0.3)).goal(AtLeast(0.7)),
    Short(8, "null-co, writes, 32", "guest-null-write-32", "isolated", "driver", Always, Speed).gate(AtLeast(0.3)).goal(AtLeast(0.7)),
    Short(8, "file, reads, 32", "guest-file-read-32", "isolated", "driver", Always, Speed).gate(AtLeast(0.3)).goal(AtLeast(0.7)),
    Short(8, "file, writes, 32", "guest-file-write-32", "isolated", "driver", Always, Speed).gate(AtLeast(0.3)).goal(AtLeast(0.7)),
    Short(9, "null-co, reads, 1, beside plain io_uring", "guest-null-read-1", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "null-co, reads, 32, beside plain io_uring", "guest-null-read-32", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "null-co, writes, 1, beside plain io_uring", "guest-null-write-1", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "null-co, writes, 32, beside plain io_uring", "guest-null-write-32", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "file, reads, 1, beside plain io_uring", "guest-file-read-1", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "file, reads, 32, beside plain io_uring", "guest-file-read-32", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "file, writes, 1, beside plain io_uring", "guest-file-write-1", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "file, writes, 32, beside plain io_uring", "guest-file-write-32", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.5)),
    Short(9, "null-co, reads, 1, beside polled io_uring", "guest-null-read-1", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "null-co, reads, 32, beside polled io_uring", "guest-null-read-32", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "null-co, writes, 1, beside polled io_uring", "guest-null-write-1", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "null-co, writes, 32, beside polled io_uring", "guest-null-write-32", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "file, reads, 1, beside polled io_uring", "guest-file-read-1", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "file, reads, 32, beside polled io_uring", "guest-file-read-32", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "file, writes, 1, beside polled io_uring", "guest-file-write-1", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(9, "file, writes, 32, beside polled io_uring", "guest-file-write-32", "embedded", "io_uring polled", Always, Speed).gate(AtLeast(1.0)),
    Short(10, "doorbell writes, 32 in flight", "doorbells", "embedded", "", Always, Ours).gate(Below(0.1)),
    Short(11, "embedded, 1, beside pread", "memory-1", "embedded", "pread", Always, Ratio).gate(Below(1.0)),
    Short(11, "embedded, 32, beside io_uring", "memory-32", "embedded", "io_uring", Always, Speed).gate(AtLeast(1.1)),
    Short(11, "isolated, 1, beside pread", "memory-1", "isolated", "pread", Known, Ratio).gate(Below(1.0)).goal(Below(1.0)).told(),
    Short(11, "isolated, 32, beside io_uring", "memory-32", "isolated", "io_uring", Known, Speed).gate(AtLeast(1.1)).goal(AtLeast(1.1)).told(),
    Short(12, "1,000 idle queues", "idle-instructions", "1,000 idle queues", "none", Always, Ratio).gate(AtMost(1.05)).goal(AtMost(1.0)),
    Short(13, "100 idle sessions, of one core", "idle-cores", "100 idle sessions", "", Always, Ours).gate(Below(0.5)).goal(AtMost(0.0)),
    Short(14, "adapter and application asleep", "wake-both", "both asleep", "bare", Always, Ratio).gate(AtMost(1.5)).goal(AtMost(1.2)),
    Short(14, "adapter asleep, application polls", "wake", "isolated", "bare", Always, Ratio).gate(AtMost(1.5)).goal(AtMost(1.2)),
    Short(15, "p99 of one at a time, beside a flood", "flood", "p99 beside a flood", "p99 beside one at a time", Always, Ratio).gate(AtMost(3.0)),
    Short(15, "a session's limit", "limits", "session", "limit", Always, Ratio).gate(Within(0.95, 1.05)),
    Short(15, "a volume's limit", "limits", "volume", "limit", Always, Ratio).gate(Within(0.95, 1.05)),
    Short(16, "shared lines in a request", "shared-lines", "lines", "", Always, Ours).gate(AtMost(0.0)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_there_once_and_has_something_to_hold() {
        for (at, row) in ROWS.iter().enumerate() {
            assert_eq!(row.number as usize, at + 1);
            assert!(CRITERIA.iter().any(|criterion| criterion.row == row.number && criterion.gate.is_some()));
        }
        assert!(CRITERIA.windows(2).all(|pair| pair[0].row <= pair[1].row));
    }
}
