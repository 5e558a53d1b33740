//! Parts of a case that need a process of their own: the test program runs itself again in another role.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// The variable that names the role.
const ROLE: &str = "PORTCULLIS_TEST_ROLE";

/// What the program does instead of running tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Makes one system call under the filter, and is killed by it.
    FilteredCall,
    /// The loop without system calls.
    SteadyLoop,
    /// An application that does I/O until it is killed.
    Victim,
    /// An application that brings its session to a state and stays there.
    InState,
    /// An application that does one operation when it is told to.
    Operator,
    /// An application that does everything that one can do, at random.
    Busy,
    /// An application that does everything that one can do with files, at random.
    BusyWithFiles,
    /// An adapter over a file.
    Server,
    /// An application that attacks its own memory.
    MemoryAttacker,
    /// Rings the doorbell of another process.
    ForeignDoorbell,
    /// An application that writes to a file to which others write.
    Writer,
}

impl Role {
    const ALL: [Self; 11] = [
        Self::FilteredCall,
        Self::SteadyLoop,
        Self::Victim,
        Self::InState,
        Self::Operator,
        Self::Busy,
        Self::BusyWithFiles,
        Self::Server,
        Self::MemoryAttacker,
        Self::Writer,
        Self::ForeignDoorbell,
    ];

    fn command(self, first: &str, second: &str) -> Command {
        let program = std::env::current_exe().expect("the program knows itself");
        let mut command = Command::new(program);
        command.args([first, second]).env(ROLE, format!("{self:?}")).stdout(Stdio::piped());
        command
    }

    /// Runs the program in this role.
    pub fn spawn(self, first: &str, second: &str) -> Child {
        let mut command = self.command(first, second);
        command.stdin(Stdio::null());
        if self == Self::FilteredCall {
            command.stdout(Stdio::null());
        }
        command.spawn().expect("the program runs itself")
    }
}

/// Plays the role that the environment names; false if it names none.
pub fn play_role() -> bool {
    let Some(name) = std::env::var_os(ROLE) else { return false };
    let role = Role::ALL.into_iter().find(|role| name.to_str() == Some(&format!("{role:?}")));
    let mut arguments = std::env::args().skip(1);
    let (first, second) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    match role.expect("a role that exists") {
        Role::FilteredCall => crate::system::confined::one_call(),
        Role::SteadyLoop => crate::system::confined::steady(&first, &second),
        Role::Victim => crate::system::victim(&first),
        Role::InState => crate::death::state::play(Path::new(&first), &second),
        Role::Operator => crate::death::points::play(Path::new(&first), &second),
        Role::Busy => crate::death::random::play(Path::new(&first), &second),
        Role::BusyWithFiles => crate::death::files::play(Path::new(&first), &second),
        Role::Server => crate::death::restart::play(&first, Path::new(&second)),
        Role::ForeignDoorbell => crate::system::doorbell::ring_foreign(&first),
        Role::Writer => crate::system::writers::play(Path::new(&first), &second),
        Role::MemoryAttacker => crate::system::memory::play(Path::new(&first), &second),
    }
    true
}

/// A process in a role: it says lines and hears lines, and does not outlive this value.
pub struct Actor {
    child: Child,
    /// As long as it lives.
    pipes: Option<(BufReader<ChildStdout>, ChildStdin)>,
}

impl Actor {
    /// Starts it.
    pub fn start(role: Role, first: &Path, second: &str) -> Self {
        Self::of(role.command(first.to_str().expect("a path in UTF-8"), second))
    }

    /// Starts another program.
    pub fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program is there");
        let says = BufReader::new(child.stdout.take().expect("a pipe"));
        let hears = child.stdin.take().expect("a pipe");
        Self { child, pipes: Some((says, hears)) }
    }

    /// The next line that it says; empty when it has ended.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        if let Some((says, _)) = &mut self.pipes {
            says.read_line(&mut line).expect("the pipe can be read");
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// Tells it to go on.
    pub fn go(&mut self) {
        let (_, hears) = self.pipes.as_mut().expect("the process lives");
        hears.write_all(b"go\n").expect("the process listens");
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// SIGSTOP or SIGCONT, for example.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("it was started here").is_none()
    }

    /// Whether nothing of it is left that could hold a descriptor or memory: it waits at most for somebody to hear that it ended.
    pub fn has_let_go(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let is_dead = |status: String| {
            let state = status.lines().find_map(|line| line.strip_prefix("State:"));
            state.is_none_or(|state| state.trim_start().starts_with(['Z', 'X']))
        };
        tasks.into_iter().flatten().flatten().all(|task| {
            // One that cannot be read has gone meanwhile.
            std::fs::read_to_string(task.path().join("status")).map_or(true, is_dead)
        })
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("it was started here");
        self.pipes = None;
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if self.pipes.is_some() {
            self.kill();
        }
    }
}

/// In a role: waits for a line of the one who started it. Without that one the process ends.
pub fn wait_for_go() {
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
        std::process::exit(0);
    }
}

/// In a role: says a line.
pub fn say(line: &str) {
    let mut out = std::io::stdout();
    // Whoever listened may be gone; then nobody misses it.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
