//! Who uses a disk: mounts in all mount namespaces that can be seen, swap, what was made of it, processes, NVMe targets.

use std::collections::BTreeSet;

use super::Machine;
use super::block::Layer;

/// Without what is mounted here the machine does not run or does not start again.
const ESSENTIAL: &[&str] = &["/", "/boot", "/boot/efi", "/efi", "/usr", "/var"];

/// Somebody who uses a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    /// Who, on what: `nvme0n1p1 is mounted on /srv`.
    pub(crate) what: String,
    /// What ends it.
    pub(crate) mend: Option<String>,
    /// The system itself lies on it.
    pub(crate) essential: bool,
}

impl User {
    fn new(what: String) -> Self {
        Self { what, mend: None, essential: false }
    }
}

/// All who use any of `layers`.
pub(crate) fn users(machine: &Machine, layers: &[Layer]) -> Vec<User> {
    let mut users = mounted(machine, layers);
    users.extend(swap(machine, layers));
    users.extend(layers.iter().filter_map(|layer| {
        let (made_into, on) = (layer.made_into.as_ref()?, layer.on.as_ref()?);
        Some(User::new(format!("{made_into} lies on {on}")))
    }));
    users.extend(processes(machine, layers));
    users.extend(exported(machine, layers));
    users
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
struct Mount {
    number: String,
    place: String,
    source: String,
}

/// The mounts of one mount namespace; none if they cannot be read.
fn mounts(machine: &Machine, process: &str) -> Vec<Mount> {
    let text = machine.text(format!("proc/{process}/mountinfo"));
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let source = right.split(' ').nth(1)?;
        Some(Mount {
            number: (*left.get(2)?).to_owned(),
            place: unescape(left.get(4)?),
            source: unescape(source),
        })
    };
    text.lines().filter_map(mount).collect()
}

/// Without the octal escapes that mountinfo and swaps write for blanks, tabs, newlines and backslashes.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        bytes = match rest {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] if *first == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest
            }
            rest => {
                plain.push(*first);
                rest
            }
        };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn mounted(machine: &Machine, layers: &[Layer]) -> Vec<User> {
    let several = file_systems_of_several_devices(machine, layers);
    let which = |mount: &Mount| {
        let by_number = layers.iter().find(|layer| !layer.number.is_empty() && layer.number == mount.number);
        // Some file systems have a number of their own, or several devices; then their source tells.
        let sources = mount.source.split(':').filter_map(|source| machine.device_name(source));
        let mut sources = sources.collect::<Vec<_>>();
        let also = several.iter().filter(|(members, _)| sources.iter().any(|name| members.contains(name)));
        let also = also.map(|(_, ours)| ours.clone()).collect::<Vec<_>>();
        sources.extend(also);
        by_number.or_else(|| layers.iter().find(|layer| sources.contains(&layer.name)))
    };
    let mut users: Vec<User> = Vec::new();
    for (number, process) in namespaces(machine).iter().enumerate() {
        let all = mounts(machine, process);
        let essential = if number == 0 { essential_places(machine, &all) } else { BTreeSet::new() };
        for mount in &all {
            let Some(layer) = which(mount) else { continue };
            let seen_from = if number == 0 {
                String::new()
            } else {
                format!(" in the mount namespace of process {process}")
            };
            let mut user = User::new(format!("{} is mounted on {}{seen_from}", layer.name, mount.place));
            user.essential = essential.contains(&mount.place);
            user.mend =
                (number == 0 && !user.essential).then(|| format!("sudo umount {}", quoted(&mount.place)));
            // One file system may be there many times, by bind mounts and in copied namespaces.
            let told = |told: &User| told.what.starts_with(&format!("{} is mounted", layer.name));
            if user.essential || number == 0 || !users.iter().any(told) {
                users.push(user);
            }
        }
    }
    users
}

/// A word of a shell command.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// btrfs file systems that have one of the layers: all their devices, and that one.
fn file_systems_of_several_devices(machine: &Machine, layers: &[Layer]) -> Vec<(Vec<String>, String)> {
    let all = machine
        .names("sys/fs/btrfs")
        .into_iter()
        .map(|id| machine.names(format!("sys/fs/btrfs/{id}/devices")));
    let with_ours = all.filter_map(|members| {
        let ours = layers.iter().find(|layer| members.contains(&layer.name))?.name.clone();
        Some((members, ours))
    });
    with_ours.collect()
}

/// One process for each mount namespace: this one's first.
fn namespaces(machine: &Machine) -> Vec<String> {
    let of = |process: &str| machine.link(format!("proc/{process}/ns/mnt"));
    let mut seen: BTreeSet<Option<String>> = BTreeSet::from([of("self"), None]);
    let mut processes = vec!["self".to_owned()];
    processes.extend(numbered(machine).filter(|process| seen.insert(of(process))));
    processes
}

fn numbered(machine: &Machine) -> impl Iterator<Item = String> {
    machine.names("proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Where what the system needs is mounted, the running program's own file among it.
fn essential_places(machine: &Machine, mounts: &[Mount]) -> BTreeSet<String> {
    let mut places: BTreeSet<String> = ESSENTIAL.iter().map(|place| (*place).to_owned()).collect();
    let program = std::fs::read_link(machine.path("proc/self/exe")).ok();
    if let Some(program) = program {
        let above = mounts.iter().filter(|mount| program.starts_with(&mount.place));
        places.extend(above.max_by_key(|mount| mount.place.len()).map(|mount| mount.place.clone()));
    }
    places
}

fn swap(machine: &Machine, layers: &[Layer]) -> Vec<User> {
    let swaps = machine.text("proc/swaps");
    let mut users = Vec::new();
    for file in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape) {
        let name = machine.device_name(&file);
        if let Some(layer) = layers.iter().find(|layer| Some(&layer.name) == name.as_ref()) {
            users.push(User {
                what: format!("{} is swap", layer.name),
                mend: Some(format!("sudo swapoff {}", quoted(&file))),
                essential: true,
            });
        }
    }
    users
}

/// Processes that have one of the layers open.
fn processes(machine: &Machine, layers: &[Layer]) -> Vec<User> {
    let own = std::process::id().to_string();
    let mut users = Vec::new();
    for process in numbered(machine).filter(|process| *process != own) {
        let open = machine.names(format!("proc/{process}/fd")).into_iter().find_map(|number| {
            let file = std::fs::read_link(machine.path(format!("proc/{process}/fd/{number}"))).ok()?;
            let name = machine.device_name(file.to_str()?)?;
            layers.iter().find(|layer| layer.name == name)
        });
        if let Some(layer) = open {
            let program = machine.text(format!("proc/{process}/comm"));
            users.push(User::new(format!("process {process} ({program}) has {} open", layer.name)));
        }
    }
    users
}

/// Namespaces of the kernel's NVMe target, which claims no device that it exports.
fn exported(machine: &Machine, layers: &[Layer]) -> Vec<User> {
    const TARGET: &str = "sys/kernel/config/nvmet/subsystems";
    let mut users = Vec::new();
    for subsystem in machine.names(TARGET) {
        for namespace in machine.names(format!("{TARGET}/{subsystem}/namespaces")) {
            let at = format!("{TARGET}/{subsystem}/namespaces/{namespace}");
            let name = machine.device_name(&machine.text(format!("{at}/device_path")));
            let ours = layers.iter().find(|layer| Some(&layer.name) == name.as_ref());
            if let Some(layer) = ours.filter(|_| machine.text(format!("{at}/enable")) == "1") {
                let what =
                    format!("the NVMe target exports {} as namespace {namespace} of {subsystem}", layer.name);
                users.push(User { mend: Some(format!("echo 0 | sudo tee /{at}/enable")), ..User::new(what) });
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::super::block;
    use super::super::fake::Fake;
    use super::*;

    fn found(fake: &Fake) -> Vec<User> {
        let machine = fake.machine();
        let disks = block::disks(&machine, &fake.function());
        users(&machine, &block::layers(&machine, &disks))
    }

    /// What is found, and whether any of it is essential.
    fn only(fake: &Fake) -> (String, bool) {
        let users = found(fake);
        assert_eq!(users.len(), 1, "{users:?}");
        (users[0].what.clone(), users[0].essential)
    }

    #[test]
    fn nobody_uses_a_disk_that_nobody_uses() {
        let fake = Fake::with_disk();
        fake.block("pci0000:00/0000:02:00.0/nvme/nvme1", "nvme1n1")
            .mounts("self", &[("8:1", "/", "/dev/sda1"), ("0:5", "/proc", "proc")])
            .file("proc/swaps", "Filename Type\n/dev/nvme1n1 partition\n")
            .link("proc/77/fd/3", "/dev/nvme1n1");
        assert_eq!(found(&fake), []);
    }

    #[test]
    fn a_mount_is_found_by_its_number_and_by_its_source() {
        let fake = Fake::with_disk();
        fake.partition("nvme0n1", "nvme0n1p1");
        let number = fake.number("nvme0n1p1");
        fake.mounts("self", &[(&number, "/srv/my\\040data", "/dev/root")]);
        assert_eq!(only(&fake), ("nvme0n1p1 is mounted on /srv/my data".into(), false));
        assert_eq!(found(&fake)[0].mend.as_deref(), Some("sudo umount '/srv/my data'"));

        fake.mounts("self", &[("0:44", "/srv", "/dev/disk/by-label/x")])
            .link("dev/disk/by-label/x", "../../nvme0n1p1");
        assert_eq!(only(&fake), ("nvme0n1p1 is mounted on /srv".into(), false));
        fake.mounts("self", &[("0:44", "/srv", "/dev/sdz:/dev/nvme0n1p1")]);
        assert_eq!(only(&fake).0, "nvme0n1p1 is mounted on /srv");
    }

    #[test]
    fn a_mount_in_another_namespace_is_found() {
        let fake = Fake::with_disk();
        let number = fake.number("nvme0n1");
        fake.mounts("self", &[])
            .mounts("12", &[("0:1", "/", "overlay"), (&number, "/data", "/dev/nvme0n1")])
            .link("proc/self/ns/mnt", "mnt:[1]")
            .link("proc/12/ns/mnt", "mnt:[2]")
            .mounts("13", &[(&number, "/data", "/dev/nvme0n1")])
            .link("proc/13/ns/mnt", "mnt:[2]");
        assert_eq!(only(&fake).0, "nvme0n1 is mounted on /data in the mount namespace of process 12");
    }

    #[test]
    fn what_the_system_lies_on_is_essential_through_any_number_of_layers() {
        let fake = Fake::with_disk();
        fake.partition("nvme0n1", "nvme0n1p3").stacked("md0", &["nvme0n1p3"]).stacked("dm-1", &["md0"]);
        for place in ["/", "/boot", "/boot/efi", "/usr"] {
            fake.mounts("self", &[(&fake.number("dm-1"), place, "/dev/mapper/vg-root")]);
            let users = found(&fake);
            assert!(users[0].essential && users[0].mend.is_none(), "{users:?}");
            assert_eq!(users.len(), 3, "and what was made of it");
        }
        fake.mounts("self", &[("8:1", "/", "/dev/sda1"), (&fake.number("dm-1"), "/opt", "x")]);
        assert!(!found(&fake)[0].essential);
        fake.link("proc/self/exe", "/opt/bin/portcullis");
        assert!(found(&fake)[0].essential, "the program itself");
    }

    #[test]
    fn swap_is_essential() {
        let fake = Fake::with_disk();
        fake.partition("nvme0n1", "nvme0n1p2")
            .file("proc/swaps", "Filename Type Size\n/dev/nvme0n1p2 partition 1\n");
        assert_eq!(only(&fake), ("nvme0n1p2 is swap".into(), true));
    }

    #[test]
    fn each_kind_of_layer_is_a_user() {
        let fake = Fake::with_disk();
        fake.partition("nvme0n1", "nvme0n1p1").stacked("bcache0", &["nvme0n1p1"]);
        assert_eq!(only(&fake).0, "the cached device bcache0 (bcache) lies on nvme0n1p1");
    }

    #[test]
    fn one_of_several_devices_of_a_file_system_is_in_use() {
        let fake = Fake::with_disk();
        fake.link("sys/fs/btrfs/1-2/devices/sda", "../../../../block/sda")
            .link("sys/fs/btrfs/1-2/devices/nvme0n1", "../../../../block/nvme0n1")
            .mounts("self", &[("0:33", "/", "/dev/sda")]);
        assert_eq!(only(&fake), ("nvme0n1 is mounted on /".into(), true));
    }

    #[test]
    fn a_process_that_has_it_open_and_a_target_that_exports_it_are_named() {
        let fake = Fake::with_disk();
        fake.file("proc/4711/comm", "qemu\n").link("proc/4711/fd/9", "/dev/nvme0n1");
        assert_eq!(only(&fake).0, "process 4711 (qemu) has nvme0n1 open");

        let fake = Fake::with_disk();
        let at = "sys/kernel/config/nvmet/subsystems/nqn/namespaces/1";
        fake.file(&format!("{at}/device_path"), "/dev/nvme0n1\n").file(&format!("{at}/enable"), "0\n");
        assert_eq!(found(&fake), []);
        fake.file(&format!("{at}/enable"), "1\n");
        assert_eq!(only(&fake).0, "the NVMe target exports nvme0n1 as namespace 1 of nqn");
    }

    #[test]
    fn escapes_of_the_kernel_are_undone() {
        assert_eq!(unescape(r"a\040b\134c\011\777x\"), "a b\\c\t\\777x\\");
    }
}
