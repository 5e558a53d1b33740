//! The system suite on the device that `PORTCULLIS_DEVICE` names; `emu:64M` if it names none.

fn main() -> std::process::ExitCode {
    tests::suite::run("system", &tests::system::all(), tests::system::SOFTWARE)
}
