//! Parts of a case that need a process of their own: the test program runs itself again in another role.

use std::process::{Child, Command, Stdio};

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
}

impl Role {
    const ALL: [Self; 3] = [Self::FilteredCall, Self::SteadyLoop, Self::Victim];

    /// Runs the program in this role.
    pub fn spawn(self, first: &str, second: &str) -> Child {
        let program = std::env::current_exe().expect("the program knows itself");
        let mut command = Command::new(program);
        command
            .args([first, second])
            .env(ROLE, format!("{self:?}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
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
    }
    true
}
