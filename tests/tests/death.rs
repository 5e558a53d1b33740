//! Death at every step, on the device that `PORTCULLIS_DEVICE` names; `emu:64M` if it names none.

use libtest_mimic::{Arguments, Trial};
use tests::death::all;
use tests::system::{Case, Rig};

fn main() -> std::process::ExitCode {
    if tests::process::play_role() {
        return std::process::ExitCode::SUCCESS;
    }
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let mut arguments = Arguments::from_args();
    // What a process holds is counted: one case at a time.
    arguments.test_threads = Some(1);
    let trial = |case: Case| {
        let uri = uri.clone();
        let run = move || {
            let rig = Rig::new(&uri).map_err(|error| format!("{error:#}"))?;
            (case.run)(&rig);
            Ok(())
        };
        Trial::test(case.name, run).with_kind("death")
    };
    libtest_mimic::run(&arguments, all().into_iter().map(trial).collect()).exit_code()
}
