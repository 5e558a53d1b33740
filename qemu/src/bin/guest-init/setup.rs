//! File systems, kernel modules, devices.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qemu::{LoadModule, User};
use rustix::mount::{MountFlags, mount};

/// Mounts what programs expect.
pub(crate) fn mount_all() -> Result<()> {
    let all = [
        ("proc", "/proc", c""),
        ("sysfs", "/sys", c""),
        ("devtmpfs", "/dev", c""),
        ("tmpfs", "/tmp", c"mode=1777"),
        ("tmpfs", "/run", c"mode=1777"),
        ("tmpfs", "/dev/shm", c"mode=1777"),
    ];
    for (kind, target, options) in all {
        match fs::create_dir(target) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).context(target),
            _ => {}
        }
        match mount(kind, target, kind, MountFlags::empty(), options) {
            // The kernel may have mounted /dev itself.
            Err(error) if error != rustix::io::Errno::BUSY => return Err(error).context(target),
            _ => {}
        }
    }
    Ok(())
}

/// Loads `modules`, in their order.
pub(crate) fn load_modules(modules: &[LoadModule]) -> Result<()> {
    for module in modules {
        let file = File::open(&module.path).with_context(|| module.path.clone())?;
        let parameters = std::ffi::CString::new(module.parameters.as_str())?;
        match rustix::system::finit_module(&file, &parameters, 0) {
            Err(error) if error != rustix::io::Errno::EXIST => {
                return Err(error).with_context(|| format!("loading {}", module.path));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Hands the PCI function at `address` to vfio-pci and its group's node to `owner`.
pub(crate) fn bind_vfio(address: &str, owner: Option<User>) -> Result<()> {
    let device = Path::new("/sys/bus/pci/devices").join(address);
    if !device.exists() {
        bail!("there is no PCI function {address}");
    }
    write(&device.join("driver_override"), "vfio-pci")?;
    if device.join("driver").exists() {
        write(&device.join("driver/unbind"), address)?;
    }
    write(Path::new("/sys/bus/pci/drivers_probe"), address)?;
    let driver = fs::read_link(device.join("driver")).with_context(|| format!("{address} has no driver"))?;
    if driver.file_name().is_none_or(|name| name != "vfio-pci") {
        bail!("{address} is bound to {}, not to vfio-pci", driver.display());
    }
    let group =
        fs::read_link(device.join("iommu_group")).with_context(|| format!("{address} is behind no IOMMU"))?;
    let node = Path::new("/dev/vfio").join(group.file_name().context("a group without a number")?);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !node.exists() {
        if Instant::now() >= deadline {
            bail!("{} did not appear", node.display());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Some(User { uid, gid }) = owner {
        chown(&node, Some(uid), Some(gid)).with_context(|| node.display().to_string())?;
    }
    Ok(())
}

/// Calls `line` with each message in the kernel's log.
pub(crate) fn kernel_log(mut line: impl FnMut(String)) -> Result<()> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(nonblock).open("/dev/kmsg")?;
    let mut record = vec![0; 8192];
    loop {
        // One record a read: `priority,sequence,microseconds,flags;text`, then continuation lines.
        match log.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
                let message = text.split_once(';').map_or(text.as_str(), |(_, message)| message);
                line(message.lines().next().unwrap_or_default().to_owned());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // Records were overwritten meanwhile: the next read goes on with the oldest.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(error) => return Err(error).context("/dev/kmsg"),
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {text} to {}", path.display()))
}

/// Brings up the loopback interface, which is the first one.
pub(crate) fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // netlink(7), rtnetlink(7): struct nlmsghdr with RTM_NEWLINK, NLM_F_REQUEST and NLM_F_ACK; struct ifinfomsg with
    // the index 1, and of its flags IFF_UP set and changed.
    let (header, link): ([u32; 4], [u32; 4]) = ([32, 5 << 16 | 16, 1, 0], [0, 1, 1, 1]);
    let message: Vec<u8> = header.iter().chain(&link).flat_map(|word| word.to_ne_bytes()).collect();
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    // The answer is NLMSG_ERROR, whose first word is the error, 0 for none.
    let mut answer = [0; 64];
    let (_, length) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    match answer.get(16..20) {
        Some(&[0, 0, 0, 0]) if length >= 20 => Ok(()),
        word => bail!("the kernel's answer to bringing up the loopback interface is {word:?}"),
    }
}
