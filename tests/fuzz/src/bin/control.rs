//! Messages of the control socket: foreign packets, and bodies of any kind behind a header that is right.
#![cfg_attr(fuzzing, no_main)]

use wire::control::{FRAME_MAGIC, FrameHeader};
use zerocopy::IntoBytes;

fn control(data: &[u8]) {
    wire::fuzz::control(data);
    let Ok(length) = u32::try_from(data.len()) else {
        return;
    };
    let header = FrameHeader { magic: FRAME_MAGIC, version: wire::VERSION, reserved: 0, length, id: length };
    wire::fuzz::control(&[header.as_bytes(), data].concat());
}

fuzz::target!(control);
