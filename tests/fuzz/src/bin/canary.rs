//! The canary: it has to be found dead. `cargo xtask fuzz` fails if libFuzzer does not find these four letters, or if
//! the address sanitizer does not see the byte behind the end that is read then.
#![allow(unsafe_code)] // the fault that the sanitizer has to see
#![cfg_attr(fuzzing, no_main)]

fn canary(data: &[u8]) {
    if data.starts_with(b"gate") {
        let letters = Box::new([data[0]; 16]);
        let behind = letters.as_ptr().wrapping_add(std::hint::black_box(letters.len()));
        if cfg!(not(fuzzing)) {
            panic!("the gate is open");
        }
        // SAFETY: none; built with the address sanitizer only, which ends the process here.
        println!("{}", unsafe { behind.read_volatile() });
    }
}

fuzz::target!(canary);
