//! Who may connect and how much one session and one user may hold.

use wire::Status;
use wire::socket::Credentials;

use super::Refusal;
use super::session::Session;

pub use wire::control::Limits;

/// The uid that stands for "somebody else" across user namespaces: it names nobody.
const OVERFLOW_ID: u32 = 65_534;

/// See the module.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Of one session.
    pub limits: Limits,
    /// Connections of one user.
    pub sessions_per_user: u32,
    /// Connections of all.
    pub sessions: u32,
    /// Bytes pinned by one user in all its sessions.
    pub pinned_per_user: u64,
    /// Queues of one user in all its sessions.
    pub queues_per_user: u32,
    /// Memory regions of one user in all its sessions.
    pub regions_per_user: u32,
    /// Grants of one user in all its sessions.
    pub grants_per_user: u32,
    /// Whether the overflow user (65534) may connect.
    pub allow_overflow_user: bool,
    /// The user that the adapter runs as: it and root administer.
    pub owner: u32,
    /// Members of this group administer too.
    pub admin_group: Option<u32>,
    /// Whether users who do not administer may create volumes of their own.
    pub anyone_creates: bool,
}

impl Policy {
    /// The defaults, for an adapter that runs as `owner`.
    pub fn new(owner: u32) -> Self {
        Self {
            limits: Limits { pinned_bytes: 64 << 20, regions: 64, queues: 16, grants: 256, outstanding: 16 },
            sessions_per_user: 256,
            sessions: 4096,
            pinned_per_user: 256 << 20,
            // A quarter of the tables, so that no user alone fills them.
            queues_per_user: 1024,
            regions_per_user: 4096,
            grants_per_user: 16384,
            allow_overflow_user: false,
            owner,
            admin_group: None,
            anyone_creates: false,
        }
    }

    /// Whether somebody with these credentials administers the adapter.
    pub fn is_admin(&self, who: &Credentials) -> bool {
        who.uid == 0
            || who.uid == self.owner
            || self.admin_group.is_some_and(|group| who.gid == group || who.groups.contains(&group))
    }

    /// Whether one more connection is taken.
    pub(super) fn admit<'a>(
        &self,
        who: &Credentials,
        sessions: impl Iterator<Item = &'a Session>,
    ) -> Result<(), Refusal> {
        if who.uid == OVERFLOW_ID && !self.allow_overflow_user {
            let text = "user 65534 stands for users of other namespaces and is refused; the adapter's --allow-overflow-user admits it";
            return Err(Refusal::new(Status::E_AUTH, text));
        }
        let (mut all, mut own) = (0u32, 0u32);
        for session in sessions {
            all += 1;
            own += u32::from(session.credentials.uid == who.uid);
        }
        if all >= self.sessions {
            let text =
                format!("all {} connections of the adapter are in use; try again later", self.sessions);
            return Err(Refusal::new(Status::E_NO_RESOURCES, text));
        }
        if own >= self.sessions_per_user {
            let text = format!(
                "user {} has {own} connections and may have {}; close some",
                who.uid, self.sessions_per_user
            );
            return Err(Refusal::new(Status::E_NO_RESOURCES, text));
        }
        Ok(())
    }
}

/// `E_NO_RESOURCES` if what `who` has is at its limit already.
pub(super) fn below(who: &str, what: &str, have: usize, limit: u32) -> Result<(), Refusal> {
    if have < limit as usize {
        return Ok(());
    }
    let text = format!("the {who} has {have} {what} and may have {limit}; give some back");
    Err(Refusal::new(Status::E_NO_RESOURCES, text))
}
