//! The fault matrix on the kind of device that `PORTCULLIS_DEVICE` names; `emu:` if it names none. The software devices
//! are the tests' own.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tests::faults::software::{Kind, cases};
use tests::faults::{Bystander, Table};
use tests::suite::count;

fn main() -> ExitCode {
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let kind = if uri.starts_with("emu-virtio:") { Kind::Virtio } else { Kind::Nvme };
    let mut arguments = Arguments::from_args();
    // They share what runs beside them.
    arguments.test_threads = Some(1);
    let (table, bystander) = (Table::default(), Arc::new(Bystander::start()));
    let trial = |case: tests::faults::software::Case| {
        let (table, bystander) = (table.clone(), bystander.clone());
        let run = move || (case.run)(&bystander, &table).map_err(Failed::from);
        Trial::test(case.name, run).with_kind("faults")
    };
    let conclusion = libtest_mimic::run(&arguments, cases(kind).into_iter().map(trial).collect());
    table.print();
    drop(bystander);
    count(&conclusion, &uri);
    conclusion.exit_code()
}
