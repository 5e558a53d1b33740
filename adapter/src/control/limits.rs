//! Who may connect and how much one session and one user may hold.
//!
//! A limit of a user holds for all its sessions together. What the adapter's own process has (descriptors, locked memory,
//! device mappings) and what its tables have is shared by all, so no user gets more than a part of that either:
//! [`Policy::user_share`].

use wire::Status;
use wire::socket::Credentials;

use super::Refusal;
use super::process::Process;

pub use wire::control::Limits;

/// The uid that stands for "somebody else" across user namespaces: it names nobody.
const OVERFLOW_ID: u32 = 65_534;
/// Supplementary groups that a session may have; all are kept for as long as it lives.
const GROUPS: usize = 4096;

/// See the module. A limit per user is lowered to the user's share when the adapter starts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Of one session.
    pub limits: Limits,
    /// Descriptors that one session may cost: its connection, one a queue, and what is on its way.
    pub descriptors: u32,
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
    /// Table entries set aside for one user: they are handed out in segments of 16, each for one session.
    pub entries_per_user: u32,
    /// LBA table entries of one user: one for each contiguous range of each grant.
    pub ranges_per_user: u32,
    /// Descriptors that one user may cost.
    pub descriptors_per_user: u32,
    /// Control messages of one user without an answer yet.
    pub outstanding_per_user: u32,
    /// How much of what the process and the tables have one user may hold, in percent.
    pub user_share: u32,
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
            descriptors: 64,
            sessions_per_user: 256,
            sessions: 4096,
            pinned_per_user: 256 << 20,
            // A quarter of the tables.
            queues_per_user: 1024,
            regions_per_user: 4096,
            grants_per_user: 16384,
            entries_per_user: 16384,
            ranges_per_user: 1 << 16,
            descriptors_per_user: 8192,
            outstanding_per_user: 256,
            user_share: 50,
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

    /// Whether somebody may connect at all, whatever is connected already.
    pub(super) fn admit(&self, who: &Credentials) -> Result<(), Refusal> {
        if who.uid == OVERFLOW_ID && !self.allow_overflow_user {
            let text = "user 65534 stands for users of other namespaces and is refused; the adapter's --allow-overflow-user admits it";
            return Err(Refusal::new(Status::E_AUTH, text));
        }
        if who.groups.len() > GROUPS {
            let text = format!(
                "user {} is in {} groups, and a session may have {GROUPS}: connect with fewer (setgroups(2))",
                who.uid,
                who.groups.len()
            );
            return Err(Refusal::new(Status::E_NO_RESOURCES, text));
        }
        Ok(())
    }
}

/// What is counted for sessions and users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Connections,
    Descriptors,
    Pinned,
    Regions,
    Queues,
    Grants,
    Entries,
    Ranges,
    Requests,
}

impl What {
    pub(super) const ALL: [Self; 9] = [
        Self::Connections,
        Self::Descriptors,
        Self::Pinned,
        Self::Regions,
        Self::Queues,
        Self::Grants,
        Self::Entries,
        Self::Ranges,
        Self::Requests,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Descriptors => "descriptors of the adapter",
            Self::Pinned => "bytes of pinned memory",
            Self::Regions => "memory regions",
            Self::Queues => "queues",
            Self::Grants => "grants",
            Self::Entries => "table entries (16 for each segment begun)",
            Self::Ranges => "LBA table entries",
            Self::Requests => "requests without an answer",
        }
    }
}

/// How much of everything somebody holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Held([u64; What::ALL.len()]);

impl Held {
    pub(super) fn of(&self, what: What) -> u64 {
        self.0[what as usize]
    }

    pub(super) fn add(&mut self, what: What, more: u64) {
        self.0[what as usize] += more;
    }

    pub(super) fn plus(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
        self
    }
}

/// One limit, and what an administrator does to raise it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Limit {
    most: u64,
    raise: String,
}

impl Limit {
    fn new(most: impl Into<u64>, option: &str) -> Self {
        Self { most: most.into(), raise: format!("{option} of the adapter") }
    }

    /// No more than a part of what there is for all.
    fn within(mut self, share: u32, there_is: Option<u64>, of: &str) -> Self {
        let Some(there_is) = there_is else { return self };
        let share_of = |whole: u64| whole / 100 * u64::from(share) + whole % 100 * u64::from(share) / 100;
        let part = share_of(there_is).max(1);
        if part < self.most {
            self.raise = format!("it is {share} % (--user-share) of {of}");
            self.most = part;
        }
        self
    }
}

/// The limits as they hold in this process.
#[derive(Debug)]
pub(super) struct Ceilings {
    session: Vec<Option<Limit>>,
    user: Vec<Limit>,
    sessions: Limit,
}

const NOFILE: &str = "the descriptors that RLIMIT_NOFILE leaves the adapter (`ulimit -n`, LimitNOFILE=)";
const MEMLOCK: &str = "the memory that RLIMIT_MEMLOCK leaves the adapter (`ulimit -l`, LimitMEMLOCK=)";

impl Ceilings {
    pub(super) fn new(policy: &Policy, process: &Process, tables: tpt::Limits) -> Self {
        let limits = policy.limits;
        let session = |what| {
            Some(match what {
                What::Pinned => Limit::new(limits.pinned_bytes, "--session-memory"),
                What::Regions => Limit::new(limits.regions, "--session-regions"),
                What::Queues => Limit::new(limits.queues, "--session-queues"),
                What::Grants => Limit::new(limits.grants, "--session-grants"),
                What::Requests => Limit::new(limits.outstanding, "--session-requests"),
                What::Descriptors => Limit::new(policy.descriptors, "--session-descriptors"),
                What::Connections | What::Entries | What::Ranges => return None,
            })
        };
        let share = policy.user_share.min(100);
        let table = |entries: u32| Some(u64::from(entries));
        let user = |what| match what {
            What::Connections => Limit::new(policy.sessions_per_user, "--user-sessions"),
            What::Descriptors => Limit::new(policy.descriptors_per_user, "--user-descriptors").within(
                share,
                Some(process.descriptors),
                NOFILE,
            ),
            What::Pinned => Limit::new(policy.pinned_per_user, "--user-memory")
                .within(share, process.memlock, MEMLOCK)
                .within(
                    share,
                    process.memory,
                    "the memory that the machine had free when the adapter started",
                ),
            What::Regions => Limit::new(policy.regions_per_user, "--user-regions")
                .within(
                    share,
                    process.mappings,
                    "the mappings that the IOMMU has (dma_entry_limit of vfio_iommu_type1)",
                )
                .within(share, table(tables.regions), "the region table"),
            What::Queues => Limit::new(policy.queues_per_user, "--user-queues"),
            What::Grants => Limit::new(policy.grants_per_user, "--user-grants"),
            What::Entries => Limit::new(policy.entries_per_user, "--user-entries").within(
                share,
                table(tables.entries),
                "the protection table",
            ),
            What::Ranges => Limit::new(policy.ranges_per_user, "--user-ranges").within(
                share,
                table(tables.lba_entries),
                "the LBA table",
            ),
            What::Requests => Limit::new(policy.outstanding_per_user, "--user-requests"),
        };
        let sessions =
            Limit::new(policy.sessions, "--sessions").within(100, Some(process.descriptors), NOFILE);
        Self {
            session: What::ALL.into_iter().map(session).collect(),
            user: What::ALL.into_iter().map(user).collect(),
            sessions,
        }
    }

    /// The most that a user may hold.
    pub(super) fn of_user(&self, what: What) -> u64 {
        self.user[what as usize].most
    }

    /// Whether one more session fits beside `sessions`.
    pub(super) fn check_sessions(&self, sessions: usize) -> Result<(), Refusal> {
        below("the adapter", What::Connections, sessions as u64, 1, &self.sessions)
    }

    /// Whether a session that holds `own`, of the user `uid` who holds `all`, may have `more` of something.
    pub(super) fn check(
        &self,
        what: What,
        more: u64,
        own: &Held,
        (uid, all): (u32, &Held),
    ) -> Result<(), Refusal> {
        if let Some(limit) = &self.session[what as usize] {
            below("the session", what, own.of(what), more, limit)?;
        }
        below(&format!("user {uid}"), what, all.of(what), more, &self.user[what as usize])
    }

    /// What a session is told that it may use.
    pub(super) fn told(&self, mut limits: Limits) -> Limits {
        let least = |own: u32, what| u32::try_from(self.of_user(what)).map_or(own, |user| own.min(user));
        limits.pinned_bytes = limits.pinned_bytes.min(self.of_user(What::Pinned));
        limits.regions = least(limits.regions, What::Regions);
        limits.queues = least(limits.queues, What::Queues);
        limits.grants = least(limits.grants, What::Grants);
        limits.outstanding = least(limits.outstanding, What::Requests);
        limits
    }
}

/// `E_NO_RESOURCES` if what `who` has and `more` are above the limit.
fn below(who: &str, what: What, have: u64, more: u64, limit: &Limit) -> Result<(), Refusal> {
    if have.saturating_add(more) <= limit.most {
        return Ok(());
    }
    let text = format!(
        "{who} has {have} {}, and {more} more would pass the limit of {}: give some back, or have the limit raised: {}",
        what.name(),
        limit.most,
        limit.raise
    );
    Err(Refusal::new(Status::E_NO_RESOURCES, text))
}

#[cfg(test)]
mod tests;
