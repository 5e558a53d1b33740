//! The command line. What is written here is what `--help` teaches.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use portcullis::{Access, Subject};

use crate::files::{
    CheckOptions, CopyOptions, ListOptions, MakeOptions, MountOptions, MoveOptions, Places, RemoveOptions,
    SpaceOptions, StatOptions,
};
use crate::limits::LimitOptions;
use crate::subject::Name;
use crate::units::parse_size;

/// Block I/O from user space, each request checked on its way to the disk.
///
/// An adapter (`portcullis serve`) drives a disk. Applications connect to its socket, open volumes they have rights to,
/// and read and write them through queues in shared memory, without a system call for each request.
#[derive(Parser, Debug)]
#[command(name = "portcullis", version, arg_required_else_help = true, after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) place: Where,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  Try it without a disk of its own, in memory:
      portcullis serve --device emu:256M --socket /tmp/p.sock &
      export PORTCULLIS_SOCKET=/tmp/p.sock
      portcullis volume create notes 64M
      portcullis volume format notes
      portcullis cp photo.jpg notes:/
      portcullis acl grant notes user:alice rw

  Find out what is missing to drive a real disk, and take one from the kernel:
      portcullis doctor
      sudo portcullis bind /dev/nvme1n1 --user alice

Devices (URI):
  emu:SIZE                 a disk in memory, emptied at the end: emu:256M
  emu:FILE                 a disk in an image file: emu:/var/tmp/disk.img
  null:SIZE                completes without moving data, for measuring
  vfio:0000:01:00.0        a real NVMe or virtio-blk disk, by its PCI address

Sizes are bytes, or have a unit: 4k, 64M, 1G, 2T (powers of 1024).";

/// Where to go, and how to answer.
#[derive(Args, Debug)]
pub(crate) struct Where {
    /// The socket of a running adapter [default: $PORTCULLIS_SOCKET, else portcullis.sock in $XDG_RUNTIME_DIR or /run]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Drive this device from the command's own process, without a running adapter; for serve: the device to drive
    #[arg(long, global = true, value_name = "URI")]
    pub(crate) device: Option<String>,
    /// Answer with one JSON document on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run an adapter: drive a disk for the applications that connect
    Serve(ServeOptions),
    /// Show the device behind the adapter
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Create, list, show, resize, rename and delete volumes
    #[command(subcommand, visible_alias = "vol")]
    Volume(VolumeCommand),
    /// Say who may do what with a volume
    #[command(subcommand)]
    Acl(AclCommand),
    /// Say how much volumes, users and sessions may do in a second, and what sessions weigh against each other
    #[command(subcommand)]
    Limit(LimitCommand),
    /// List what is in directories of volumes
    Ls(ListOptions),
    /// Write files of volumes to standard output
    Cat(Places),
    /// Copy files and directories into volumes, out of them, or from one to another; or a volume as a whole
    Cp(CopyOptions),
    /// Give files and directories of a volume other names
    Mv(MoveOptions),
    /// Remove files and directories of volumes
    Rm(RemoveOptions),
    /// Make directories in volumes
    Mkdir(MakeOptions),
    /// Show what is known of files and directories of volumes
    Stat(StatOptions),
    /// Show how full the file systems of volumes are
    Df(SpaceOptions),
    /// Check the file system of a volume; exit code 1 if something is wrong with it
    Fsck(CheckOptions),
    /// Show the files of a volume as a directory here, to ordinary tools
    Mount(MountOptions),
    /// Measure IOPS and latency, beside the kernel's own path
    Bench(BenchOptions),
    /// See the whole story in a few seconds: two applications on a software disk, and what each is refused
    #[command(after_long_help = DEMO_HELP)]
    Demo,
    /// One of the demo's applications: takes its orders on standard input
    #[command(hide = true)]
    DemoApplication {
        /// Its volume
        #[arg(long)]
        volume: String,
    },
    /// Say what is missing to drive a real disk, and how to mend it
    #[command(after_long_help = DOCTOR_HELP)]
    Doctor(DoctorOptions),
    /// Take a disk from the kernel and give it to vfio-pci, for an adapter to drive; a disk in use is refused
    #[command(after_long_help = BIND_HELP)]
    Bind(BindOptions),
    /// Give a disk back to the kernel's driver, as it was before bind
    #[command(after_long_help = UNBIND_HELP)]
    Unbind(UnbindOptions),
}

const BIND_HELP: &str = "\
Examples:
  portcullis bind /dev/nvme1n1 --dry-run             # says what it would do, or why not
  sudo portcullis bind 0000:01:00.0 --user alice     # alice's adapter may open it, without any privilege
  sudo portcullis unbind 0000:01:00.0

Refused, with the name of whoever is in the way: a disk that is mounted (in any mount namespace), swap, a part of LVM, md, \
bcache or another device-mapper device, under a loop device, open in a process or exported; one whose IOMMU group has other \
devices that the kernel drives; one with virtual functions. A disk that holds a file system, a partition table or anything \
else that is not a store of ours needs --force. What the system runs from is never taken.

What was before is written down in --state before each step: unbind puts it back, also if bind was killed half way.";

const UNBIND_HELP: &str = "\
Puts back what bind wrote down: the kernel's driver, driver_override and who may open the group. Without anything written \
down the kernel chooses the driver. End the adapter first.";

#[derive(Args, Debug)]
pub(crate) struct BindOptions {
    /// A PCI address, or a disk: 0000:01:00.0, /dev/nvme0n1
    #[arg(value_name = "ADDRESS|DISK")]
    pub(crate) what: String,
    /// Let this user open the disk: NAME or UID [default: only root]
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    pub(crate) user: Option<UserId>,
    /// Also if there is something on the disk; never if it is in use
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Where it is written down how to undo it
    #[arg(long, value_name = "DIR", default_value = "/run/portcullis")]
    pub(crate) state: PathBuf,
    /// Where the machine begins
    #[arg(long, hide = true, default_value = "/")]
    pub(crate) root: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct UnbindOptions {
    /// A PCI address, or the disk as it was called: 0000:01:00.0, /dev/nvme0n1
    #[arg(value_name = "ADDRESS|DISK")]
    pub(crate) what: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Where it is written down how to undo it
    #[arg(long, value_name = "DIR", default_value = "/run/portcullis")]
    pub(crate) state: PathBuf,
    /// Where the machine begins
    #[arg(long, hide = true, default_value = "/")]
    pub(crate) root: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorOptions {
    /// Where the machine begins
    #[arg(long, hide = true, default_value = "/")]
    pub(crate) root: PathBuf,
}

const DEMO_HELP: &str = "\
Starts an adapter over a disk in memory and two application processes. Each copies a real file into its volume and back,
then tries what it may not: the other's key, a block past the end, a write through a read grant, a revoked key, foreign
memory, entries rewritten while they are read, a doorbell overrun. One is killed in the middle of its work. The exit code
is 0 only if everything was refused with the exact reason and nothing was lost or left behind.

Needs no privilege and no device. With --json it prints one JSON document.";

#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  portcullis serve --device emu:256M                              # in memory; gone at the end
  portcullis serve --device emu:disk.img --format                 # a file; formatted if it is blank
  sudo portcullis serve --device vfio:0000:01:00.0 --admin-group disk --socket /run/portcullis.sock

Root, the user that the adapter runs as and the members of --admin-group administer it: they create volumes and may change \
any. Everybody may connect; what they may open, the access lists of the volumes say (`portcullis acl`).

SIGTERM and Ctrl-C end it: requests that run are let to end, then the device is shut down.

What it logs to standard error, PORTCULLIS_LOG says: error, warn, info (the default), debug.")]
pub(crate) struct ServeOptions {
    /// Give the device a new, empty store: if it is blank, or by force, which gives up all that is on it
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, default_missing_value = "blank")]
    pub(crate) format: Option<FormatWhen>,
    /// Serve the ext4 that is on the device: its files may be read and overwritten in place, by whom they allow it. The
    /// volume is called `disk`
    #[arg(long, conflicts_with = "format")]
    pub(crate) as_found: bool,
    /// A group whose members administer the adapter: NAME or GID
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    pub(crate) admin_group: Option<GroupId>,
    /// Let everybody create volumes of their own
    #[arg(long)]
    pub(crate) anyone_creates: bool,
    /// Let user 65534 connect, who stands for users of other namespaces
    #[arg(long)]
    pub(crate) allow_overflow_user: bool,
    /// Threads that poll, each with a device queue of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) pollers: u16,
    /// Do not confine the adapter's process: for debuggers, and to find out what a kernel refuses
    #[arg(long)]
    pub(crate) unconfined: bool,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
}

/// A group by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupId(pub(crate) u32);

fn parse_group(text: &str) -> Result<GroupId, String> {
    match format!("group:{text}").parse::<Name>()?.0 {
        Subject::Group(id) => Ok(GroupId(id)),
        _ => Err(format!("{text:?} is not a group")),
    }
}

/// When a device is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum FormatWhen {
    /// If nothing is on it
    Blank,
    /// Whatever is on it, which is lost
    Force,
}

const DOCTOR_HELP: &str = "\
Looks and changes nothing. Exit code 0 if a disk could be driven by this user now, 1 if something is missing.

The embedded devices (emu:, null:) need none of what it looks for.";

#[derive(Subcommand, Debug)]
pub(crate) enum DeviceCommand {
    /// Model, size, free space; for the administrator also where everything lies
    #[command(after_long_help = "\
Examples:
  portcullis device show
  portcullis device show --json | jq .metadata      # blocks that the adapter keeps for itself")]
    Show,
    /// What the device says of its health, and its latest errors; for administrators
    #[command(after_long_help = "\
Examples:
  portcullis device health
  portcullis device health --json | jq .percentage_used

Of NVMe: the SMART / Health Information log (02h) and the error log (01h). Counts are over the life of the device.")]
    Health,
}

#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Make a zeroed volume that belongs to you
    #[command(after_long_help = "\
Examples:
  portcullis volume create notes 64M
  portcullis volume create scratch 1G --json

The size is rounded up to whole allocation units of the device; the answer says to what.")]
    Create {
        /// A name of 1 to 128 bytes without '/' and ':'
        name: String,
        /// Its size: bytes, or 64M, 1G ...
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Make an empty file system in a volume, for files with names
    #[command(after_long_help = "\
Examples:
  portcullis volume format notes
  portcullis cp photo.jpg notes:/
  portcullis ls -l notes:/

Refused if something is in the volume already: --force gives that up.")]
    Format {
        /// The volume
        name: String,
        /// Whatever is in it, which is lost
        #[arg(long)]
        force: bool,
    },
    /// List the volumes
    #[command(visible_alias = "ls")]
    List,
    /// Show one volume with its access list
    Show {
        /// The volume
        name: String,
    },
    /// Grow or shrink a volume; what is cut off is lost
    #[command(after_long_help = "\
Examples:
  portcullis volume resize notes 128M
  portcullis volume resize notes 32M --shrink       # gives up the bytes from 32M on")]
    Resize {
        /// The volume
        name: String,
        /// Its new size: bytes, or 64M, 1G ...
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Allow that the volume becomes smaller
        #[arg(long)]
        shrink: bool,
    },
    /// Rename a volume; whoever has it open keeps it
    #[command(visible_alias = "mv")]
    Rename {
        /// The old name
        from: String,
        /// The new name
        to: String,
    },
    /// Delete a volume; whoever has it open loses it first
    #[command(visible_alias = "rm")]
    Delete {
        /// The volume
        name: String,
    },
}

#[derive(Subcommand, Debug)]
#[command(after_long_help = "\
Subjects:  user:NAME or user:UID, group:NAME or group:GID, everyone
Rights:    r read, w write, t trim (deallocate), in any combination: rw

Examples:
  portcullis acl show notes
  portcullis acl grant notes user:alice rw
  portcullis acl grant notes group:staff r
  portcullis acl revoke notes user:alice w           # alice can still read
  portcullis acl revoke notes everyone")]
pub(crate) enum AclCommand {
    /// Show the owner and the access list of a volume
    Show {
        /// The volume
        volume: String,
    },
    /// Give rights to a user, a group or everyone, in addition to those they have
    Grant {
        /// The volume
        volume: String,
        /// user:NAME|UID, group:NAME|GID or everyone
        subject: Name,
        /// r, w, t in any combination
        #[arg(value_parser = parse_rights)]
        rights: Access,
    },
    /// Take rights away; open grants lose them before the command ends
    Revoke {
        /// The volume
        volume: String,
        /// user:NAME|UID, group:NAME|GID or everyone
        subject: Name,
        /// r, w, t in any combination [default: all]
        #[arg(value_parser = parse_rights)]
        rights: Option<Access>,
    },
}

#[derive(Subcommand, Debug)]
#[command(after_long_help = "\
For administrators. A volume's limits hold for all who use it together, and are kept with it. A user's limits hold for all its \
sessions together, a session's for that one, until the adapter ends; their weight is what each session gets of a turn where \
several want more than there is: 200 gets twice as much as the usual 100.

What is limited waits in the application's own queue and delays nobody else. In a second a limit lets through what it says, \
and after a pause what comes within its burst at once [default: what 20 ms of the rate are].

Examples:
  portcullis limit set notes --iops 2000 --bandwidth 100M
  portcullis limit set --user alice --bandwidth 1G --bandwidth-burst 64M --weight 50
  portcullis limit set notes --iops 0                # takes only this one away
  portcullis limit show
  portcullis limit clear --user alice")]
pub(crate) enum LimitCommand {
    /// Set limits or a weight; what is not named stays as it is
    Set(LimitSet),
    /// Take all limits, and the weight, away from a volume, user or session
    Clear(LimitOf),
    /// Show what is limited or weighs something else than usual
    Show,
}

/// What limits are of.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct LimitOf {
    /// The volume
    pub(crate) volume: Option<String>,
    /// A user, in all its sessions: NAME or UID
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    pub(crate) user: Option<UserId>,
    /// One session, by its number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) session: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct LimitSet {
    #[command(flatten)]
    pub(crate) of: LimitOf,
    /// Requests in a second; 0 for no limit
    #[arg(long, value_name = "N")]
    pub(crate) iops: Option<u64>,
    /// Requests at once after a pause
    #[arg(long, value_name = "N", requires = "iops")]
    pub(crate) iops_burst: Option<u64>,
    /// Bytes in a second that requests move, with units: 100M; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) bandwidth: Option<u64>,
    /// Bytes at once after a pause
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "bandwidth")]
    pub(crate) bandwidth_burst: Option<u64>,
    /// What each session weighs, 1 to 1000; 0 for the usual 100
    #[arg(long, value_name = "W", conflicts_with = "volume", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) weight: Option<u32>,
}

/// A user by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UserId(pub(crate) u32);

fn parse_user(text: &str) -> Result<UserId, String> {
    match format!("user:{text}").parse::<Name>()?.0 {
        Subject::User(id) => Ok(UserId(id)),
        _ => Err(format!("{text:?} is not a user")),
    }
}

fn parse_rights(text: &str) -> Result<Access, String> {
    match text.parse::<Access>() {
        Ok(Access::NONE) => {
            Err("no rights are named: give r (read), w (write), t (trim), or rw ...".to_owned())
        }
        Ok(access) => Ok(access),
        Err(error) => Err(error.to_string()),
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// In order
    Read,
    /// In order
    Write,
    /// At random places
    Randread,
    /// At random places
    Randwrite,
    /// Reads and writes at random places; --reads says how many
    Mixed,
}

impl Workload {
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Randwrite | Self::Mixed)
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite | Self::Mixed)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Mixed => "mixed",
        }
    }
}

#[derive(Args, Debug)]
#[command(after_long_help = "\
Measures in a volume of its own, which it makes and deletes. In the same run, round by round so that the machine's moods \
fall on all alike, it measures the kernel's path: pread or pwrite on a file that it makes and deletes, with one thread for \
each request in flight. Where the device is in memory so is the file; else it is opened with O_DIRECT.

--compare adds io_uring on the same file with everything registered, with interrupts and (where file and device can) polled, io_uring \
with requests that do nothing, and the driver alone: a device queue that is polled with no tables and no rings above it (--raw adds \
only that).

IOPS is the median of the rounds; IOPS/CORE divides it by the cores that this process kept busy, and is not told of a running \
adapter, which is another process.

Examples:
  portcullis bench                                   # randread, 4 KiB, 1 and 32 in flight, on the running adapter
  portcullis bench --device emu:256M --compare       # without an adapter: in this process; beside all others
  portcullis bench randwrite --depth 1 --seconds 5
  portcullis bench mixed --reads 90 --sessions 2 --queues 2
  portcullis bench read --block-size 128k --kernel-file /mnt/ssd/bench.tmp
  portcullis bench --device emu:256M --compare --plot bench.svg
  portcullis bench --json | jq '.rows[] | {path, depth, iops}'")]
pub(crate) struct BenchOptions {
    /// What to measure
    #[arg(value_enum, default_value = "randread")]
    pub(crate) workload: Workload,
    /// Bytes of one request
    #[arg(long, default_value = "4k", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) block_size: u64,
    /// Requests in flight on each queue; several for as many rows [default: 1,32; with --plot 1,2,4,8,16,32]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) depth: Vec<u32>,
    /// Queues of each session, each with a thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) queues: u32,
    /// Sessions, as of so many applications
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) sessions: u32,
    /// Of a hundred requests of the mixed workload, how many read
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100), value_name = "PERCENT")]
    pub(crate) reads: u8,
    /// Measure io_uring and the driver alone, too
    #[arg(long)]
    pub(crate) compare: bool,
    /// Measure the driver alone, too; needs --device
    #[arg(long)]
    pub(crate) raw: bool,
    /// Draw latency and throughput into this SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Seconds for each row of the result
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// Bytes to work on
    #[arg(long, default_value = "64M", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) size: u64,
    /// Measure in this volume instead of one of its own; a write workload destroys what is in it
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: Option<String>,
    /// Allow a write workload in --volume
    #[arg(long, requires = "volume")]
    pub(crate) overwrite: bool,
    /// The file for the kernel's paths; made, and deleted afterwards [default: in memory for a device in memory, else in the temporary directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel_file: Option<PathBuf>,
    /// Leave the kernel's paths out
    #[arg(long, conflicts_with = "kernel_file")]
    pub(crate) no_kernel: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {}", argument.get_id(), command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }
}
