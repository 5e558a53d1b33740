//! Messages of the control socket, whole, cut short and foreign.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(wire::fuzz::control);
