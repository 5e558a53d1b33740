//! What is asked anew when a session goes on.

use crate::system::Case;

pub(super) const CASES: &[Case] = &[];
