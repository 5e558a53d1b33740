//! The block devices of a PCI function, and all that lies on them: partitions, and what device mapper, md, bcache and loop
//! made of those.

use std::collections::BTreeMap;

use super::Machine;
use super::function::Function;

/// A block device that is, or lies on, a disk of the function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layer {
    /// `nvme0n1p1`, `dm-0`.
    pub(crate) name: String,
    /// Its number, `259:0`.
    pub(crate) number: String,
    /// What it lies on; `None` for a disk of the function.
    pub(crate) on: Option<String>,
    /// What it is, if it is more than the disk or a partition of it: `the LVM volume vg-root (dm-0)`.
    pub(crate) made_into: Option<String>,
}

/// The function's disks: `nvme0n1`, `vda`. A namespace that the kernel reaches by several paths is there by the name that
/// is used for it.
pub(crate) fn disks(machine: &Machine, function: &Function) -> Vec<String> {
    let Some(place) = function.place(machine) else { return Vec::new() };
    let below =
        |name: &String| machine.real(format!("sys/block/{name}")).is_some_and(|at| at.starts_with(&place));
    let mut disks: Vec<String> = machine
        .names("sys/block")
        .into_iter()
        .filter(below)
        .map(|name| without_path(&name).unwrap_or(name))
        .collect();
    disks.sort();
    disks.dedup();
    disks
}

/// Ways to the function's disks that do not lead over the function: `nvme0c1n1`.
pub(crate) fn other_paths(machine: &Machine, function: &Function, disks: &[String]) -> Vec<String> {
    let Some(place) = function.place(machine) else { return Vec::new() };
    let mut paths = machine.names("sys/block");
    paths.retain(|name| {
        without_path(name).is_some_and(|disk| disks.contains(&disk))
            && machine.real(format!("sys/block/{name}")).is_some_and(|at| !at.starts_with(&place))
    });
    paths
}

/// `nvme0n1` from `nvme0c0n1`, the name of one path to it.
fn without_path(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (subsystem, rest) = rest.split_once('c')?;
    let (path, namespace) = rest.split_once('n')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(subsystem) && digits(path) && digits(namespace)).then(|| format!("nvme{subsystem}n{namespace}"))
}

/// The disks and everything that lies on them, however deep, what is below first.
pub(crate) fn layers(machine: &Machine, disks: &[String]) -> Vec<Layer> {
    let loops = loops(machine);
    let mut found: Vec<Layer> = disks.iter().map(|name| layer(machine, name, None)).collect();
    let mut at = 0;
    while let Some(name) = found.get(at).map(|layer| layer.name.clone()) {
        at += 1;
        let class = format!("sys/class/block/{name}");
        let partitions = machine.names(&class);
        let partitions =
            partitions.into_iter().filter(|inner| machine.exists(format!("{class}/{inner}/partition")));
        let above = partitions
            .chain(machine.names(format!("{class}/holders")))
            .chain(loops.iter().filter(|(_, on)| **on == name).map(|(it, _)| it.clone()));
        for inner in above {
            // Something may lie on two of them, and damage must not lead in circles.
            if !found.iter().any(|layer| layer.name == inner) {
                found.push(layer(machine, &inner, Some(name.clone())));
            }
        }
    }
    found
}

fn layer(machine: &Machine, name: &str, on: Option<String>) -> Layer {
    let class = format!("sys/class/block/{name}");
    let made_into = match on {
        Some(_) if !machine.exists(format!("{class}/partition")) => Some(describe(machine, name)),
        _ => None,
    };
    Layer { name: name.to_owned(), number: machine.text(format!("{class}/dev")), on, made_into }
}

/// What a block device on top of others is.
fn describe(machine: &Machine, name: &str) -> String {
    let text = |file: &str| machine.text(format!("sys/class/block/{name}/{file}"));
    let (mapped, uuid) = (text("dm/name"), text("dm/uuid"));
    if !mapped.is_empty() {
        let kind = match uuid.split('-').next() {
            Some("LVM") => "LVM volume",
            Some("CRYPT") => "encrypted device",
            Some("mpath") => "multipath device",
            _ => "device-mapper device",
        };
        return format!("the {kind} {mapped} ({name})");
    }
    if machine.exists(format!("sys/class/block/{name}/md")) {
        return format!("the md array {name} ({})", text("md/level"));
    }
    if name.starts_with("loop") {
        return format!("the loop device {name}");
    }
    if name.starts_with("bcache") {
        return format!("the cached device {name} (bcache)");
    }
    format!("the block device {name}")
}

/// Loop devices over block devices: which lies on which.
fn loops(machine: &Machine) -> BTreeMap<String, String> {
    let names = machine.names("sys/block").into_iter().filter(|name| name.starts_with("loop"));
    let over = |name: String| {
        let file = machine.text(format!("sys/block/{name}/loop/backing_file"));
        Some((name, machine.device_name(&file)?))
    };
    names.filter_map(over).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn names_of_paths_are_told_from_names_of_disks() {
        assert_eq!(without_path("nvme0c1n2").as_deref(), Some("nvme0n2"));
        for name in ["nvme0n1", "nvme0", "vda", "nvmecn", "nvme0c1n", "sdc1"] {
            assert_eq!(without_path(name), None, "{name}");
        }
    }

    #[test]
    fn layers_are_found_however_deep() {
        let fake = Fake::with_disk();
        fake.partition("nvme0n1", "nvme0n1p1")
            .partition("nvme0n1", "nvme0n1p2")
            .stacked("md0", &["nvme0n1p1", "nvme0n1p2"])
            .file("sys/class/block/md0/md/level", "raid1\n")
            .stacked("dm-0", &["md0"])
            .file("sys/class/block/dm-0/dm/name", "vg-data\n")
            .file("sys/class/block/dm-0/dm/uuid", "LVM-abc\n")
            .block("virtual/block", "loop3")
            .file("sys/class/block/loop3/loop/backing_file", "/dev/mapper/vg-data\n")
            .link("dev/mapper/vg-data", "../dm-0")
            .block("pci0000:00/0000:02:00.0/nvme/nvme1", "nvme1n1");
        let machine = fake.machine();
        let disks = disks(&machine, &fake.function());
        assert_eq!(disks, ["nvme0n1"], "and not that of another function");
        let layers = layers(&machine, &disks);
        let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["nvme0n1", "nvme0n1p1", "nvme0n1p2", "md0", "dm-0", "loop3"]);
        let made: Vec<&str> = layers.iter().filter_map(|layer| layer.made_into.as_deref()).collect();
        assert_eq!(
            made,
            ["the md array md0 (raid1)", "the LVM volume vg-data (dm-0)", "the loop device loop3"]
        );
        assert_eq!(layers[5].on.as_deref(), Some("dm-0"));
    }

    #[test]
    fn a_disk_by_several_paths_has_one_name() {
        let fake = Fake::with_function();
        fake.block("virtual/nvme-subsystem/nvme-subsys0", "nvme0n1")
            .block("pci0000:00/0000:01:00.0/nvme/nvme0", "nvme0c0n1")
            .block("pci0000:00/0000:02:00.0/nvme/nvme1", "nvme0c1n1");
        let machine = fake.machine();
        let disks = disks(&machine, &fake.function());
        assert_eq!(disks, ["nvme0n1"]);
        assert_eq!(other_paths(&machine, &fake.function(), &disks), ["nvme0c1n1"]);
    }
}
