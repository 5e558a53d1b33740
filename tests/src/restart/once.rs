//! Changes that are made once, whenever the adapter ends.

use crate::system::Case;

pub(super) const CASES: &[Case] = &[];
