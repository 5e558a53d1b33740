//! The program of a suite whose cases get a [`Rig`].

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::process::play_role;
use crate::system::{Case, Rig};

/// Runs the cases on the device that `PORTCULLIS_DEVICE` names, `emu:64M` if it names none; those in `software`, which bring
/// software devices of their own, only where it names a software device, too.
pub fn run(kind: &str, any: &[Case], software: &[Case]) -> ExitCode {
    if play_role() {
        return ExitCode::SUCCESS;
    }
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let mut arguments = Arguments::from_args();
    // One device, and what a process holds is counted: one case at a time.
    arguments.test_threads = Some(1);
    let trial = |case: &Case, only_software: bool| {
        let (case, uri) = (*case, uri.clone());
        let run = move || {
            let rig = Rig::new(&uri).map_err(|error| format!("{error:#}"))?;
            if only_software && !rig.is_software() {
                return Ok(Completion::ignored_with("it brings a software device of its own"));
            }
            (case.run)(&rig);
            Ok(Completion::Completed)
        };
        Trial::ignorable_test(case.name, run).with_kind(kind)
    };
    let any = any.iter().map(|case| trial(case, false));
    let trials = any.chain(software.iter().map(|case| trial(case, true))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
