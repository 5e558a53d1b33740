//! The decision of any request, one check after the other: what a directory does with what is not decided at once.

use core::sync::atomic::Ordering::Acquire;

use super::{Directory, Located, count};
use crate::fept::{Run, Stretch};
use crate::published::{Entry, NONE, Shape, Stage, StateWord, extent};
use crate::trace::Touch;
use crate::{Denied, Domain, ExtensionKey, Grant, Key, Operation, Request, SEGMENT_ENTRIES, SegmentSource};

/// What an opened file says of itself to who may use it. See [`Directory::file`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFile {
    /// The number that it was created with.
    pub context: u32,
    /// How many bytes its extensions have, which requests may reach.
    pub bytes: u64,
    /// The size of its blocks as a power of two.
    pub block_shift: u8,
}

/// The extension that a request names.
#[derive(Clone, Copy)]
struct Named {
    state: StateWord,
    stretch: Stretch,
}

impl<S: SegmentSource> Directory<S> {
    /// The decision for any request, one check after the other.
    #[cold]
    #[inline(never)]
    pub(super) fn check_in_order<const MEMORY: bool>(
        &mut self,
        domain: Domain,
        request: &Request,
    ) -> Result<Grant, Denied> {
        let fetched = self.bring(domain, request.key)?;
        let (entry, state, shape) = self.admit(domain, request.key)?;
        let named = match request.extension {
            ExtensionKey::NONE => None,
            key => Some(self.extension(domain, entry, request.key, key)?),
        };
        let needed = request.operation.required_access();
        if !state.gives(needed) || named.is_some_and(|its| !its.state.gives(needed)) {
            return Err(Denied::Access);
        }
        // Before the number of extensions, which may become more: so what is in these bytes is in that number.
        let bytes = named.map_or_else(|| entry.bytes.load(Acquire), |its| its.stretch.bytes);
        check_range(request, bytes, shape.shift())?;
        let memory = if MEMORY { self.memory(domain, request)? } else { (NONE, 0) };
        let located = match named {
            Some(its) => self.locate_in_extension(entry, request, its),
            None => self.locate(entry, request),
        };
        let located = located?;
        // The first use does not count: what is used only once goes before what is used again and again.
        let own = &mut self.own[request.key.index().0 as usize];
        if !fetched {
            own.mark_used();
        }
        Ok(count(own, &mut self.memories, request, located, memory))
    }

    /// Sees to it that the entry of a key is at hand, if `domain` may look at it. Whether it had to be fetched.
    fn bring(&mut self, domain: Domain, key: Key) -> Result<bool, Denied> {
        let index = key.index().0;
        if index >= self.published.limits.entries {
            return Err(Denied::KeyRange);
        }
        let segment = index / SEGMENT_ENTRIES;
        if self.is_at_hand(key.index()) {
            return Ok(false);
        }
        if self.published.owner(segment) != Some(domain) {
            return Err(Denied::Domain);
        }
        self.fetch(segment)?;
        Ok(true)
    }

    /// The entry of a key, which is at hand, if it is open to it.
    fn admit(&self, domain: Domain, key: Key) -> Result<(&Entry, StateWord, Shape), Denied> {
        let index = key.index().0;
        let entry = &self.entries[index as usize];
        self.trace.touch(Touch::Entry(key.index()));
        let (state, shape) = (entry.state.get(index), entry.shape());
        if shape.domain() != domain {
            return Err(Denied::Domain);
        }
        match state.stage() {
            Stage::Valid => {}
            Stage::Held => return Err(Denied::Held),
            Stage::Free | Stage::Closed => return Err(Denied::EntryInvalid),
        }
        if state.instance() != key.instance() {
            return Err(Denied::KeyInstance);
        }
        Ok((entry, state, shape))
    }

    /// The extension that a key names, of the file of an entry, if it is open to it. A grant of blocks has none. A pointer
    /// that is not what was written is not followed.
    fn extension(
        &self,
        domain: Domain,
        entry: &Entry,
        file: Key,
        key: ExtensionKey,
    ) -> Result<Named, Denied> {
        let number = key.index().0;
        if !entry.is_sealed(file, entry.shape(), entry.first_range()) {
            return Err(Denied::TableCorrupt);
        }
        let extensions = entry.extensions(&self.extensions, file).ok_or(Denied::TableCorrupt)?;
        let extension = extensions.get(number, &self.trace).ok_or(Denied::KeyRange)?;
        let (state, stretch) = (extension.state.get(number), extension.stretch());
        if state.stage() != Stage::Valid {
            return Err(Denied::EntryInvalid);
        }
        if state.instance() != key.instance() {
            return Err(Denied::KeyInstance);
        }
        if stretch.domain != domain {
            return Err(Denied::Domain);
        }
        Ok(Named { state, stretch })
    }

    /// Where the blocks of a request are that is inside of its entry: one after another from the first range or from one
    /// extension, or in the list, if that knows the first and the last of them, or in the extensions, if none of them is a
    /// hole.
    fn locate(&self, entry: &Entry, request: &Request) -> Result<Located, Denied> {
        let (shape, range) = (entry.shape(), entry.first_range());
        if !entry.is_sealed(request.key, shape, range) {
            return Err(Denied::TableCorrupt);
        }
        let (shift, upper) = (shape.shift(), shape.upper());
        let first = request.offset >> shift;
        let Some(rest) = request.length.checked_sub(1) else {
            return Ok(Located { first: 0, blocks: 0, root: NONE, upper }); // a flush
        };
        // All that hold a byte of it. It does not wrap: it was checked.
        let last = (request.offset + rest) >> shift;
        let blocks = last - first + 1;
        if last < range.blocks {
            return Ok(Located { first: range.first + first, blocks, root: NONE, upper });
        }
        let root = entry.list().root;
        if shape.is_file() {
            let run = self.first_run(entry, request, (first, last))?;
            if run.blocks >= blocks {
                return Ok(Located { first: run.lba, blocks, root: NONE, upper });
            }
        } else {
            self.find_ends(entry, request, (first, last)).ok_or(Denied::TableCorrupt)?;
        }
        Ok(Located { first, blocks, root, upper })
    }

    /// The extension of the first block of a request on a file, if that of its last one is there, too, and there is no hole
    /// among them.
    fn first_run(&self, entry: &Entry, request: &Request, (first, last): (u64, u64)) -> Result<Run, Denied> {
        let extensions = entry.extensions(&self.extensions, request.key).ok_or(Denied::TableCorrupt)?;
        let needed = request.operation.required_access();
        let find = |block| {
            let run = extensions.find(&self.lba, block, needed, &self.trace).ok_or(Denied::TableCorrupt)?;
            if run.is_hole() { Err(Denied::Hole) } else { Ok(run) }
        };
        let run = find(first)?;
        if last - first >= run.blocks && find(last)?.holes != run.holes {
            return Err(Denied::Hole);
        }
        Ok(run)
    }

    /// Whether the list of a grant knows the first and the last block of a request.
    fn find_ends(&self, entry: &Entry, request: &Request, (first, last): (u64, u64)) -> Option<()> {
        let list = entry.list();
        if list.length as usize > self.lba.len() {
            return None;
        }
        let index = request.key.index().0;
        let found = extent(&self.lba, index, list.root, first)?;
        if last - found.start >= found.count {
            extent(&self.lba, index, list.root, last)?;
        }
        Some(())
    }

    /// Where the blocks of a request are that is inside of the extension that it names.
    fn locate_in_extension(&self, entry: &Entry, request: &Request, its: Named) -> Result<Located, Denied> {
        let (shape, number) = (entry.shape(), request.extension.index().0);
        let (shift, upper) = (shape.shift(), shape.upper());
        let extensions = entry.extensions(&self.extensions, request.key).ok_or(Denied::TableCorrupt)?;
        let Some(rest) = request.length.checked_sub(1) else {
            return Ok(Located { first: 0, blocks: 0, root: NONE, upper }); // a flush
        };
        let blocks = ((request.offset + rest) >> shift) - (request.offset >> shift) + 1;
        match extensions.run(&self.lba, number, its.stretch, request.offset) {
            Some(run) if run.is_hole() => Err(Denied::Hole),
            Some(run) if run.blocks >= blocks => Ok(Located { first: run.lba, blocks, root: NONE, upper }),
            _ => Err(Denied::TableCorrupt),
        }
    }

    /// Which region the memory of a request is in, and where the device finds it; neither where no data moves, and no place
    /// for a write of bytes, whose data is copied.
    fn memory(&self, domain: Domain, request: &Request) -> Result<(u32, u64), Denied> {
        let Request { operation, memory, .. } = *request;
        if operation.required_memory_access().is_none() {
            return Ok((NONE, 0));
        }
        let copied = operation == Operation::WriteBytes;
        let found = self.memories.find(domain, request);
        let (region, iova) = found.ok_or(Denied::Memory)?;
        match memory.offset & 3 {
            _ if copied => Ok((region, 0)),
            0 => Ok((region, iova)),
            _ => Err(Denied::Memory),
        }
    }

    /// What an opened file says of itself, if `domain` may do `operation` with it: all of the decision but the range and the
    /// memory. Counts nothing; so it holds until the end of the turn at the most, and does not stand for a check.
    ///
    /// # Errors
    /// As [`Directory::check`], but never `Bounds`, `Alignment` or `Memory`; `EntryInvalid` also of a grant of blocks.
    pub fn file(&mut self, domain: Domain, key: Key, operation: Operation) -> Result<OpenFile, Denied> {
        self.bring(domain, key)?;
        let (entry, state, shape) = self.admit(domain, key)?;
        if !shape.is_file() {
            return Err(Denied::EntryInvalid);
        }
        if !state.gives(operation.required_access()) {
            return Err(Denied::Access);
        }
        if !entry.is_sealed(key, shape, entry.first_range()) {
            return Err(Denied::TableCorrupt);
        }
        let bytes = entry.bytes.load(Acquire);
        Ok(OpenFile { context: entry.list().length, bytes, block_shift: shape.shift() })
    }
}

/// Bounds, then alignment. A flush names no range, a write of bytes need not be aligned.
fn check_range(request: &Request, bytes: u64, shift: u8) -> Result<(), Denied> {
    let (offset, length) = (request.offset, request.length);
    if request.operation == Operation::Flush {
        return if offset == 0 && length == 0 { Ok(()) } else { Err(Denied::Bounds) };
    }
    let end = offset.checked_add(length).ok_or(Denied::Bounds)?;
    if length == 0 || end > bytes {
        return Err(Denied::Bounds);
    }
    let aligned = (offset | length).trailing_zeros() >= u32::from(shift);
    if aligned || request.operation == Operation::WriteBytes { Ok(()) } else { Err(Denied::Alignment) }
}
