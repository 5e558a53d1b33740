//! What a guest does with a disk beside `portcullis bind`: mounts it, and reads its logs through the kernel's own driver.
//! Run by `qemu/tests/guest/bind.rs`, one at a time.
#![allow(unsafe_code, clippy::unwrap_used)] // the kernel's NVMe ioctl; a step that cannot go on has failed

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The PCI address that is meant.
fn address() -> String {
    std::env::var("PORTCULLIS_ADDRESS").unwrap()
}

/// The controller and the disk of the function, once the kernel has made them: `nvme0`, `nvme0n1`.
fn names() -> (String, String) {
    let directory = format!("/sys/bus/pci/devices/{}/nvme", address());
    let only = |directory: &str, like: &dyn Fn(&str) -> bool| {
        let names = fs::read_dir(directory).into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| like(name))
    };
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let controller = only(&directory, &|name| name.starts_with("nvme"));
        let disk = controller.as_ref().and_then(|controller| {
            only(&format!("{directory}/{controller}"), &|name| name.starts_with("nvme") && name.contains('n'))
        });
        let disk = disk.filter(|_| controller.is_some());
        if let (Some(controller), Some(disk)) = (controller, disk.and_then(|disk| usable(&disk))) {
            return (controller, disk);
        }
        assert!(Instant::now() < end, "no disk below {directory}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The name in /dev: of `nvme0c0n1`, `nvme0n1`.
fn usable(disk: &str) -> Option<String> {
    let plain = match (disk.find('c'), disk.rfind('n')) {
        (Some(path), Some(namespace)) => format!("{}{}", &disk[..path], &disk[namespace..]),
        _ => disk.to_owned(),
    };
    fs::exists(format!("/dev/{plain}")).ok()?.then_some(plain)
}

fn mount(source: &str, place: &str, kind: &str, flags: libc::c_ulong, options: &str) {
    let texts = [source, place, kind, options].map(|text| CString::new(text).unwrap());
    let [source, place, kind, options] = texts.each_ref().map(|text| text.as_ptr());
    // SAFETY: all four are C strings that outlive the call.
    let status = unsafe { libc::mount(source, place, kind, flags, options.cast()) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

fn unmount(place: &str) {
    let place = CString::new(place).unwrap();
    // SAFETY: a C string that outlives the call.
    assert_eq!(unsafe { libc::umount(place.as_ptr()) }, 0, "{}", std::io::Error::last_os_error());
}

/// Read-only and without its journal, so that nothing on the disk changes.
fn mount_at(place: &str) {
    fs::create_dir_all(place).unwrap();
    mount(&format!("/dev/{}", names().1), place, "ext4", libc::MS_RDONLY | libc::MS_NODEV, "noload");
    assert_eq!(fs::read_to_string(format!("{place}/hello")).unwrap(), "still here\n");
}

#[test]
#[ignore = "runs in a guest"]
fn mounts_it() {
    mount_at("/tmp/mounted");
}

#[test]
#[ignore = "runs in a guest"]
fn unmounts_it() {
    unmount("/tmp/mounted");
}

/// In a mount namespace of its own, until it is told to stop.
#[test]
#[ignore = "runs in a guest"]
fn mounts_it_elsewhere() {
    // SAFETY: this thread alone gets the namespace; it shares nothing else.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    mount("none", "/", "none", libc::MS_PRIVATE | libc::MS_REC, "");
    mount_at("/tmp/elsewhere");
    // The process is looked at, not this thread.
    let process = std::process::Command::new("/proc/self/exe")
        .args(["waits_to_be_told", "--exact", "--ignored"])
        .status();
    assert!(process.unwrap().success());
    unmount("/tmp/elsewhere");
}

#[test]
#[ignore = "runs in a guest"]
fn waits_to_be_told() {
    fs::write("/dev/shm/elsewhere", "").unwrap();
    let end = Instant::now() + Duration::from_secs(100);
    while !fs::exists("/dev/shm/enough").unwrap() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `struct nvme_passthru_cmd` of the kernel's nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_length: u32,
    data_length: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// _IOWR('N', 0x41, struct nvme_passthru_cmd)
const NVME_IOCTL_ADMIN_CMD: libc::Ioctl = (3 << 30 | 72 << 16 | (b'N' as u32) << 8 | 0x41) as libc::Ioctl;

/// A log page of the controller, by the kernel's driver.
fn log_page(id: u32, bytes: u32) -> Vec<u8> {
    let file = File::open(format!("/dev/{}", names().0)).unwrap();
    let mut page = vec![0u8; bytes as usize];
    let mut command = Passthrough {
        opcode: 0x02,
        nsid: u32::MAX,
        address: page.as_mut_ptr() as u64,
        data_length: bytes,
        cdw10: (bytes / 4 - 1) << 16 | id,
        ..Passthrough::default()
    };
    // SAFETY: the command is of the size that the request names, and leads to `page` with its length.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &raw mut command) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    page
}

#[test]
#[ignore = "runs in a guest"]
fn reads_its_logs() {
    assert_eq!(size_of::<Passthrough>(), 72);
    for (name, id, bytes) in [("smart", 2, 512), ("errors", 1, 64)] {
        let text: String = log_page(id, bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        println!("log {name} {text}");
    }
}
