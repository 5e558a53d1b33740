//! The fault matrix on the kind of device that `PORTCULLIS_DEVICE` names; `emu:` if it names none. The software devices
//! are the tests' own. A device of a machine needs somebody outside who does to it what is asked for: see
//! `tests::faults::machine`.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tests::faults::software::{Case, Kind, cases};
use tests::faults::{Bystander, Table, machine};
use tests::suite::count;

fn main() -> ExitCode {
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let mut arguments = Arguments::from_args();
    // They share what runs beside them.
    arguments.test_threads = Some(1);
    let table = Table::default();
    let trials =
        if uri.starts_with("vfio:") { on_a_machine(&uri, &table) } else { on_software(&uri, &table) };
    let conclusion = libtest_mimic::run(&arguments, trials);
    table.print();
    count(&conclusion, &uri);
    conclusion.exit_code()
}

fn on_software(uri: &str, table: &Table) -> Vec<Trial> {
    let kind = if uri.starts_with("emu-virtio:") { Kind::Virtio } else { Kind::Nvme };
    let bystander = Arc::new(Bystander::start());
    let trial = |case: Case| {
        let (table, bystander) = (table.clone(), bystander.clone());
        let run = move || (case.run)(&bystander, &table).map_err(Failed::from);
        Trial::test(case.name, run).with_kind("faults")
    };
    cases(kind).into_iter().map(trial).collect()
}

fn on_a_machine(uri: &str, table: &Table) -> Vec<Trial> {
    let one = uri.to_owned();
    let matrix = |name: &'static str, faults: &'static [machine::Fault]| {
        let (uri, table) = (uri.to_owned(), table.clone());
        let run = move || machine::matrix(&uri, faults, &table).map_err(Failed::from);
        Trial::test(name, run).with_kind("faults")
    };
    if let Ok(socket) = std::env::var("PORTCULLIS_SOCKET") {
        let run = move || machine::removals_under_a_daemon(&one, &socket).map_err(Failed::from);
        return vec![Trial::test("a_confined_adapter_has_its_device_back", run).with_kind("faults")];
    }
    let removals = move || machine::removals(&one).map_err(Failed::from);
    vec![
        matrix("faults_that_stay_end_each_request_once", machine::STAYS),
        matrix("a_device_that_is_removed_ends_each_request_once", machine::GOES),
        Trial::test("a_device_that_is_removed_returns_under_load", removals).with_kind("faults"),
    ]
}
