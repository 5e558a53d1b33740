//! A device that lies in its registers, its completions and its identify data, under the NVMe driver.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(driver::emu::fuzz::hostile_device);
