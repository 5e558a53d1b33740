//! Where a file has no blocks. It reads as zeros there, and the adapter has nothing to read: it says E_HOLE, and what a file's
//! extensions allow says where. Only files of file systems that other programs made have holes, and those stay where they
//! are while the file is open.

use std::ops::Range;

use wire::control::{Reply, Request};
use wire::files::{ExtensionInfo, FileInfo};

use crate::error::Error;
use crate::memory::unexpected;

/// All extensions of a file, asked for page by page.
pub(crate) struct Extensions {
    key: u64,
    all: Vec<ExtensionInfo>,
    more: bool,
}

impl Extensions {
    /// Those that came with what the file says of itself.
    pub(crate) fn new(info: FileInfo) -> Self {
        let FileInfo { key, extensions, more, .. } = info;
        Self { key, all: extensions, more }
    }

    /// What to ask for; nothing, if there are no more.
    pub(crate) fn next(&self) -> Option<Request> {
        let skip = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.more.then_some(Request::ListExtensions { key: self.key, skip })
    }

    /// Takes the answer.
    pub(crate) fn take(&mut self, reply: Reply) -> Result<(), Error> {
        match reply {
            // Each page must lead on, or a broken adapter would keep us here for ever.
            Reply::Extensions { extensions, more: true } if extensions.is_empty() => {
                Err(Error::Protocol("a page of extensions is empty and not the last".to_owned()))
            }
            Reply::Extensions { extensions, more } => {
                self.all.extend(extensions);
                self.more = more;
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) fn into_all(self) -> Vec<ExtensionInfo> {
        self.all
    }
}

/// The holes of a file of this length, in its order.
#[derive(Debug)]
pub(crate) struct Holes {
    length: u64,
    all: Vec<Range<u64>>,
}

impl Holes {
    pub(crate) fn new(length: u64, extensions: Vec<ExtensionInfo>) -> Self {
        let holes = extensions.into_iter().filter(|its| its.access == 0);
        let all = holes.map(|its| its.offset..its.offset.saturating_add(its.bytes));
        Self { length, all: all.collect() }
    }

    /// Fills what of a file from `offset` on is in holes. Returns how many bytes the file has there, as many as there is room
    /// for, and which parts of them are to be read.
    pub(crate) fn fill(&self, target: &mut [u8], offset: u64) -> (usize, Vec<Range<usize>>) {
        let end = offset.saturating_add(target.len() as u64).min(self.length).max(offset);
        let place = |at: u64| usize::try_from(at.clamp(offset, end) - offset).unwrap_or(usize::MAX);
        let (mut next, mut blocks) = (0, Vec::new());
        for hole in &self.all {
            let (from, to) = (place(hole.start).max(next), place(hole.end).max(next));
            if next < from {
                blocks.push(next..from);
            }
            target[from..to].fill(0);
            next = to;
        }
        if next < place(end) {
            blocks.push(next..place(end));
        }
        (place(end), blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_up_to_the_end_of_the_file_and_the_rest_is_read() {
        let extension = |offset, bytes, access| ExtensionInfo { key: 0, access, offset, bytes };
        let extensions = vec![
            extension(0, 512, 0),
            extension(512, 1024, 3),
            extension(1536, 512, 0),
            extension(2048, 512, 0),
            extension(2560, 512, 1),
            extension(3072, 1024, 0),
        ];
        let holes = Holes::new(3500, extensions.clone());
        let is_hole = |at: u64| {
            extensions.iter().any(|its| its.access == 0 && (its.offset..its.offset + its.bytes).contains(&at))
        };
        for start in (0..4200u64).step_by(97).chain([u64::MAX - 1]) {
            for bytes in [0, 1, 600, 5000] {
                let mut target = vec![7; bytes];
                let (read, blocks) = holes.fill(&mut target, start);
                let left = usize::try_from(3500u64.saturating_sub(start)).unwrap();
                assert_eq!(read, bytes.min(left));
                for (at, byte) in target.iter().enumerate() {
                    let of_blocks = blocks.iter().any(|part| part.contains(&at));
                    let in_hole = at < read && is_hole(start + at as u64);
                    assert_eq!(of_blocks, at < read && !in_hole, "{at} from {start}");
                    assert_eq!(*byte == 0, in_hole, "{at} from {start}");
                }
            }
        }
    }

    #[test]
    fn holes_that_cannot_be_are_no_more_than_wrong() {
        let extension = |offset, bytes| ExtensionInfo { key: 0, access: 0, offset, bytes };
        let holes = Holes::new(
            u64::MAX,
            vec![extension(900, 100), extension(10, u64::MAX), extension(0, 5), extension(950, 20)],
        );
        let (read, blocks) = holes.fill(&mut [7; 1000], 0);
        assert_eq!((read, blocks), (1000, vec![Range { start: 0, end: 900 }]));
    }
}
