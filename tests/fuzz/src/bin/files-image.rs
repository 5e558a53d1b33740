//! A file system whose blocks hold anything at all.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(store::fuzz::files);
