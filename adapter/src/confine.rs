//! The adapter's process confines itself, so that a bug in it reaches no further than what it serves.
//!
//! Before it opens anything, where the kernel has Landlock: it writes to nothing but its device and the directory of its
//! socket, executes nothing, binds and connects no TCP port, and signals nobody outside. Once it serves: no new
//! privileges, and a filter of system calls for all its threads. What is not on the list fails with EPERM: opening files,
//! starting programs, new sockets, memory that can be executed.
//!
//! A device on VFIO that went away and comes back must be found and opened again. So where Landlock says which files those
//! can be (it reads below /sys, /proc and /dev, and writes below /dev/vfio and to nothing else), opening stays allowed. Where
//! the kernel has no Landlock it does not, and a device that is removed is gone until the adapter is started again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

use crate::device::DeviceUri;

/// Versions of Landlock that are of use here, the newest first, and what the kernel calls them.
const VERSIONS: [(ABI, u8); 6] =
    [(ABI::V6, 6), (ABI::V5, 5), (ABI::V4, 4), (ABI::V3, 3), (ABI::V2, 2), (ABI::V1, 1)];

/// What a kernel has to confine a process with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Available {
    /// The version of Landlock, up to the newest that is of use here.
    pub landlock: Option<u8>,
    /// Filters of system calls.
    pub seccomp: bool,
}

/// Finds out, and confines nothing.
pub fn available() -> Available {
    let has = |abi: ABI| whole(abi, CompatLevel::HardRequirement).is_ok();
    let landlock = VERSIONS.iter().find(|(abi, _)| has(*abi)).map(|(_, version)| *version);
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    Available { landlock, seccomp: actions.split_whitespace().any(|action| action == "errno") }
}

/// How a process is confined.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Confinement {
    /// Nothing that it executes could have more privileges than it has.
    pub no_new_privileges: bool,
    /// It can make so many system calls, if they are limited.
    pub system_calls: Option<usize>,
    /// The version of Landlock that limits its files.
    pub landlock: Option<u8>,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.system_calls.map(|count| format!("{count} system calls and no others"));
        let files = self.landlock.map(|version| format!("no files but its own (Landlock {version})"));
        let privileges = self.no_new_privileges.then(|| "no new privileges".to_owned());
        let parts: Vec<String> = [privileges, calls, files].into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("nothing") } else { f.write_str(&parts.join(", ")) }
    }
}

/// A rule set over all that a version knows.
fn whole(abi: ABI, level: CompatLevel) -> Result<landlock::RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default().set_compatibility(level).handle_access(AccessFs::from_all(abi))?;
    if !AccessNet::from_all(abi).is_empty() {
        rules = rules.handle_access(AccessNet::from_all(abi))?;
    }
    if !Scope::from_all(abi).is_empty() {
        rules = rules.scope(Scope::from_all(abi))?;
    }
    rules.create()
}

/// Limits the files of this thread and of all that it will start, and says by which version of Landlock.
pub(crate) fn limit_files(device: &DeviceUri, socket: &Path) -> Option<u8> {
    let version = available().landlock?;
    match try_limit_files(device, socket) {
        Ok(RulesetStatus::NotEnforced) => None,
        Ok(_) => Some(version),
        Err(error) => {
            tracing::warn!(%error, "the adapter's files could not be limited by Landlock");
            None
        }
    }
}

fn try_limit_files(device: &DeviceUri, socket: &Path) -> Result<RulesetStatus, RulesetError> {
    const NEWEST: ABI = ABI::V6;
    let directory = match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let looks = AccessFs::ReadFile | AccessFs::ReadDir;
    // Who may still open files when it serves gets to see what it needs to find its device, and no more.
    let seen: &[&str] = if comes_back(device) { &["/sys", "/proc", "/dev"] } else { &["/"] };
    let drives = looks | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let listens = AccessFs::MakeSock | AccessFs::RemoveFile;
    let driven: &Path = match device {
        DeviceUri::EmuFile(path) => path,
        DeviceUri::Vfio(_) => Path::new("/dev/vfio"),
        _ => Path::new("/dev/null"),
    };
    let restricted = whole(NEWEST, CompatLevel::BestEffort)?
        .add_rules(path_beneath_rules(seen, looks))?
        .add_rules(path_beneath_rules([driven], drives))?
        .add_rules(path_beneath_rules([directory], listens))?
        .restrict_self()?;
    Ok(restricted.ruleset)
}

/// Whether a device is opened again when it has come back.
pub(crate) const fn comes_back(device: &DeviceUri) -> bool {
    matches!(device, DeviceUri::Vfio(_))
}

/// Limits the system calls of all threads of this process, those to come too, and forbids new privileges. With `opens` files
/// may still be opened: where something else says which.
///
/// # Errors
/// What the kernel, or the filter's compiler, says; then nothing is limited.
pub(crate) fn limit_system_calls(opens: bool) -> Result<usize, Box<dyn std::error::Error>> {
    let arch = std::env::consts::ARCH.try_into()?;
    // The C library asks first for what it can do without if it is said not to exist: the flags of clone3 lie in memory,
    // where a filter cannot see that only a thread is wanted.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let unknown = SeccompFilter::new(unknown, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
    let allowed = allowed(opens)?;
    let count = allowed.len() - 1;
    let allowed = SeccompFilter::new(allowed, errno(libc::EPERM), SeccompAction::Allow, arch)?;
    for filter in [unknown, allowed] {
        apply_filter_all_threads(&BpfProgram::try_from(filter)?)?;
    }
    Ok(count)
}

const fn errno(error: i32) -> SeccompAction {
    SeccompAction::Errno(error.unsigned_abs())
}

/// Calls that are allowed whatever their arguments.
const ALWAYS: &[i64] = &[
    // Memory; what may be mapped is below.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    // Descriptors that are open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // Connections to the socket that is listened on.
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Threads.
    libc::SYS_clone3, // see `limit_system_calls`
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time, numbers, names of this process.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // The socket's file, at the end; Landlock says where.
    libc::SYS_unlinkat,
];

/// The same, of processors that kept the forms of old.
#[cfg(target_arch = "x86_64")]
const OF_OLD: &[i64] =
    &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_unlink, libc::SYS_time, libc::SYS_newfstatat];
#[cfg(not(target_arch = "x86_64"))]
const OF_OLD: &[i64] = &[libc::SYS_newfstatat];

/// What finding and opening a device takes, beside.
const OPENING: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
];
/// The same, of processors that kept the forms of old.
#[cfg(target_arch = "x86_64")]
const OPENING_OF_OLD: &[i64] = &[libc::SYS_readlink, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access];
#[cfg(not(target_arch = "x86_64"))]
const OPENING_OF_OLD: &[i64] = &[];

/// Requests to VFIO are of this type (vfio.h).
const VFIO_TYPE: u64 = b';' as u64;
/// Flags of clone that make a thread, and no process.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND).unsigned_abs() as u64;
/// prctl: PR_SET_VMA, the name of a mapping.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// All calls that are allowed, with what their arguments must be.
fn allowed(opens: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::Error> {
    let opening = OPENING.iter().chain(OPENING_OF_OLD).filter(|_| opens);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALWAYS.iter().chain(OF_OLD).chain(opening).map(|&call| (call, Vec::new())).collect();
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    let not_executable = || only([(2, SeccompCmpOp::MaskedEq(executable), 0)]);
    rules.insert(libc::SYS_mmap, not_executable()?);
    rules.insert(libc::SYS_mprotect, not_executable()?);
    rules.insert(libc::SYS_clone, only([(0, SeccompCmpOp::MaskedEq(THREAD), THREAD)])?);
    // Of this process alone.
    rules.insert(libc::SYS_prlimit64, only([(0, SeccompCmpOp::Eq, 0)])?);
    let names = only([
        (0, SeccompCmpOp::Eq, u64::from(libc::PR_SET_NAME.unsigned_abs())),
        (0, SeccompCmpOp::Eq, PR_SET_VMA),
    ])?;
    rules.insert(libc::SYS_prctl, names);
    let requests = only([
        (1, SeccompCmpOp::MaskedEq(0xff00), VFIO_TYPE << 8),
        (1, SeccompCmpOp::Eq, libc::FIONREAD),
        (1, SeccompCmpOp::Eq, libc::TIOCOUTQ),
    ])?;
    rules.insert(libc::SYS_ioctl, requests);
    Ok(rules)
}

/// Any of some conditions: argument, comparison, value.
fn only<const N: usize>(any: [(u8, SeccompCmpOp, u64); N]) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let rule = |(argument, operator, value)| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    any.into_iter().map(rule).collect::<Result<_, _>>().map_err(seccompiler::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_confined_by_is_said() {
        let all = Confinement { no_new_privileges: true, system_calls: Some(9), landlock: Some(6) };
        assert_eq!(
            all.to_string(),
            "no new privileges, 9 system calls and no others, no files but its own (Landlock 6)"
        );
        assert_eq!(Confinement::default().to_string(), "nothing");
    }

    #[test]
    fn what_opens_starts_or_connects_is_not_on_the_list() {
        let (never, opens) = (allowed(false).unwrap(), allowed(true).unwrap());
        assert!(opens.contains_key(&libc::SYS_openat) && !never.contains_key(&libc::SYS_openat));
        for call in [
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_memfd_create,
            libc::SYS_io_uring_setup,
            libc::SYS_process_vm_writev,
            libc::SYS_unshare,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_kill,
            libc::SYS_setuid,
        ] {
            assert!(!never.contains_key(&call) && !opens.contains_key(&call), "system call {call}");
        }
    }

    /// On a thread of its own, which alone is limited.
    #[test]
    fn files_are_limited_to_the_device_and_the_directory_of_the_socket() {
        let Some(version) = available().landlock else {
            println!("skipped: this kernel has no Landlock");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("disk"), [0; 16]).unwrap();
        std::fs::write(at("other"), [0; 16]).unwrap();
        std::fs::create_dir(at("run")).unwrap();
        let (disk, socket, other) = (at("disk"), at("run/socket"), at("other"));
        let limited = std::thread::spawn(move || {
            let limited = limit_files(&DeviceUri::EmuFile(disk.clone()), &socket);
            let writes = |path: &Path| std::fs::OpenOptions::new().write(true).open(path).is_ok();
            let listens = std::os::unix::net::UnixListener::bind(&socket).is_ok()
                && std::fs::remove_file(&socket).is_ok();
            let makes = std::fs::write(socket.with_file_name("file"), "").is_ok()
                || std::fs::write("/tmp/p", "").is_ok();
            let removes = std::fs::remove_file(&other).is_ok();
            let starts = std::process::Command::new("/bin/true").status().is_ok();
            (
                limited,
                [std::fs::read(&other).is_ok(), writes(&disk), listens],
                [writes(&other), makes, removes, starts],
            )
        });
        let (limited, may, may_not) = limited.join().unwrap();
        assert_eq!(limited, Some(version));
        assert_eq!(may, [true; 3], "read anything, write to the device, listen");
        assert_eq!(may_not, [false; 4], "write elsewhere, make files, remove files, start programs");
    }
}
