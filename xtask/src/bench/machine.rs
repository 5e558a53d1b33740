//! What the figures were taken on.

use std::fs;
use std::process::Command;
use std::thread;

use serde::Serialize;

use crate::process;

/// This machine, and what runs on it.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    /// As the frequency's keeper says; virtual machines mostly have none.
    pub(crate) governor: String,
    /// The hypervisor, if there is one.
    pub(crate) virtualised: String,
    pub(crate) rustc: String,
    pub(crate) qemu: String,
    pub(crate) guest_kernel: String,
    pub(crate) guest_by: String,
    pub(crate) valgrind: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib: u64 =
            field(&meminfo, "MemTotal").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let has = |wanted: &str| field(&cpuinfo, "flags").split(' ').any(|flag| flag == wanted);
        Self {
            processor: field(&cpuinfo, "model name"),
            cores: thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib.div_ceil(1 << 20),
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .unwrap_or_else(|| "none that the kernel shows".to_owned()),
            virtualised: if has("hypervisor") { hypervisor() } else { "no".to_owned() },
            rustc: first_line("rustc", "--version"),
            qemu: first_line("qemu-system-x86_64", "--version"),
            guest_kernel: qemu::Kernel::cached()
                .map_or_else(|| "none yet".to_owned(), |kernel| kernel.name()),
            guest_by: if has("vmx") || has("svm") {
                "KVM where it opens"
            } else {
                "TCG, as the processor shows no virtualisation"
            }
            .to_owned(),
            valgrind: first_line("valgrind", "--version"),
        }
    }
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> String {
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value).unwrap_or_default()
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn hypervisor() -> String {
    let told = first_line("systemd-detect-virt", "--vm");
    if told.is_empty() || told == "none" { "yes".to_owned() } else { told }
}

fn first_line(program: &str, argument: &str) -> String {
    let told = process::output(Command::new(program).arg(argument)).unwrap_or_default();
    told.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t\t: 167\nmodel name\t: Some CPU @ 2: fast\nflags : a b\n";
        assert_eq!([field(text, "model name"), field(text, "flag")], ["Some CPU @ 2: fast", ""]);
        let here = Machine::here();
        assert!(here.cores > 0 && here.memory_gib > 0 && !here.kernel.is_empty());
    }
}
