//! Completion codes (SYSTEMS 0.3): the first failing check decides.

macro_rules! status {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $label:literal;)+) => {
        /// How a request or a control message ended. An open enumeration: a code that this version does not know is
        /// still carried and printed.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub struct Status(pub u16);

        impl Status {
            $($(#[doc = $doc])+ pub const $name: Self = Self($code);)+

            /// The name as the documentation writes it, `E_ACCESS` for example; `None` for an unknown code.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($label),)+
                    _ => None,
                }
            }

            /// Every code this version knows.
            pub const ALL: &'static [Self] = &[$(Self($code),)+];
        }
    };
}

status! {
    /// All checks passed and the device reported good.
    OK = 0, "OK";
    /// The queue is not in the ready state.
    E_QUEUE_STATE = 1, "E_QUEUE_STATE";
    /// Unknown operation, unknown flag or a reserved field that is not zero.
    E_OPCODE = 2, "E_OPCODE";
    /// The key's index is beyond the table.
    E_KEY_RANGE = 3, "E_KEY_RANGE";
    /// The table segment could not be fetched.
    E_SEGMENT = 4, "E_SEGMENT";
    /// The entry is not valid.
    E_ENTRY_INVALID = 5, "E_ENTRY_INVALID";
    /// The key is stale: its instance differs from the entry's.
    E_KEY_INSTANCE = 6, "E_KEY_INSTANCE";
    /// The entry belongs to another protection domain.
    E_PD_MISMATCH = 7, "E_PD_MISMATCH";
    /// The access control value does not permit the operation.
    E_ACCESS = 8, "E_ACCESS";
    /// The range is empty or goes beyond the entry.
    E_BOUNDS = 9, "E_BOUNDS";
    /// Offset or length is not a multiple of the block size.
    E_ALIGN = 10, "E_ALIGN";
    /// The memory region's key, rights, bounds or alignment do not cover the request.
    E_LOCAL_MEM = 11, "E_LOCAL_MEM";
    /// The device returned an error; its own status is kept beside this one.
    E_DEVICE = 12, "E_DEVICE";
    /// The request was pending when its queue moved to the error state.
    E_FLUSHED = 13, "E_FLUSHED";
    /// Not enough table entries, blocks, queue slots, pinned memory or another limited resource.
    E_NO_RESOURCES = 14, "E_NO_RESOURCES";
    /// I/O was still running on the entry when the timer ended; nothing was changed.
    E_BUSY_TIMEOUT = 15, "E_BUSY_TIMEOUT";
    /// This user may not do that.
    E_AUTH = 16, "E_AUTH";
    /// The thing named is not open.
    E_NOT_OPEN = 17, "E_NOT_OPEN";
    /// A reservation of another host, or another session's exclusive or running right to write, is in the way.
    E_RESERVATION = 18, "E_RESERVATION";
    /// The path or the adapter is lost.
    E_PATH = 19, "E_PATH";
    /// An argument is malformed.
    E_PARAM = 20, "E_PARAM";
    /// Nothing of that name exists.
    E_NO_RESOURCE = 21, "E_NO_RESOURCE";
    /// The doorbell moved by more than the queue has room for.
    E_DOORBELL_OVERRUN = 22, "E_DOORBELL_OVERRUN";
    /// A table's pointer led outside of it.
    E_TABLE_CORRUPT = 23, "E_TABLE_CORRUPT";
    /// The request was cancelled before the device had it.
    E_CANCELLED = 24, "E_CANCELLED";
    /// The request's deadline passed before the device had it.
    E_DEADLINE = 25, "E_DEADLINE";
    /// No request with that user data is waiting or running.
    E_NOT_FOUND = 26, "E_NOT_FOUND";
    /// The peer speaks no version that this side speaks.
    E_VERSION = 27, "E_VERSION";
    /// Something of that name exists already.
    E_EXISTS = 28, "E_EXISTS";
    /// Compared data differs from the blocks.
    E_MISCOMPARE = 29, "E_MISCOMPARE";
    /// The device holds no store, a foreign one or a damaged one.
    E_STORE = 30, "E_STORE";
    /// The range touches a part of a file that has no blocks and reads as zeros: its extensions that allow nothing.
    E_HOLE = 31, "E_HOLE";
    /// The adapter ended before it answered: it was done, or not at all, or in part, and nobody knows which.
    E_OUTCOME_UNKNOWN = 32, "E_OUTCOME_UNKNOWN";
}

impl Status {
    /// Whether this is [`Status::OK`].
    #[inline]
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}

impl core::fmt::Debug for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "E_{}", self.0),
        }
    }
}
