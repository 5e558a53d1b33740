//! The system suite on the device that `PORTCULLIS_DEVICE` names; `emu:64M` if it names none.

use libtest_mimic::{Arguments, Trial};
use tests::system::{Case, Rig, all};

fn main() -> std::process::ExitCode {
    if tests::process::play_role() {
        return std::process::ExitCode::SUCCESS;
    }
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let mut arguments = Arguments::from_args();
    // One device, one case at a time.
    arguments.test_threads = Some(1);
    let trial = |case: Case| {
        let uri = uri.clone();
        let run = move || {
            let rig = Rig::new(&uri).map_err(|error| format!("{error:#}"))?;
            (case.run)(&rig);
            Ok(())
        };
        Trial::test(case.name, run).with_kind("system")
    };
    libtest_mimic::run(&arguments, all().into_iter().map(trial).collect()).exit_code()
}
