//! Bind and unbind over a machine of files, with a kernel that does to them what Linux does, and that can end the process
//! before or after each thing that it is asked for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::kernel::{Claim, Owner};
use super::*;
use crate::arguments::UserId;
use crate::machine::fake::{ADDRESS, Fake};

/// When the process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    Never,
    Before(usize),
    After(usize),
}

struct FakeKernel<'a> {
    fake: &'a Fake,
    stop: Stop,
    asked: Cell<usize>,
    dead: Cell<bool>,
    /// What was written where.
    written: RefCell<Vec<String>>,
    /// Somebody whom nothing shows has the disk.
    disk_busy: Cell<bool>,
    group_busy: Cell<bool>,
    /// vfio-pci refuses it so often.
    refuses: Cell<u32>,
}

impl<'a> FakeKernel<'a> {
    fn new(fake: &'a Fake, stop: Stop) -> Self {
        Self {
            fake,
            stop,
            asked: Cell::new(0),
            dead: Cell::new(false),
            written: RefCell::default(),
            disk_busy: Cell::new(false),
            group_busy: Cell::new(false),
            refuses: Cell::new(0),
        }
    }

    fn step<T>(&self, effect: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let number = self.asked.replace(self.asked.get() + 1);
        if self.stop == Stop::Before(number) {
            self.dead.set(true);
        }
        if self.dead.get() {
            return Err(io::Error::other("the process has ended"));
        }
        let outcome = effect();
        if self.stop == Stop::After(number) {
            self.dead.set(true);
            return Err(io::Error::other("the process has ended"));
        }
        outcome
    }

    fn device(&self) -> String {
        format!("sys/devices/pci0000:00/{ADDRESS}")
    }

    /// The names of a disk come and go with its driver.
    fn show_disk(&self, shown: bool) {
        for name in ["sys/block/nvme0n1", "sys/class/block/nvme0n1", "dev/nvme0n1"] {
            let (here, away) =
                (self.fake.path(name), self.fake.path(&format!("hidden/{}", name.replace('/', "-"))));
            fs::create_dir_all(away.parent().unwrap()).unwrap();
            let _ = if shown { fs::rename(away, here) } else { fs::rename(here, away) };
        }
        let _ = fs::remove_dir(self.fake.path("hidden"));
    }

    fn attach(&self, driver: &str) -> io::Result<()> {
        let machine = self.fake.machine();
        let only = machine.text(format!("{}/driver_override", self.device()));
        if machine.link(format!("{}/driver", self.device())).is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        if only != "(null)" && only != driver || driver == VFIO && only != VFIO {
            return Err(io::ErrorKind::NotFound.into());
        }
        if driver == VFIO && self.refuses.get() > 0 {
            self.refuses.set(self.refuses.get() - 1);
            return Err(io::ErrorKind::NotFound.into());
        }
        self.fake.link(&format!("{}/driver", self.device()), &format!("../../../bus/pci/drivers/{driver}"));
        if driver == VFIO {
            self.fake.file("dev/vfio/7", "");
            fs::set_permissions(self.fake.path("dev/vfio/7"), fs::Permissions::from_mode(0o400))?;
        } else {
            self.show_disk(true);
        }
        Ok(())
    }

    fn detach(&self) -> io::Result<()> {
        let driver = self.fake.machine().link(format!("{}/driver", self.device()));
        fs::remove_file(self.fake.path(&format!("{}/driver", self.device())))?;
        if driver.as_deref() == Some(VFIO) {
            fs::remove_file(self.fake.path("dev/vfio/7"))
        } else {
            self.show_disk(false);
            Ok(())
        }
    }
}

impl Kernel for FakeKernel<'_> {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let path = path.strip_prefix(self.fake.path("")).unwrap().to_str().unwrap().to_owned();
        self.step(|| {
            self.written.borrow_mut().push(format!("{path} {text}"));
            let own = format!("sys/bus/pci/devices/{ADDRESS}");
            if path == format!("{own}/driver_override") {
                let kept = if text.trim().is_empty() { "(null)" } else { text.trim() };
                self.fake.file(&format!("{}/driver_override", self.device()), &format!("{kept}\n"));
                return Ok(());
            }
            assert_eq!(text, ADDRESS, "{path}");
            if path == format!("{own}/driver/unbind") {
                self.detach()
            } else if path == "sys/bus/pci/drivers_probe" {
                let only = self.fake.machine().text(format!("{}/driver_override", self.device()));
                let _ = self.attach(if only == "(null)" { "nvme" } else { &only });
                Ok(())
            } else if let Some(driver) =
                path.strip_prefix("sys/bus/pci/drivers/").and_then(|p| p.strip_suffix("/bind"))
            {
                self.attach(driver)
            } else {
                panic!("{path} is written to");
            }
        })
    }

    fn load(&self, module: &str) -> io::Result<()> {
        self.step(|| {
            self.written.borrow_mut().push(format!("modprobe {module}"));
            match module {
                "vfio_iommu_type1" => self.fake.directory("sys/module/vfio_iommu_type1"),
                driver => self.fake.directory(&format!("sys/bus/pci/drivers/{driver}")),
            };
            Ok(())
        })
    }

    fn give(&self, node: &Path, owner: Owner) -> io::Result<()> {
        self.step(|| Linux.give(node, owner))
    }

    fn claim(&self, node: &Path, what: Claim) -> io::Result<File> {
        let busy = if what == Claim::Disk { &self.disk_busy } else { &self.group_busy };
        if busy.get() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        File::open(node)
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(|| Linux.create(path, bytes))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| Linux.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|| Linux.remove(path))
    }
}

fn bind_options(fake: &Fake) -> BindOptions {
    BindOptions {
        what: ADDRESS.into(),
        user: Some(UserId(rustix::process::getuid().as_raw())),
        force: false,
        dry_run: false,
        state: fake.path("run/portcullis"),
        root: fake.path(""),
    }
}

fn unbind_options(fake: &Fake) -> UnbindOptions {
    UnbindOptions {
        what: ADDRESS.into(),
        dry_run: false,
        state: fake.path("run/portcullis"),
        root: fake.path(""),
    }
}

fn bind_in(fake: &Fake, kernel: &FakeKernel<'_>) -> Result<Outcome> {
    bind_with(&fake.machine(), kernel, &bind_options(fake))
}

fn unbind_in(fake: &Fake, kernel: &FakeKernel<'_>) -> Result<Unbound> {
    unbind_with(&fake.machine(), kernel, &unbind_options(fake))
}

/// Everything but what is written down: links, texts, permissions.
fn snapshot(fake: &Fake) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, into: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            if name == "run/portcullis" {
                continue;
            }
            let what = if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_dir() {
                walk(root, &path, into);
                "directory".to_owned()
            } else {
                let bytes = fs::read(&path).unwrap();
                let text = if bytes.len() > 4096 {
                    format!("{} bytes", bytes.len())
                } else {
                    String::from_utf8(bytes).unwrap()
                };
                format!("{:o} {text}", meta.permissions().mode())
            };
            into.insert(name, what);
        }
    }
    let mut all = BTreeMap::new();
    walk(&fake.path(""), &fake.path(""), &mut all);
    all.remove("run");
    all
}

/// Fails with what differs, and with nothing else.
fn assert_same(now: &BTreeMap<String, String>, before: &BTreeMap<String, String>, when: &str) {
    let names: std::collections::BTreeSet<&String> = now.keys().chain(before.keys()).collect();
    let differs: Vec<String> = names
        .into_iter()
        .filter(|name| now.get(*name) != before.get(*name))
        .map(|name| format!("{name}: {:?}, was {:?}", now.get(name), before.get(name)))
        .collect();
    assert!(differs.is_empty(), "{when}: {differs:#?}");
}

fn journals(fake: &Fake) -> Vec<String> {
    let mut names = fake.machine().names("run/portcullis/bind");
    names.retain(|name| name.ends_with(".json"));
    names
}

#[test]
fn a_free_disk_is_bound_handed_over_and_given_back() {
    let fake = Fake::with_disk();
    let before = snapshot(&fake);
    let kernel = FakeKernel::new(&fake, Stop::Never);
    let outcome = bind_in(&fake, &kernel).unwrap();
    assert!(outcome.stands() && !outcome.already);
    assert_eq!((outcome.disks, outcome.former_driver), (vec!["nvme0n1".to_owned()], Some("nvme".to_owned())));
    assert!(fake.function().is_bound());
    let mode = fs::metadata(fake.path("dev/vfio/7")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it was 400");

    let again = bind_in(&fake, &kernel).unwrap();
    assert!(again.stands() && again.already, "once more changes nothing");
    assert_eq!(
        find(&fake.machine(), &State::look(&fake.path("run/portcullis/bind")), "/dev/nvme0n1")
            .unwrap()
            .to_string(),
        ADDRESS
    );

    let unbound = unbind_in(&fake, &kernel).unwrap();
    assert_eq!(unbound.driver.as_deref(), Some("nvme"));
    assert_same(&snapshot(&fake), &before, "afterwards");
    assert_eq!(journals(&fake), [""; 0]);
    let error = unbind_in(&fake, &kernel).err().unwrap().to_string();
    assert!(error.contains("not bound to vfio-pci but to nvme"), "{error}");
}

/// What a machine is called, and how it is made.
type Beginning = (&'static str, fn() -> Fake);

/// Machines to begin with.
fn machines() -> [Beginning; 3] {
    [
        ("with a disk", Fake::with_disk),
        ("without a driver", || {
            let fake = Fake::with_disk();
            FakeKernel::new(&fake, Stop::Never).detach().unwrap();
            fake
        }),
        ("with a driver that was chosen", || {
            let fake = Fake::with_disk();
            fake.file(&format!("sys/devices/pci0000:00/{ADDRESS}/driver_override"), "nvme\n");
            fake
        }),
    ]
}

/// Calls `with` with each moment at which a process can be ended, until one whole run was not.
fn every_moment(mut with: impl FnMut(Stop) -> bool) -> usize {
    let mut moments = 0;
    for number in 0.. {
        let ended = [Stop::Before(number), Stop::After(number)].map(&mut with);
        moments += 2;
        if ended == [false, false] {
            break;
        }
    }
    moments
}

#[test]
fn a_bind_that_is_killed_anywhere_is_undone_by_unbind() {
    for (what, make) in machines() {
        let moments = every_moment(|stop| {
            let fake = make();
            let before = snapshot(&fake);
            let kernel = FakeKernel::new(&fake, stop);
            let outcome = bind_in(&fake, &kernel);
            assert_eq!(outcome.is_err(), kernel.dead.get(), "{what} {stop:?}");
            // Where nothing was written down, nothing was changed either.
            let undone = unbind_in(&fake, &FakeKernel::new(&fake, Stop::Never));
            assert!(undone.is_ok() || kernel.dead.get(), "{what} {stop:?}");
            assert_same(&snapshot(&fake), &before, &format!("{what} {stop:?}"));
            assert_eq!(journals(&fake), [""; 0], "{what} {stop:?}");
            kernel.dead.get()
        });
        assert!(moments > 16, "{what}: {moments} moments");
    }
}

#[test]
fn a_bind_that_was_killed_anywhere_can_be_done_again() {
    for (what, make) in machines() {
        every_moment(|stop| {
            let fake = make();
            let before = snapshot(&fake);
            let kernel = FakeKernel::new(&fake, stop);
            let _ = bind_in(&fake, &kernel);
            let again = bind_in(&fake, &FakeKernel::new(&fake, Stop::Never)).unwrap();
            assert!(again.stands() && fake.function().is_bound(), "{what} {stop:?}");
            let mode = fs::metadata(fake.path("dev/vfio/7")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{what} {stop:?}");
            unbind_in(&fake, &FakeKernel::new(&fake, Stop::Never)).unwrap();
            assert_same(&snapshot(&fake), &before, &format!("{what} {stop:?}"));
            kernel.dead.get()
        });
    }
}

#[test]
fn an_unbind_that_was_killed_anywhere_can_be_done_again() {
    for (what, make) in machines() {
        let moments = every_moment(|stop| {
            let fake = make();
            let before = snapshot(&fake);
            bind_in(&fake, &FakeKernel::new(&fake, Stop::Never)).unwrap();
            let kernel = FakeKernel::new(&fake, stop);
            let _ = unbind_in(&fake, &kernel);
            if !journals(&fake).is_empty() {
                unbind_in(&fake, &FakeKernel::new(&fake, Stop::Never)).unwrap();
            }
            assert_same(&snapshot(&fake), &before, &format!("{what} {stop:?}"));
            kernel.dead.get()
        });
        assert!(moments > 8, "{what}: {moments} moments");
    }
}

#[test]
fn what_the_kernel_refuses_is_undone_at_once() {
    let fake = Fake::with_disk();
    let before = snapshot(&fake);
    let kernel = FakeKernel::new(&fake, Stop::Never);
    kernel.refuses.set(u32::MAX);
    let error = format!("{:#}", bind_in(&fake, &kernel).err().unwrap());
    assert!(
        error.contains("nothing was changed in the end") && error.contains("vfio-pci did not take"),
        "{error}"
    );
    assert_same(&snapshot(&fake), &before, "afterwards");
    assert_eq!(journals(&fake), [""; 0]);
}

#[test]
fn a_function_that_the_kernel_is_still_adding_is_waited_for() {
    let fake = Fake::with_disk();
    let kernel = FakeKernel::new(&fake, Stop::Never);
    kernel.refuses.set(3);
    assert!(bind_in(&fake, &kernel).unwrap().stands());
}

/// Binds, with and without --force: says what is in the way, and that nothing was touched.
fn refused(fake: &Fake, kernel: &FakeKernel<'_>, force: bool) -> String {
    let before = snapshot(fake);
    let outcome = bind_with(&fake.machine(), kernel, &BindOptions { force, ..bind_options(fake) }).unwrap();
    assert!(!outcome.stands(), "--force {force}: {}", outcome.as_text());
    assert_eq!(kernel.written.borrow().len(), 0);
    assert_same(&snapshot(fake), &before, "refused");
    assert_eq!(outcome.as_json()["bound"], false);
    outcome.as_text()
}

#[test]
fn each_use_of_a_disk_is_refused_also_by_force() {
    type Arrange = fn(&Fake);
    let cases: &[(&str, Arrange)] = &[
        ("nvme0n1p1 is mounted on /srv", |fake| {
            fake.partition("nvme0n1", "nvme0n1p1");
            fake.mounts("self", &[(&fake.number("nvme0n1p1"), "/srv", "/dev/root")]);
        }),
        ("nvme0n1 is mounted on /: this system runs from it, and it is never taken away", |fake| {
            fake.mounts("self", &[(&fake.number("nvme0n1"), "/", "/dev/root")]);
        }),
        ("dm-0 is mounted on /boot: this system runs from it", |fake| {
            fake.partition("nvme0n1", "nvme0n1p1").stacked("md1", &["nvme0n1p1"]).stacked("dm-0", &["md1"]);
            fake.mounts("self", &[(&fake.number("dm-0"), "/boot", "/dev/mapper/x")]);
        }),
        ("nvme0n1 is swap: this system runs from it", |fake| {
            fake.file("proc/swaps", "Filename\n/dev/nvme0n1 partition\n");
        }),
        ("the block device dm-3 lies on nvme0n1", |fake| {
            fake.stacked("dm-3", &["nvme0n1"]);
        }),
        ("process 9 (dd) has nvme0n1 open", |fake| {
            fake.file("proc/9/comm", "dd\n").link("proc/9/fd/1", "/dev/nvme0n1");
        }),
        ("0000:01:00.1 (e1000e) is in the same IOMMU group 7", |fake| {
            fake.member("0000:01:00.1", "0x020000", Some("e1000e"));
        }),
        ("has 2 virtual functions", |fake| {
            fake.file(&format!("sys/devices/pci0000:00/{ADDRESS}/sriov_numvfs"), "2\n");
        }),
        ("is behind no IOMMU", |fake| {
            fs::remove_file(fake.path(&format!("sys/devices/pci0000:00/{ADDRESS}/iommu_group"))).unwrap();
        }),
        ("is behind no IOMMU", |fake| {
            fake.file("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n");
        }),
        ("neither an NVMe nor a virtio-blk disk", |fake| {
            fake.file(&format!("sys/devices/pci0000:00/{ADDRESS}/class"), "0x020000\n");
        }),
    ];
    for (why, arrange) in cases {
        for force in [false, true] {
            let fake = Fake::with_disk();
            arrange(&fake);
            let said = refused(&fake, &FakeKernel::new(&fake, Stop::Never), force);
            assert!(said.contains(why), "{why:?} is not in {said}");
        }
    }
}

#[test]
fn a_use_that_nothing_shows_is_refused_when_the_kernel_knows_it() {
    let fake = Fake::with_disk();
    let kernel = FakeKernel::new(&fake, Stop::Never);
    kernel.disk_busy.set(true);
    assert!(refused(&fake, &kernel, true).contains("the kernel says that nvme0n1 is in use"));
}

#[test]
fn what_is_on_a_disk_needs_force() {
    let fake = Fake::with_disk();
    let mut image = vec![0; 1 << 20];
    image[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(fake.path("dev/nvme0n1"), &image).unwrap();
    let kernel = FakeKernel::new(&fake, Stop::Never);
    let said = refused(&fake, &kernel, false);
    assert!(said.contains("nvme0n1 holds an ext2, ext3 or ext4 file system"), "{said}");
    assert!(said.contains("--force goes over this"), "{said}");
    fake.block("pci0000:00/0000:02:00.0/nvme/nvme1", "nvme0c1n1");
    assert!(refused(&fake, &kernel, false).contains("by nvme0c1n1, over another controller"));
    let options = BindOptions { force: true, ..bind_options(&fake) };
    let outcome = bind_with(&fake.machine(), &kernel, &options);
    assert!(outcome.unwrap().stands() && fake.function().is_bound());
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let fake = Fake::with_disk();
    fs::remove_dir(fake.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let before = snapshot(&fake);
    let kernel = FakeKernel::new(&fake, Stop::Never);
    let options = BindOptions { dry_run: true, what: "/dev/nvme0n1".into(), ..bind_options(&fake) };
    let outcome = bind_with(&fake.machine(), &kernel, &options).unwrap();
    assert_eq!(kernel.asked.get(), 0);
    assert_same(&snapshot(&fake), &before, "a dry run");
    assert!(!fake.machine().exists("run/portcullis"));
    let uid = rustix::process::getuid().as_raw();
    let own = "/sys/bus/pci/devices/0000:01:00.0";
    assert_eq!(
        outcome.steps,
        [
            "modprobe vfio-pci".to_owned(),
            format!("echo vfio-pci > {own}/driver_override"),
            format!("echo 0000:01:00.0 > {own}/driver/unbind"),
            "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe".to_owned(),
            format!("chown {uid} /dev/vfio/7"),
        ]
    );
    let json = outcome.as_json();
    assert_eq!(
        (&json["dry_run"], &json["bound"], &json["node"]),
        (&json!(true), &json!(false), &json!("/dev/vfio/7"))
    );
    bind_in(&fake, &kernel).unwrap();
    assert!(kernel.written.borrow().contains(&"modprobe vfio-pci".to_owned()));
    let said =
        unbind_with(&fake.machine(), &kernel, &UnbindOptions { dry_run: true, ..unbind_options(&fake) });
    assert_eq!(said.unwrap().text, "0000:01:00.0 would get nvme back, as it was before");
    assert!(fake.function().is_bound());
}

#[test]
fn a_disk_that_an_adapter_drives_is_not_taken_from_it() {
    let fake = Fake::with_disk();
    let kernel = FakeKernel::new(&fake, Stop::Never);
    bind_in(&fake, &kernel).unwrap();
    kernel.group_busy.set(true);
    fake.file("proc/55/comm", "portcullis\n").link("proc/55/fd/8", "/dev/vfio/7");
    let error = unbind_in(&fake, &kernel).err().unwrap().to_string();
    assert!(error.contains("in use by process 55 (portcullis)"), "{error}");
    assert!(fake.function().is_bound());
}

#[test]
fn a_disk_that_was_bound_by_hand_goes_to_whom_the_kernel_finds() {
    let fake = Fake::with_disk();
    let before = snapshot(&fake);
    let by_hand = FakeKernel::new(&fake, Stop::Never);
    by_hand.detach().unwrap();
    fake.file(&format!("sys/devices/pci0000:00/{ADDRESS}/driver_override"), "vfio-pci\n");
    by_hand.attach(VFIO).unwrap();
    // With and without a bind that only handed the node over.
    for hand_over in [false, true] {
        if hand_over {
            by_hand.detach().unwrap();
            fake.file(&format!("sys/devices/pci0000:00/{ADDRESS}/driver_override"), "vfio-pci\n");
            by_hand.attach(VFIO).unwrap();
            assert!(bind_in(&fake, &by_hand).unwrap().already);
        }
        let unbound = unbind_in(&fake, &by_hand).unwrap();
        assert!(unbound.text.contains("has nvme, whichever the kernel finds"), "{}", unbound.text);
        assert_same(&snapshot(&fake), &before, "afterwards");
        assert_eq!(journals(&fake), [""; 0]);
    }
}

#[test]
fn people_name_disks_as_they_know_them() {
    let fake = Fake::with_disk();
    fake.partition("nvme0n1", "nvme0n1p1")
        .link("dev/disk/by-id/x", "../../nvme0n1")
        .block("virtual/block", "ram0");
    fake.link("sys/class/nvme/nvme0", &format!("../../devices/pci0000:00/{ADDRESS}/nvme/nvme0"));
    let state = State::look(&fake.path("none"));
    let named = |what: &str| find(&fake.machine(), &state, what).map(|address| address.to_string());
    for what in [ADDRESS, "01:00.0", "vfio:0000:01:00.0", "/dev/nvme0n1", "/dev/nvme0", "/dev/disk/by-id/x"] {
        assert_eq!(named(what).unwrap(), ADDRESS, "{what}");
    }
    for (what, why) in [
        ("nvme0n1", "also no path"),
        ("/dev/nvme0n1p1", "is a partition"),
        ("/dev/nvme7n1", "there is no"),
        ("/dev/ram0", "no disk on the PCI bus"),
        ("/etc/passwd", "not in /dev"),
    ] {
        let error = named(what).unwrap_err().to_string();
        assert!(error.contains(why), "{what}: {error}");
    }
    let error = format!(
        "{:#}",
        bind_with(
            &fake.machine(),
            &Linux,
            &BindOptions { what: "0000:99:00.0".into(), ..bind_options(&fake) }
        )
        .err()
        .unwrap()
    );
    assert!(error.contains("there is no PCI function 0000:99:00.0"), "{error}");
}
