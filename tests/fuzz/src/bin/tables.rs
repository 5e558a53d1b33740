//! Operations on the protection tables against an oracle that is slow and obvious.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(tpt::oracle::run);
