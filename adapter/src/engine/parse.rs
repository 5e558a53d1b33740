//! A submission entry, copied once, becomes a typed request here or is refused.

use tpt::{ExtensionKey, Key, Memory, Operation, RegionKey, Request};
use wire::Status;
use wire::control::MAX_MESSAGE;
use wire::layout::{MAX_SEGMENTS, MAX_WRITE_BYTES, SubmissionEntry, flag, opcode};

/// What an entry asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// I/O, to be checked by the tables.
    Io {
        /// Hostile values in typed form.
        request: Request,
        /// Microseconds from admission after which it is not started any more; zero for none.
        deadline_us: u32,
        /// Entries of the scatter list that `request.memory` then names; zero if that is the memory itself.
        segments: u8,
        /// Of a write of bytes: it completes only when durable.
        durable: bool,
        /// Of a write of bytes: it goes to the end of its file.
        append: bool,
    },
    /// For the control plane.
    Manage {
        /// Where it lies, and its reply is to be.
        memory: Memory,
        /// Its bytes.
        length: u64,
        /// Bytes that there are for the reply.
        room: u64,
        /// Microseconds from admission after which it is not begun any more; zero for none.
        deadline_us: u32,
    },
    /// Cancel the request with this user data.
    Cancel {
        /// The target's user data.
        target: u64,
    },
}

/// Parses `entry`. Unknown operations and flags, and reserved fields that are not zero, are E_OPCODE: a later version
/// may give them a meaning that this one would get wrong. A write of too many bytes is E_PARAM, and a management request
/// longer than a message, or with more room than one takes.
pub fn parse(entry: &SubmissionEntry) -> Result<Parsed, Status> {
    if let Some(request) = plain(entry) {
        let durable = entry.flags & flag::FUA != 0;
        return Ok(Parsed::Io {
            request,
            deadline_us: entry.deadline_us,
            segments: 0,
            durable,
            append: false,
        });
    }
    parse_rare(entry)
}

/// The first four bytes of entries that read or write one range of memory.
const READ: u32 = u32::from_le_bytes([opcode::READ, 0, 0, 0]);
const WRITE: u32 = u32::from_le_bytes([opcode::WRITE, 0, 0, 0]);
const WRITE_FUA: u32 = u32::from_le_bytes([opcode::WRITE, flag::FUA, 0, 0]);

/// A read or a write of one range of memory, as nearly all are; `None` if it is another operation, or nonsense.
#[inline]
pub(super) fn plain(entry: &SubmissionEntry) -> Option<Request> {
    if u64::from(entry.reserved2) | entry.extension != 0 {
        return None;
    }
    match u32::from_le_bytes([entry.opcode, entry.flags, entry.scatter_count, entry.reserved]) {
        READ => Some(request(entry, Operation::Read, ExtensionKey::NONE)),
        WRITE => Some(request(entry, Operation::Write { fua: false }, ExtensionKey::NONE)),
        WRITE_FUA => Some(request(entry, Operation::Write { fua: true }, ExtensionKey::NONE)),
        _ => None,
    }
}

#[inline]
fn request(entry: &SubmissionEntry, operation: Operation, extension: ExtensionKey) -> Request {
    Request {
        operation,
        key: Key(entry.key),
        extension,
        offset: entry.offset,
        length: u64::from(entry.length),
        memory: Memory { region: RegionKey(entry.region), offset: entry.region_offset },
    }
}

/// Any other entry.
fn parse_rare(entry: &SubmissionEntry) -> Result<Parsed, Status> {
    let segments = entry.scatter_count;
    let scattered = entry.flags & flag::SCATTER != 0;
    if entry.reserved != 0
        || entry.reserved2 != 0
        || (entry.extension != 0 && matches!(entry.opcode, opcode::CANCEL | opcode::MANAGE))
        || scattered == (segments == 0)
        || usize::from(segments) > MAX_SEGMENTS
    {
        return Err(Status::E_OPCODE);
    }
    let operation = match (entry.opcode, entry.flags & !flag::SCATTER) {
        (opcode::READ, 0) => Operation::Read,
        (opcode::WRITE, 0) => Operation::Write { fua: false },
        (opcode::WRITE, flag::FUA) => Operation::Write { fua: true },
        (opcode::COMPARE, 0) => Operation::Compare,
        (opcode::FLUSH, 0) if !scattered => Operation::Flush,
        (opcode::WRITE_ZEROES, 0) if !scattered => Operation::WriteZeroes { deallocate: false },
        (opcode::WRITE_ZEROES, flag::DEALLOCATE) if !scattered => Operation::WriteZeroes { deallocate: true },
        (opcode::DEALLOCATE, 0) if !scattered => Operation::Deallocate,
        (opcode::WRITE_BYTES | opcode::APPEND, 0 | flag::FUA) if !scattered => Operation::WriteBytes,
        (opcode::MANAGE, 0) if !scattered => return manage(entry),
        (opcode::CANCEL, 0) if !scattered => return Ok(Parsed::Cancel { target: entry.offset }),
        _ => return Err(Status::E_OPCODE),
    };
    if operation == Operation::WriteBytes && entry.length > MAX_WRITE_BYTES {
        return Err(Status::E_PARAM);
    }
    let (durable, append) = (entry.flags & flag::FUA != 0, entry.opcode == opcode::APPEND);
    if append && (entry.offset != 0 || entry.extension != 0) {
        return Err(Status::E_OPCODE);
    }
    let request = request(entry, operation, ExtensionKey(entry.extension));
    Ok(Parsed::Io { request, deadline_us: entry.deadline_us, segments, durable, append })
}

fn manage(entry: &SubmissionEntry) -> Result<Parsed, Status> {
    if entry.key != 0 {
        return Err(Status::E_OPCODE);
    }
    let fits = |bytes: u64| (1..=MAX_MESSAGE as u64).contains(&bytes);
    let (length, room, deadline_us) = (u64::from(entry.length), entry.offset, entry.deadline_us);
    if !fits(length) || !fits(room) {
        return Err(Status::E_PARAM);
    }
    let memory = Memory { region: RegionKey(entry.region), offset: entry.region_offset };
    Ok(Parsed::Manage { memory, length, room, deadline_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(op: u8, flags: u8) -> SubmissionEntry {
        SubmissionEntry {
            opcode: op,
            flags,
            key: u64::from(op != opcode::MANAGE),
            offset: 4096,
            length: 512,
            region: 2,
            ..Default::default()
        }
    }

    /// Operations and the flags that they take; those of the second list take memory as a list as well.
    const WITHOUT_LIST: [(u8, u8); 10] = [
        (opcode::MANAGE, 0),
        (opcode::FLUSH, 0),
        (opcode::WRITE_ZEROES, 0),
        (opcode::WRITE_ZEROES, flag::DEALLOCATE),
        (opcode::DEALLOCATE, 0),
        (opcode::CANCEL, 0),
        (opcode::WRITE_BYTES, 0),
        (opcode::WRITE_BYTES, flag::FUA),
        (opcode::APPEND, 0),
        (opcode::APPEND, flag::FUA),
    ];
    const WITH_LIST: [(u8, u8); 4] =
        [(opcode::READ, 0), (opcode::WRITE, 0), (opcode::WRITE, flag::FUA), (opcode::COMPARE, 0)];

    #[test]
    fn every_opcode_flag_and_count_that_is_not_defined_is_refused() {
        for op in 0..=u8::MAX {
            for flags in 0..=u8::MAX {
                for scatter_count in 0..=u8::MAX {
                    let plain = (op, flags);
                    let list = (op, flags & !flag::SCATTER);
                    let defined = if flags & flag::SCATTER == 0 {
                        scatter_count == 0 && (WITH_LIST.contains(&plain) || WITHOUT_LIST.contains(&plain))
                    } else {
                        (1..=32).contains(&scatter_count) && WITH_LIST.contains(&list)
                    };
                    let offset = if op == opcode::APPEND { 0 } else { 4096 };
                    let parsed = parse(&SubmissionEntry { scatter_count, offset, ..entry(op, flags) });
                    assert_eq!(parsed.is_ok(), defined, "opcode {op} flags {flags:#x} count {scatter_count}");
                    if let Ok(Parsed::Io { segments, .. }) = parsed {
                        assert_eq!(segments, scatter_count);
                    }
                }
            }
        }
    }

    #[test]
    fn reserved_fields_must_be_zero() {
        for spoil in [
            |e: &mut SubmissionEntry| e.reserved = 1,
            |e: &mut SubmissionEntry| e.reserved2 = 1,
            |e: &mut SubmissionEntry| e.scatter_count = 1,
        ] {
            let mut e = entry(opcode::READ, 0);
            spoil(&mut e);
            assert_eq!(parse(&e), Err(Status::E_OPCODE));
        }
    }

    #[test]
    fn the_key_of_an_extension_goes_with_any_io() {
        for (op, flags) in WITHOUT_LIST.into_iter().chain(WITH_LIST) {
            if op == opcode::APPEND {
                continue;
            }
            let e = SubmissionEntry { extension: 7 << 32 | 3, ..entry(op, flags) };
            match parse(&e) {
                Ok(Parsed::Io { request, .. }) => assert_eq!(request.extension, ExtensionKey(7 << 32 | 3)),
                other => {
                    assert_eq!(other, Err(Status::E_OPCODE));
                    assert!(op == opcode::CANCEL || op == opcode::MANAGE);
                }
            }
            let Ok(Parsed::Io { request, .. }) = parse(&entry(op, flags)) else { continue };
            assert_eq!(request.extension, ExtensionKey::NONE);
        }
    }

    #[test]
    fn an_append_says_no_place() {
        let good = SubmissionEntry { offset: 0, ..entry(opcode::APPEND, flag::FUA) };
        assert!(matches!(parse(&good), Ok(Parsed::Io { append: true, durable: true, .. })));
        for bad in [
            SubmissionEntry { offset: 1, ..good },
            SubmissionEntry { extension: 1, ..good },
            SubmissionEntry { flags: flag::SCATTER, scatter_count: 1, ..good },
        ] {
            assert_eq!(parse(&bad), Err(Status::E_OPCODE));
        }
        assert_eq!(parse(&SubmissionEntry { length: 65537, ..good }), Err(Status::E_PARAM));
    }

    #[test]
    fn a_write_of_bytes_has_a_greatest_length() {
        let mut e = entry(opcode::WRITE_BYTES, flag::FUA);
        e.length = 65536;
        assert!(matches!(parse(&e), Ok(Parsed::Io { durable: true, .. })));
        e.length = 65537;
        assert_eq!(parse(&e), Err(Status::E_PARAM));
    }

    #[test]
    fn s6_r1_a_management_request_is_no_larger_than_a_message_and_names_no_grant() {
        let good =
            SubmissionEntry { length: 16384, offset: 16384, deadline_us: 3, ..entry(opcode::MANAGE, 0) };
        let memory = Memory { region: RegionKey(2), offset: 0 };
        assert_eq!(parse(&good), Ok(Parsed::Manage { memory, length: 16384, room: 16384, deadline_us: 3 }));
        for (length, offset) in [(0, 1), (1, 0), (16385, 1), (1, 16385), (u32::MAX, u64::MAX)] {
            assert_eq!(parse(&SubmissionEntry { length, offset, ..good }), Err(Status::E_PARAM));
        }
        assert_eq!(parse(&SubmissionEntry { key: 1, ..good }), Err(Status::E_OPCODE));
        assert_eq!(parse(&SubmissionEntry { extension: 1, ..good }), Err(Status::E_OPCODE));
    }

    #[test]
    fn a_length_of_all_ones_stays_a_length() {
        let mut e = entry(opcode::WRITE, flag::FUA);
        e.length = u32::MAX;
        e.offset = u64::MAX;
        let Ok(Parsed::Io { request, .. }) = parse(&e) else { panic!("a write") };
        assert_eq!((request.length, request.offset), (u64::from(u32::MAX), u64::MAX));
        assert_eq!(request.operation, Operation::Write { fua: true });
    }
}
