//! A peer that scribbles over its queue and lies about its counts, under the adapter's end.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(wire::fuzz::peer);
