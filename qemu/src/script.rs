//! What a guest does, and what it says about it: the words that the host and `guest-init` share.

use serde::{Deserialize, Serialize};

/// Where init finds its script.
pub const SCRIPT_PATH: &str = "/script.json";

/// The name of the virtio-serial port on which events leave the guest, one JSON object a line.
pub const RESULTS_PORT: &str = "results";

/// All that init is told.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Script {
    /// Loaded in this order, before the first step.
    pub modules: Vec<LoadModule>,
    /// Taken in this order; the first that fails ends the script.
    pub steps: Vec<Step>,
    /// Seconds after which init gives up and powers off.
    pub limit_s: u64,
}

/// One kernel module.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LoadModule {
    /// The uncompressed file, in the guest.
    pub path: String,
    /// Module parameters: `name=value ...`.
    pub parameters: String,
}

/// Whom a program runs as.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id; there are no supplementary groups.
    pub gid: u32,
}

/// A program to run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// A path, or a name in `/bin`.
    pub program: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment, beside `PATH`, `HOME` and `TMPDIR`.
    pub env: Vec<(String, String)>,
    /// Root when absent.
    pub user: Option<User>,
    /// `RLIMIT_MEMLOCK`, soft and hard, in bytes. Absent: unlimited for root, 8 MiB for others, as systems come.
    pub memlock: Option<u64>,
    /// Seconds that it may take; then it is killed and has failed.
    pub limit_s: u64,
}

impl Command {
    /// `program` as root, without arguments, for at most 60 s.
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), args: vec![], env: vec![], user: None, memlock: None, limit_s: 60 }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it as this user and group.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// Sets its limit of locked memory, in bytes.
    #[must_use]
    pub fn memlock(mut self, bytes: u64) -> Self {
        self.memlock = Some(bytes);
        self
    }

    /// Sets how long it may take, in seconds.
    #[must_use]
    pub fn limit_s(mut self, seconds: u64) -> Self {
        self.limit_s = seconds;
        self
    }
}

/// How a program has to end.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// With exit code 0.
    Success,
    /// With this exit code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Somehow.
    Any,
}

/// How a program ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an exit code.
    Code(i32),
    /// Killed by a signal.
    Signal(i32),
    /// Killed by init, because its time was up.
    TimeLimit,
}

impl Expect {
    /// Whether `end` is what was expected. A time limit never is.
    pub fn holds(self, end: End) -> bool {
        match (self, end) {
            (_, End::TimeLimit) => false,
            (Self::Any, _) | (Self::Success, End::Code(0)) => true,
            (Self::Code(want), End::Code(code)) => want == code,
            (Self::Signal(want), End::Signal(signal)) => want == signal,
            _ => false,
        }
    }
}

/// One step of a script.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Runs a program and waits for its end.
    Run {
        /// The program.
        command: Command,
        /// How it has to end.
        expect: Expect,
    },
    /// Starts a program that goes on in the background. One that is still running at the end of the script is killed;
    /// one that ended before that without a `Wait` or `Kill` is a failure. Its `limit_s` means nothing.
    Spawn {
        /// What `Wait` and `Kill` call it.
        name: String,
        /// The program.
        command: Command,
    },
    /// Waits for a background program.
    Wait {
        /// Which.
        name: String,
        /// How it has to end.
        expect: Expect,
        /// Seconds to wait at most.
        limit_s: u64,
    },
    /// Sends a background program a signal and waits for its end.
    Kill {
        /// Which.
        name: String,
        /// The signal's number; 0 sends none.
        signal: i32,
        /// How it has to end.
        expect: Expect,
        /// Seconds to wait at most.
        limit_s: u64,
    },
    /// Waits until a file exists.
    WaitForPath {
        /// The file.
        path: String,
        /// Seconds to wait at most.
        limit_s: u64,
    },
    /// Hands a PCI function to vfio-pci.
    BindVfio {
        /// The function: `0000:00:03.0`.
        address: String,
        /// Who gets the group's device node; root when absent.
        owner: Option<User>,
    },
    /// Writes a file, mostly one in `/sys` or `/proc`.
    Write {
        /// The file; made if it is not there.
        path: String,
        /// What.
        text: String,
    },
    /// Sends the kernel's log so far, as output of this step.
    KernelLog,
}

impl Step {
    /// Runs `command`, which has to succeed.
    pub fn run(command: Command) -> Self {
        Self::Run { command, expect: Expect::Success }
    }

    /// Starts `command` in the background.
    pub fn spawn(name: impl Into<String>, command: Command) -> Self {
        Self::Spawn { name: name.into(), command }
    }

    /// Waits for the file at `path`, 30 s at most.
    pub fn wait_for_path(path: impl Into<String>) -> Self {
        Self::WaitForPath { path: path.into(), limit_s: 30 }
    }

    /// Hands the function at `address` to vfio-pci and its group to `owner`.
    pub fn bind_vfio(address: impl Into<String>, owner: Option<User>) -> Self {
        Self::BindVfio { address: address.into(), owner }
    }

    /// Writes `text` to `path`.
    pub fn write(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Write { path: path.into(), text: text.into() }
    }
}

/// Where a line came from.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// A program's standard output.
    Out,
    /// A program's standard error.
    Err,
    /// The kernel's log.
    Kernel,
}

/// What init reports.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Init runs, modules are loaded.
    Booted {
        /// Milliseconds since the guest's kernel started.
        uptime_ms: u64,
    },
    /// A step begins.
    Started {
        /// Its index.
        step: usize,
    },
    /// A line of output.
    Output {
        /// The step that started the program.
        step: usize,
        /// Which of its streams.
        stream: Stream,
        /// Without its newline; what is not UTF-8 is replaced.
        line: String,
    },
    /// A program ended.
    Ended {
        /// The step that started it.
        step: usize,
        /// How.
        end: End,
        /// How long it ran.
        ms: u64,
    },
    /// Something went wrong; the script ends here.
    Failed {
        /// The step, if it was in one.
        step: Option<usize>,
        /// What.
        message: String,
    },
    /// The last word.
    Done {
        /// Whether every step did what was expected.
        passed: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_never_what_was_expected() {
        for expect in [Expect::Success, Expect::Code(0), Expect::Signal(9), Expect::Any] {
            assert!(!expect.holds(End::TimeLimit));
        }
        assert!(Expect::Any.holds(End::Signal(9)) && Expect::Any.holds(End::Code(3)));
        assert!(Expect::Success.holds(End::Code(0)) && !Expect::Success.holds(End::Code(1)));
        assert!(Expect::Code(3).holds(End::Code(3)) && !Expect::Code(3).holds(End::Signal(3)));
        assert!(Expect::Signal(9).holds(End::Signal(9)) && !Expect::Signal(9).holds(End::Code(9)));
    }

    #[test]
    fn script_survives_json() {
        let script = Script {
            modules: vec![LoadModule { path: "/modules/vfio.ko".into(), parameters: "a=1 b=2".into() }],
            steps: vec![
                Step::bind_vfio("0000:00:03.0", Some(User { uid: 7, gid: 8 })),
                Step::run(Command::new("x").args(["a", "b c"]).env("K", "V\n").memlock(1 << 23).limit_s(3)),
                Step::KernelLog,
            ],
            limit_s: 40,
        };
        let text = serde_json::to_string(&script).unwrap();
        let back: Script = serde_json::from_str(&text).unwrap();
        assert_eq!((back.modules, back.steps, back.limit_s), (script.modules, script.steps, script.limit_s));
    }
}
