//! The conformance suite on the device that `PORTCULLIS_DEVICE` names; `emu:64M` if it names none.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::conformance::{Bench, Case, all};

fn run(uri: &str, case: &Case) -> Result<Completion, Failed> {
    let mut bench = Bench::new(uri).map_err(|error| format!("{error:#}"))?;
    if let Some(why) = bench.lacks(case) {
        return Ok(Completion::ignored_with(why));
    }
    (case.run)(&mut bench);
    Ok(Completion::Completed)
}

fn main() -> std::process::ExitCode {
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let mut arguments = Arguments::from_args();
    // One device, one case at a time.
    arguments.test_threads = Some(1);
    let trial = |case: Case| {
        let uri = uri.clone();
        Trial::ignorable_test(case.name, move || run(&uri, &case)).with_kind("conformance")
    };
    libtest_mimic::run(&arguments, all().into_iter().map(trial).collect()).exit_code()
}
