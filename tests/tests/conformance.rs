//! The conformance suite on the device that `PORTCULLIS_DEVICE` names; `emu:64M` if it names none.
//!
//! On `emu:SIZE` and `emu-virtio:SIZE` all of it runs three times: with blocks of 512 bytes, of 4096 bytes, and on a file.

use std::path::PathBuf;

use driver::emu::FileMedia;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::conformance::{Bench, Case, all, size};
use tests::suite::count;

fn run(uri: &str, case: &Case) -> Result<Completion, Failed> {
    let mut bench = Bench::new(uri).map_err(|error| format!("{error:#}"))?;
    if let Some(why) = bench.lacks(case) {
        return Ok(Completion::ignored_with(why));
    }
    (case.run)(&mut bench);
    Ok(Completion::Completed)
}

/// A file that is gone at the end.
struct Disk(PathBuf);

impl Disk {
    fn new(bytes: u64) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("portcullis-conformance-{}.img", std::process::id()));
        FileMedia::create(&path, bytes)?;
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is not worth failing for.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() -> std::process::ExitCode {
    let uri = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| "emu:64M".to_owned());
    let mut arguments = Arguments::from_args();
    // One device, one case at a time.
    arguments.test_threads = Some(1);
    let software = uri.split_once(':').filter(|(kind, _)| matches!(*kind, "emu" | "emu-virtio"));
    let (kind, memory) = software.map_or(("", None), |(kind, rest)| (kind, size(rest)));
    let disk = memory.map(|bytes| Disk::new(bytes).expect("a file for the device"));
    let mut devices = vec![("conformance", uri.clone())];
    if let Some(Disk(path)) = &disk {
        devices.push(("conformance, 4096-byte blocks", format!("{uri},4096")));
        devices.push(("conformance, file", format!("{kind}:{}", path.display())));
    }
    let mut trials = Vec::new();
    for (kind, uri) in devices {
        for case in all() {
            let uri = uri.clone();
            trials.push(Trial::ignorable_test(case.name, move || run(&uri, &case)).with_kind(kind));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(disk);
    count(&conclusion, &uri);
    conclusion.exit_code()
}
