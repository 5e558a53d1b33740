//! A device whose metadata area holds anything at all.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(store::fuzz::image);
