//! A disk with an ext4 whose metadata holds anything at all.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(store::ext4::fuzz::image);
