//! The program of a suite whose cases get a [`Rig`].

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Conclusion, Trial};

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
    let conclusion = libtest_mimic::run(&arguments, trials);
    count(&conclusion, &uri);
    conclusion.exit_code()
}

/// Says for the reader of the output on which kind of device how many tests passed.
pub fn count(conclusion: &Conclusion, uri: &str) {
    println!("counted: {} tests passed on {}", conclusion.num_passed, kind_of(uri));
}

/// The kind of device that a URI names.
pub(crate) fn kind_of(uri: &str) -> String {
    let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
    if scheme != "vfio" {
        return format!("{scheme}:");
    }
    // What is not NVMe is virtio: there is no third driver.
    let class = std::fs::read_to_string(format!("/sys/bus/pci/devices/{rest}/class")).unwrap_or_default();
    format!("vfio: {}", if class.trim() == "0x010802" { "NVMe" } else { "virtio-blk" })
}
