//! A device that lies in its capabilities, its registers, its configuration and its used entries, under the virtio driver.
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(driver::emu::virtio::fuzz::hostile_virtio);
