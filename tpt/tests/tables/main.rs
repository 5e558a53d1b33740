//! The tables from outside: the requirements of S4, S6 and S8 as far as tables alone can show them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in helpers, too

mod checks;
mod damage;
mod file_management;
mod files;
mod invariants;
mod management;
mod oracle;
mod reset;
mod residency;
mod scale;
mod scattered;
mod support;
mod threads;
