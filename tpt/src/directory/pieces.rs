//! Where the blocks of a grant are: the contiguous parts of it, in order.

use super::Directory;
use crate::fept::{Extensions, Run};
use crate::published::{Extent, LbaEntry, NONE, extent};
use crate::trace::Trace;
use crate::{Access, ExtensionKey, Grant, Iova, Lba, Piece, Request, SegmentSource};

/// Where it is said which blocks a grant has.
#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    /// In the grant: they are one after another.
    Whole,
    /// In the list of a grant of blocks.
    List { owner: u32, root: u32 },
    /// In the extensions of a file, which must give the rights that are needed.
    File { extensions: Extensions<'a>, needed: Access, trace: &'a Trace },
    /// Nowhere.
    Damaged,
}

/// The contiguous parts of a grant that are left; see [`Directory::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    lba: &'a [LbaEntry],
    source: Source<'a>,
    /// The first block that is left, as in a grant.
    at: u64,
    left: u64,
    iova: Option<u64>,
    shift: u8,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        let (lba, blocks) = match self.source {
            Source::Whole => (self.at, self.left),
            Source::List { owner, root } => {
                let Extent { start, first, count } = extent(self.lba, owner, root, self.at)?;
                let skip = self.at - start;
                (first + skip, self.left.min(count - skip))
            }
            Source::File { extensions, needed, trace } => {
                let Run { lba, blocks, .. } = extensions.find(self.lba, self.at, needed, trace)?;
                (lba, self.left.min(blocks))
            }
            Source::Damaged => return None,
        };
        let piece = Piece { lba: Lba(lba), blocks, iova: Iova(self.iova.unwrap_or(0)) };
        self.at += blocks;
        self.left -= blocks;
        self.iova = self.iova.map(|iova| iova + (blocks << self.shift));
        Some(piece)
    }
}

impl<S: SegmentSource> Directory<S> {
    /// The contiguous parts of a grant, from the block after the first `blocks_done`.
    ///
    /// They cover the rest of the grant exactly, unless the LBA table was corrupted after the check: then they end
    /// early, and whoever counts the blocks sees it.
    #[inline]
    pub fn pieces(&self, grant: &Grant, blocks_done: u64) -> Pieces<'_> {
        let done = blocks_done.min(grant.blocks);
        Pieces {
            lba: &self.lba,
            source: self.source_of(grant),
            at: grant.first + done,
            left: grant.blocks - done,
            iova: grant.names_memory().then(|| grant.iova + (done << grant.block_shift())),
            shift: grant.block_shift(),
        }
    }

    /// Where it is said which blocks a grant has.
    #[inline]
    fn source_of(&self, grant: &Grant) -> Source<'_> {
        let owner = grant.key.index().0;
        match grant.root {
            NONE => Source::Whole,
            root if !grant.is_file() => Source::List { owner, root },
            // As long as there is a grant, no extension of the file is taken away.
            _ => match self.entries[owner as usize].extensions(&self.extensions, grant.key) {
                Some(extensions) => {
                    let needed = grant.operation.required_access();
                    Source::File { extensions, needed, trace: &self.trace }
                }
                None => Source::Damaged,
            },
        }
    }

    /// Of a grant of a file the number that the file was created with; `None` of a grant of blocks.
    #[inline]
    pub fn context(&self, grant: &Grant) -> Option<u32> {
        if !grant.is_file() {
            return None;
        }
        // As long as there is a grant, it does not change.
        Some(self.entries.get(grant.key.index().0 as usize)?.list().length)
    }

    /// Where in its file a granted request on one begins, in bytes.
    pub fn offset_in_file(&self, grant: &Grant, request: &Request) -> u64 {
        let before = || {
            // As long as there is a grant, no extension of the file is taken away.
            let entry = self.entries.get(grant.key.index().0 as usize)?;
            let extensions = entry.extensions(&self.extensions, grant.key)?;
            extensions.get(request.extension.index().0, &self.trace).map(|its| its.stretch().offset)
        };
        let named = grant.is_file() && request.extension != ExtensionKey::NONE;
        request.offset.saturating_add(if named { before().unwrap_or(0) } else { 0 })
    }

    /// All of a grant as one piece, if its blocks are one after another in the first range of its entry or in one
    /// extension, so that nothing more need be read. `None` otherwise, and for a flush, which has no blocks:
    /// [`Directory::pieces`] tells then.
    #[inline]
    pub fn only_piece(&self, grant: &Grant) -> Option<Piece> {
        grant.as_one(u64::MAX)
    }
}
