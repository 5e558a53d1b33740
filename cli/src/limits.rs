//! What one session and one user may hold, as options of `portcullis serve`.

use adapter::control::Policy;
use clap::Args;

use crate::units::parse_size;

/// Each lowers or raises one limit. A user gets no more than its share of what the process and the tables have, whatever
/// stands here.
#[derive(Args, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Memory that one session may register [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    session_memory: Option<u64>,
    /// Memory regions of one session [default: 64]
    #[arg(long, value_name = "N")]
    session_regions: Option<u32>,
    /// Queues of one session [default: 16]
    #[arg(long, value_name = "N")]
    session_queues: Option<u32>,
    /// Grants of one session [default: 256]
    #[arg(long, value_name = "N")]
    session_grants: Option<u32>,
    /// Requests of one session on the socket that wait for their answer [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    session_requests: Option<u32>,
    /// Descriptors of the adapter that one session may cost [default: 64]
    #[arg(long, value_name = "N")]
    session_descriptors: Option<u32>,
    /// Connections of one user [default: 256]
    #[arg(long, value_name = "N")]
    user_sessions: Option<u32>,
    /// Memory that one user may register in all its sessions [default: 256M, or --session-memory if that is more]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    user_memory: Option<u64>,
    /// Memory regions of one user [default: 4096]
    #[arg(long, value_name = "N")]
    user_regions: Option<u32>,
    /// Queues of one user [default: 1024]
    #[arg(long, value_name = "N")]
    user_queues: Option<u32>,
    /// Grants of one user [default: 16384]
    #[arg(long, value_name = "N")]
    user_grants: Option<u32>,
    /// Table entries set aside for one user, 16 at a time for each session [default: 16384]
    #[arg(long, value_name = "N")]
    user_entries: Option<u32>,
    /// Contiguous ranges of all grants of one user [default: 65536]
    #[arg(long, value_name = "N")]
    user_ranges: Option<u32>,
    /// Requests of one user on the socket that wait for their answer [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    user_requests: Option<u32>,
    /// Descriptors of the adapter that one user may cost [default: 8192]
    #[arg(long, value_name = "N")]
    user_descriptors: Option<u32>,
    /// How much one user may have of the descriptors, the lockable memory and the device mappings that the process has,
    /// and of the tables
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    user_share: u32,
    /// Connections of all users [default: 4096]
    #[arg(long, value_name = "N")]
    sessions: Option<u32>,
}

impl LimitOptions {
    /// Changes what is said here.
    pub(crate) fn apply(&self, policy: &mut Policy) {
        fn set<T: Copy>(limit: &mut T, said: Option<T>) {
            said.into_iter().for_each(|said| *limit = said);
        }
        set(&mut policy.limits.pinned_bytes, self.session_memory);
        set(&mut policy.limits.regions, self.session_regions);
        set(&mut policy.limits.queues, self.session_queues);
        set(&mut policy.limits.grants, self.session_grants);
        set(&mut policy.limits.outstanding, self.session_requests);
        set(&mut policy.descriptors, self.session_descriptors);
        set(&mut policy.sessions_per_user, self.user_sessions);
        policy.pinned_per_user = policy.pinned_per_user.max(policy.limits.pinned_bytes);
        set(&mut policy.pinned_per_user, self.user_memory);
        set(&mut policy.regions_per_user, self.user_regions);
        set(&mut policy.queues_per_user, self.user_queues);
        set(&mut policy.grants_per_user, self.user_grants);
        set(&mut policy.entries_per_user, self.user_entries);
        set(&mut policy.ranges_per_user, self.user_ranges);
        set(&mut policy.outstanding_per_user, self.user_requests);
        set(&mut policy.descriptors_per_user, self.user_descriptors);
        policy.user_share = self.user_share;
        set(&mut policy.sessions, self.sessions);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitOptions,
    }

    fn applied(words: &[&str]) -> Policy {
        let mut policy = Policy::new(0);
        let line = Line::try_parse_from(["serve"].iter().chain(words)).unwrap();
        line.limits.apply(&mut policy);
        policy
    }

    #[test]
    fn what_is_said_holds_and_the_rest_stays() {
        let (usual, policy) = (Policy::new(0), applied(&[]));
        assert_eq!((policy.limits, policy.user_share), (usual.limits, usual.user_share));
        assert_eq!(policy.pinned_per_user, usual.pinned_per_user);
        let policy = applied(&["--session-memory", "1G", "--user-regions", "7", "--user-share", "100"]);
        assert_eq!((policy.limits.pinned_bytes, policy.pinned_per_user), (1 << 30, 1 << 30));
        assert_eq!((policy.regions_per_user, policy.user_share), (7, 100));
        assert_eq!(applied(&["--user-memory", "1M"]).pinned_per_user, 1 << 20);
    }

    /// Each option that a refusal names is there.
    #[test]
    fn every_limit_has_its_option() {
        let whos =
            ["session-memory", "session-regions", "session-queues", "session-grants", "session-requests"];
        let more =
            ["session-descriptors", "user-sessions", "user-descriptors", "user-regions", "user-queues"];
        let rest = ["user-grants", "user-entries", "user-ranges", "user-requests", "user-memory", "sessions"];
        for name in whos.into_iter().chain(more).chain(rest) {
            applied(&[&format!("--{name}"), "5"]);
        }
    }
}
