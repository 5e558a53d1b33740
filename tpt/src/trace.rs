//! Which table entries a decision looked at, told to tests (S5-R16). Without the feature `oracle` there is nothing here,
//! and nothing is done.

#[cfg(any(test, feature = "oracle"))]
use alloc::vec::Vec;
#[cfg(any(test, feature = "oracle"))]
use core::cell::RefCell;

use crate::EntryIndex;

/// What was looked at.
#[cfg_attr(not(any(test, feature = "oracle")), allow(unreachable_pub))] // then it is told to nobody
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// An entry of the adapter protection table: of a file its entry of the file name protection table.
    Entry(EntryIndex),
    /// An entry of the file extension protection table, by its position in the whole table.
    Extension(u32),
}

/// What was looked at since it was last asked, one after another, if anybody wants to know.
#[derive(Default, Debug)]
pub(crate) struct Trace {
    #[cfg(any(test, feature = "oracle"))]
    touched: RefCell<Option<Vec<Touch>>>,
}

impl Trace {
    #[inline(always)]
    #[cfg_attr(not(any(test, feature = "oracle")), expect(unused_variables, clippy::unused_self))]
    pub(crate) fn touch(&self, what: Touch) {
        #[cfg(any(test, feature = "oracle"))]
        if let Some(touched) = self.touched.borrow_mut().as_mut() {
            touched.push(what);
        }
    }

    /// What was looked at since the last call; from the first one on it is kept.
    #[cfg(any(test, feature = "oracle"))]
    pub(crate) fn take(&self) -> Vec<Touch> {
        self.touched.borrow_mut().replace(Vec::new()).unwrap_or_default()
    }
}
