//! The virtual hardware, as QEMU's command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::install::QEMU;
use crate::script::RESULTS_PORT;

/// Writing a byte here ends QEMU with exit code `value << 1 | 1`.
pub(crate) const EXIT_PORT: u16 = 0x501;

/// The first NVMe controller's device number on bus 0; the next ones follow.
pub(crate) const FIRST_NVME: usize = 3;

/// The first virtio block device's device number on bus 0; the next ones follow.
pub(crate) const FIRST_VIRTIO: usize = 0x10;

/// An emulated virtio block device behind the IOMMU, without the legacy interface.
#[derive(Clone, Debug)]
pub struct Virtio {
    image: PathBuf,
    serial: String,
    options: Vec<String>,
}

impl Virtio {
    /// On a raw image file of the host, with eight queues.
    pub fn new(image: impl Into<PathBuf>) -> Self {
        Self { image: image.into(), serial: "portcullis".into(), options: vec!["num-queues=8".into()] }
    }

    /// Its serial number.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = serial.into();
        self
    }

    /// An option of QEMU's device: `queue-size=64`. The last of a name counts.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// What QEMU is told of it, the number `index`.
    fn arguments(&self, index: usize) -> [OsString; 4] {
        let drive = valued("format=raw,file=", &self.image, &format!(",if=none,id=virtio{index}"));
        let serial = self.serial.replace(',', ",,");
        let mut device = format!(
            "virtio-blk-pci,drive=virtio{index},serial={serial},disable-legacy=on,iommu_platform=on,addr={:02x}.0",
            FIRST_VIRTIO + index
        );
        for option in &self.options {
            device.push_str(&format!(",{option}"));
        }
        ["-drive".into(), drive, "-device".into(), device.into()]
    }
}

/// An emulated NVMe controller with one namespace.
#[derive(Clone, Debug)]
pub struct Nvme {
    medium: Medium,
    serial: String,
    options: Vec<String>,
    drive_options: Vec<String>,
}

/// What a controller keeps its blocks on.
#[derive(Clone, Debug)]
enum Medium {
    /// A raw image file of the host.
    Image(PathBuf),
    /// Nothing of so many bytes.
    Nothing(u64),
}

impl Nvme {
    /// On a raw image file of the host.
    pub fn new(image: impl Into<PathBuf>) -> Self {
        Self::on(Medium::Image(image.into()))
    }

    /// On nothing: writes go nowhere, reads move no data, both end at once (QEMU's `null-co`). For measuring.
    pub fn without_medium(bytes: u64) -> Self {
        Self::on(Medium::Nothing(bytes))
    }

    fn on(medium: Medium) -> Self {
        Self { medium, serial: "portcullis".into(), options: vec![], drive_options: vec![] }
    }

    /// Its serial number.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = serial.into();
        self
    }

    /// An option of QEMU's device: `mdts=5`.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// An option of QEMU's drive: `cache=none`.
    #[must_use]
    pub fn drive_option(mut self, option: impl Into<String>) -> Self {
        self.drive_options.push(option.into());
        self
    }
}

/// A q35 machine.
#[derive(Clone, Debug)]
pub struct Machine {
    smp: u32,
    memory_mb: u32,
    cpu: Option<String>,
    iommu: bool,
    interrupt_remapping: bool,
    nvme: Vec<Nvme>,
    virtio: Vec<Virtio>,
    kernel_options: Vec<String>,
    qemu_options: Vec<String>,
    pub(crate) limit: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            smp: 2,
            memory_mb: 512,
            cpu: None,
            iommu: true,
            interrupt_remapping: true,
            nvme: vec![],
            virtio: vec![],
            kernel_options: vec![],
            qemu_options: vec![],
            limit: Duration::from_secs(60),
        }
    }
}

impl Machine {
    /// Two CPUs, 512 MiB, an IOMMU with interrupt remapping, no disk, a minute to live.
    pub fn new() -> Self {
        Self::default()
    }

    /// Virtual CPUs.
    #[must_use]
    pub fn smp(mut self, cpus: u32) -> Self {
        self.smp = cpus;
        self
    }

    /// Memory, in MiB.
    #[must_use]
    pub fn memory_mb(mut self, mb: u32) -> Self {
        self.memory_mb = mb;
        self
    }

    /// QEMU's CPU model. Otherwise `host` under KVM, and `qemu64` without, which starts half a second faster than
    /// `max` but has no SSE4.2 and no AVX.
    #[must_use]
    pub fn cpu(mut self, model: impl Into<String>) -> Self {
        self.cpu = Some(model.into());
        self
    }

    /// Whether there is an Intel IOMMU.
    #[must_use]
    pub fn iommu(mut self, on: bool) -> Self {
        self.iommu = on;
        self
    }

    /// Whether the IOMMU remaps interrupts, without which the kernel refuses VFIO unless told otherwise.
    #[must_use]
    pub fn interrupt_remapping(mut self, on: bool) -> Self {
        self.interrupt_remapping = on;
        self
    }

    /// Adds an NVMe controller; see [`crate::nvme_address`] for where it is.
    #[must_use]
    pub fn nvme(mut self, nvme: Nvme) -> Self {
        self.nvme.push(nvme);
        self
    }

    /// Adds a virtio block device; see [`crate::virtio_address`] for where it is.
    #[must_use]
    pub fn virtio(mut self, virtio: Virtio) -> Self {
        self.virtio.push(virtio);
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn kernel_option(mut self, option: impl Into<String>) -> Self {
        self.kernel_options.push(option.into());
        self
    }

    /// Adds arguments to QEMU's command line: another device.
    #[must_use]
    pub fn qemu_options<S: Into<String>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.qemu_options.extend(options.into_iter().map(Into::into));
        self
    }

    /// How long a guest may live on the host's clock, after which it is killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command that starts it with `vmlinux` and the files in `directory`.
    pub(crate) fn command(&self, vmlinux: &Path, directory: &Path) -> Command {
        let kvm = kvm_usable();
        let mut command = Command::new(QEMU);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]);
        // The IOMMU's interrupt remapping wants the interrupt controller, or half of it, in QEMU.
        let machine =
            if kvm { "q35,accel=kvm,kernel-irqchip=split" } else { "q35,accel=tcg,kernel-irqchip=off" };
        let cpu = self.cpu.as_deref().unwrap_or(if kvm { "host" } else { "qemu64" });
        command.args(["-M", machine, "-cpu", cpu, "-smp", &self.smp.to_string()]);
        command.args(["-m", &self.memory_mb.to_string()]);
        command.arg("-kernel").arg(vmlinux);
        command.arg("-initrd").arg(directory.join("initramfs.cpio"));
        command.args(["-append", &self.kernel_command_line(kvm)]);
        command.arg("-serial").arg(valued("file:", &directory.join("console.log"), ""));
        if self.iommu {
            let remapping = if self.interrupt_remapping { "on" } else { "off" };
            command.args(["-device", &format!("intel-iommu,intremap={remapping}")]);
        }
        command.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=0x01")]);
        // Without ioeventfd a write to the port has reached the file when the guest goes on, and so before it exits.
        command.args(["-device", "virtio-serial-pci,addr=1d.0,ioeventfd=off", "-chardev"]);
        command.arg(valued("file,id=results,path=", &directory.join("results.jsonl"), ""));
        command.args(["-device", &format!("virtserialport,chardev=results,name={RESULTS_PORT}")]);
        for (index, nvme) in self.nvme.iter().enumerate() {
            let mut drive = format!(",if=none,id=nvme{index}");
            for option in &nvme.drive_options {
                drive.push_str(&format!(",{option}"));
            }
            command.arg("-drive").arg(match &nvme.medium {
                Medium::Image(image) => valued("format=raw,file=", image, &drive),
                Medium::Nothing(bytes) => format!("driver=null-co,size={bytes}{drive}").into(),
            });
            let serial = nvme.serial.replace(',', ",,");
            let mut device =
                format!("nvme,drive=nvme{index},serial={serial},addr={:02x}.0", FIRST_NVME + index);
            for option in &nvme.options {
                device.push_str(&format!(",{option}"));
            }
            command.args(["-device", &device]);
        }
        for (index, virtio) in self.virtio.iter().enumerate() {
            command.args(virtio.arguments(index));
        }
        command.args(&self.qemu_options);
        command
    }

    fn kernel_command_line(&self, kvm: bool) -> String {
        let mut line =
            "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable no_timer_check cryptomgr.notests \
                        nowatchdog random.trust_cpu=on rodata=off nokaslr"
                .to_owned();
        if let Some(khz) = crate::clock::tsc_khz().filter(|_| !kvm) {
            line.push_str(&format!(" tsc_early_khz={khz}"));
        }
        if self.iommu {
            line.push_str(" intel_iommu=on iommu=pt");
        }
        for option in &self.kernel_options {
            line.push(' ');
            line.push_str(option);
        }
        line
    }
}

/// `before`, a path with QEMU's commas doubled, `after`.
fn valued(before: &str, path: &Path, after: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(path.to_string_lossy().replace(',', ",,"));
    text.push(after);
    text
}

/// KVM is worth something only where the CPU itself virtualises; under a hypervisor that merely offers the device
/// node it is slower than TCG.
fn kvm_usable() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = flags
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    virtualises && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        let command = machine.command(Path::new("/k/vmlinux"), Path::new("/r,un"));
        command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn command_line_says_what_the_machine_is() {
        let nvme = |image: &str| Nvme::new(image).option("mdts=5").drive_option("cache=none");
        let text =
            line(&Machine::new().smp(1).memory_mb(256).nvme(nvme("/a,b.img")).nvme(nvme("/c").serial("s,2")));
        for part in [
            "-smp 1 -m 256 -kernel /k/vmlinux",
            "intel-iommu,intremap=on",
            "intel_iommu=on",
            "format=raw,file=/a,,b.img,if=none,id=nvme0,cache=none",
            "nvme,drive=nvme0,serial=portcullis,addr=03.0,mdts=5",
            "nvme,drive=nvme1,serial=s,,2,addr=04.0,mdts=5",
            "file:/r,,un/console.log",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_disk_may_be_of_nothing() {
        let text = line(&Machine::new().nvme(Nvme::without_medium(1 << 20)));
        assert!(text.contains("-drive driver=null-co,size=1048576,if=none,id=nvme0 "), "{text}");
    }

    #[test]
    fn a_virtio_disk_is_behind_the_iommu() {
        let text = line(&Machine::new().virtio(Virtio::new("/v,1").serial("s").option("queue-size=64")));
        assert!(text.contains("format=raw,file=/v,,1,if=none,id=virtio0"), "{text}");
        let device = "virtio-blk-pci,drive=virtio0,serial=s,disable-legacy=on,iommu_platform=on,addr=10.0,num-queues=8";
        assert!(text.contains(&format!("{device},queue-size=64")), "{text}");
    }

    #[test]
    fn no_iommu_means_none() {
        let text = line(&Machine::new().iommu(false));
        assert!(!text.contains("iommu"), "{text}");
    }
}
