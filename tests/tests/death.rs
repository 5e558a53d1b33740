//! Death at every step, on the device that `PORTCULLIS_DEVICE` names; `emu:64M` if it names none.

fn main() -> std::process::ExitCode {
    tests::suite::run("death", &tests::death::all(), tests::death::SOFTWARE)
}
