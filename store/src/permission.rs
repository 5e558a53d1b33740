//! Who may do what with a file: the kernel's rules, as pure functions of numbers.
//!
//! They are those of Linux 6.1: `generic_permission`, `acl_permission_check` and `check_sticky` (fs/namei.c),
//! `posix_acl_permission` and `posix_acl_chmod` (fs/posix_acl.c), `setattr_prepare` (fs/attr.c). User 0 is taken to have
//! `CAP_DAC_OVERRIDE`, `CAP_FOWNER`, `CAP_CHOWN` and `CAP_FSETID` (capabilities(7)), nobody else any of them.

use std::ops::BitOr;

/// The bits of a mode that say what kind of file it is (inode(7)).
pub const TYPE_MASK: u16 = 0o170_000;
/// A directory.
pub const TYPE_DIRECTORY: u16 = 0o040_000;
/// A regular file.
pub const TYPE_FILE: u16 = 0o100_000;
/// Whoever runs the file runs it as its owner.
pub const SET_UID: u16 = 0o4000;
/// Of a file: whoever runs it is in its group. Of a directory: what is made in it belongs to its group.
pub const SET_GID: u16 = 0o2000;
/// Of a directory: a name in it may be removed only by who owns the directory, or what it names.
pub const STICKY: u16 = 0o1000;

const MODE_GROUP: u16 = 0o070;
const MODE_ANY_EXECUTE: u16 = 0o111;

/// What is asked for, or granted: any of read, write and execute (of a directory: search).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Rights(u8);

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Execute; of a directory: use names in it.
    pub const EXECUTE: Self = Self(1);
    /// The same as [`Rights::EXECUTE`], said of a directory.
    pub const SEARCH: Self = Self(1);
    /// Write; of a directory: make and remove names in it (needs search too).
    pub const WRITE: Self = Self(2);
    /// Read; of a directory: list it.
    pub const READ: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    /// Of three bits as in a mode; `None` if there are more.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits <= 7 { Some(Self(bits)) } else { None }
    }

    /// As in a mode: 4 read, 2 write, 1 execute.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `wanted` is in it.
    pub const fn contains(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// The three bits of `mode` at `shift`.
    const fn of_mode(mode: u16, shift: u32) -> Self {
        Self((mode >> shift & 7) as u8)
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credentials<'a> {
    /// The user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its other groups, sorted.
    pub groups: &'a [u32],
}

impl Credentials<'_> {
    /// User 0 of group 0.
    pub const ROOT: Credentials<'static> = Credentials { uid: 0, gid: 0, groups: &[] };

    /// Whether the rules are not for this user.
    pub const fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether `group` is one of its groups.
    pub fn in_group(&self, group: u32) -> bool {
        self.gid == group || self.groups.binary_search(&group).is_ok()
    }

    /// Whether it owns a file of `owner`, or may act as if it did.
    pub const fn owns(&self, owner: u32) -> bool {
        self.uid == owner || self.is_root()
    }
}

/// Whom an entry of an access list is about; in the order that a list has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Party {
    /// The file's owner.
    Owner,
    /// A user.
    User(u32),
    /// The file's group.
    OwningGroup,
    /// A group.
    Group(u32),
    /// The most that any named user and any group can have.
    Mask,
    /// Everybody else.
    Other,
}

/// Why entries make no access list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AclError {
    /// One of the entries that a list must have is missing.
    #[error(
        "the access list has no entry for {0:?}; it needs one each for the owner, the owning group and others"
    )]
    Missing(Party),
    /// Two entries about the same.
    #[error("the access list has two entries for {0:?}; leave one")]
    Twice(Party),
    /// Users or groups are named, and nothing says what is the most that they can have.
    #[error("the access list names users or groups and has no mask; add one")]
    NoMask,
    /// More than [`Acl::MOST`].
    #[error("the access list has {0} entries, at most {most} are allowed", most = Acl::MOST)]
    TooMany(usize),
}

/// An access list (POSIX 1003.1e draft 17, section 23.1; acl(5)): one entry each for the owner, the owning group and
/// others; a mask if there are entries for users or groups; no two about the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Acl(Vec<(Party, Rights)>);

impl Acl {
    /// The most entries of a list.
    pub const MOST: usize = 1024;

    /// A list of these entries, in any order.
    pub fn new(mut entries: Vec<(Party, Rights)>) -> Result<Self, AclError> {
        if entries.len() > Self::MOST {
            return Err(AclError::TooMany(entries.len()));
        }
        entries.sort_unstable();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(AclError::Twice(pair[0].0));
        }
        let list = Self(entries);
        for party in [Party::Owner, Party::OwningGroup, Party::Other] {
            list.get(party).ok_or(AclError::Missing(party))?;
        }
        let named = |(party, _): &(Party, _)| matches!(party, Party::User(_) | Party::Group(_));
        if list.0.iter().any(named) && list.get(Party::Mask).is_none() {
            return Err(AclError::NoMask);
        }
        Ok(list)
    }

    /// The entries, in the order of [`Party`].
    pub fn entries(&self) -> &[(Party, Rights)] {
        &self.0
    }

    /// What the entry for `party` says.
    pub fn get(&self, party: Party) -> Option<Rights> {
        let at = self.0.binary_search_by_key(&party, |(party, _)| *party).ok()?;
        self.0.get(at).map(|(_, rights)| *rights)
    }

    /// Whether a mode can say the same.
    pub fn is_trivial(&self) -> bool {
        self.0.len() == 3
    }

    /// The nine bits of the mode that goes with the list: those of the group are the mask, if there is one.
    pub fn mode(&self) -> u16 {
        let bits = |party| u16::from(self.get(party).unwrap_or_default().bits());
        let group = if self.get(Party::Mask).is_some() { Party::Mask } else { Party::OwningGroup };
        bits(Party::Owner) << 6 | bits(group) << 3 | bits(Party::Other)
    }

    /// The list after the file's mode was set: the bits of the group set the mask, if there is one.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Self {
        let group = if self.get(Party::Mask).is_some() { Party::Mask } else { Party::OwningGroup };
        let change = |&(party, rights): &(Party, Rights)| match party {
            Party::Owner => (party, Rights::of_mode(mode, 6)),
            Party::Other => (party, Rights::of_mode(mode, 0)),
            _ if party == group => (party, Rights::of_mode(mode, 3)),
            _ => (party, rights),
        };
        Self(self.0.iter().map(change).collect())
    }

    /// What the list says to somebody who is not the owner.
    fn allows(&self, who: &Credentials<'_>, group: u32, wanted: Rights) -> bool {
        let mask = self.get(Party::Mask).unwrap_or(Rights::ALL);
        let mut in_a_group = false;
        for &(party, rights) in &self.0 {
            let member = match party {
                Party::User(uid) if uid == who.uid => return rights.and(mask).contains(wanted),
                Party::OwningGroup => who.in_group(group),
                Party::Group(gid) => who.in_group(gid),
                _ => false,
            };
            in_a_group |= member;
            // One of the groups has to have all that is wanted: two halves are not a whole.
            if member && rights.contains(wanted) {
                return mask.contains(wanted);
            }
        }
        !in_a_group && self.get(Party::Other).unwrap_or_default().contains(wanted)
    }
}

/// What decides who may use a file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Permissions {
    /// With the bits of the type (inode(7)).
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// If it says more than the mode, which then goes with it as [`Acl::mode`] says.
    pub acl: Option<Acl>,
}

impl Permissions {
    /// Whether it is a directory.
    pub const fn is_directory(&self) -> bool {
        self.mode & TYPE_MASK == TYPE_DIRECTORY
    }

    /// Whether `who` may do all of `wanted` with the file. That it may search the directories on the way is asked of
    /// each of them in the same way.
    pub fn allows(&self, who: &Credentials<'_>, wanted: Rights) -> bool {
        self.listed(who, wanted) || who.is_root() && self.root_may(wanted)
    }

    /// What is written down, before what the superuser can do anyway.
    fn listed(&self, who: &Credentials<'_>, wanted: Rights) -> bool {
        if who.uid == self.uid {
            return Rights::of_mode(self.mode, 6).contains(wanted);
        }
        // With no bit for the group the kernel does not look at the list: a named user is then one of the others.
        if let Some(acl) = self.acl.as_ref().filter(|_| self.mode & MODE_GROUP != 0) {
            return acl.allows(who, self.gid, wanted);
        }
        let shift = if who.in_group(self.gid) { 3 } else { 0 };
        Rights::of_mode(self.mode, shift).contains(wanted)
    }

    /// Everything, but to run what nobody can run.
    fn root_may(&self, wanted: Rights) -> bool {
        self.is_directory() || !wanted.contains(Rights::EXECUTE) || self.mode & MODE_ANY_EXECUTE != 0
    }

    /// Whether `who` may remove the name of a file of `owner` from this directory, or put another in its place.
    pub fn may_remove(&self, who: &Credentials<'_>, owner: u32) -> bool {
        let sticky = self.mode & STICKY != 0 && !who.owns(owner) && who.uid != self.uid;
        self.allows(who, Rights::WRITE | Rights::SEARCH) && !sticky
    }

    /// The mode after `who`, who owns the file, asked for `mode` (12 bits): one outside the file's group does not make
    /// it run as that group.
    pub fn changed_mode(&self, who: &Credentials<'_>, mode: u16) -> u16 {
        let outside = !who.in_group(self.gid) && !who.is_root();
        let kept = mode & if outside { 0o7777 & !SET_GID } else { 0o7777 };
        self.mode & TYPE_MASK | kept
    }

    /// Whether `who` may give the file this owner and this group: only the superuser gives it to another owner, its
    /// owner to groups that it is in.
    pub fn may_give(&self, who: &Credentials<'_>, uid: u32, gid: u32) -> bool {
        let group = gid == self.gid || who.in_group(gid);
        who.is_root() || who.uid == self.uid && uid == self.uid && group
    }

    /// The mode after the owner or group changed, or somebody else wrote: it no longer runs as somebody.
    pub const fn disarmed(&self) -> u16 {
        if self.is_directory() {
            return self.mode;
        }
        // Without the group's execute bit the bit means something else (inode(7)).
        let group = if self.mode & 0o010 != 0 { SET_GID } else { 0 };
        self.mode & !(SET_UID | group)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const R: Rights = Rights::READ;
    const W: Rights = Rights::WRITE;
    const X: Rights = Rights::EXECUTE;

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Credentials<'_> {
        Credentials { uid, gid, groups }
    }

    fn file(mode: u16, acl: Option<Acl>) -> Permissions {
        Permissions { mode: TYPE_FILE | mode, uid: 1, gid: 10, acl }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let file = file(0o074, None);
        assert!(!file.allows(&who(1, 10, &[]), R), "an owner without rights is not saved by the group");
        assert!(file.allows(&who(2, 10, &[]), R | W | X));
        assert!(file.allows(&who(2, 9, &[3, 10]), W));
        assert!(file.allows(&who(2, 9, &[3, 11]), R));
        assert!(!file.allows(&who(2, 9, &[]), W));
        assert!(!file.allows(&who(2, 9, &[]), R | W), "all of it or nothing");
    }

    #[test]
    fn root_reads_and_writes_all_and_runs_what_somebody_can_run() {
        let root = Credentials::ROOT;
        assert!(file(0, None).allows(&root, R | W));
        assert!(!file(0o666, None).allows(&root, X));
        assert!(!file(0o666, None).allows(&root, R | X));
        assert!(file(0o001, None).allows(&root, R | W | X));
        let directory = Permissions { mode: TYPE_DIRECTORY, ..file(0, None) };
        assert!(directory.allows(&root, R | W | X));
        assert!(!directory.allows(&who(1, 10, &[]), Rights::SEARCH));
    }

    fn acl(extra: &[(Party, Rights)]) -> Acl {
        let mut entries = vec![(Party::Owner, R | W), (Party::OwningGroup, R), (Party::Other, R)];
        entries.extend(extra);
        Acl::new(entries).unwrap()
    }

    #[test]
    fn entries_of_a_list_are_asked_in_order() {
        let acl = acl(&[
            (Party::User(2), Rights::NONE),
            (Party::User(3), R | W),
            (Party::Group(20), W),
            (Party::Group(21), R | W),
            (Party::Group(22), R | W | X),
            (Party::Mask, R | W),
        ]);
        let file = file(acl.mode(), Some(acl));
        assert_eq!(file.mode & 0o777, 0o664);
        assert!(!file.allows(&who(2, 21, &[]), R), "a named user is not saved by a group");
        assert!(file.allows(&who(3, 9, &[]), R | W));
        assert!(!file.allows(&who(4, 10, &[20]), R | W), "two halves are not a whole");
        assert!(file.allows(&who(4, 10, &[20]), W));
        assert!(file.allows(&who(4, 10, &[20, 21]), R | W), "one of the groups is enough");
        assert!(!file.allows(&who(4, 22, &[]), X), "the mask is the most");
        assert!(!file.allows(&who(4, 20, &[]), R), "a member of a group is not one of the others");
        assert!(file.allows(&who(4, 9, &[]), R));
        assert!(file.allows(&who(1, 9, &[]), W), "the owner's bits are the mode's");
    }

    /// Linux 6.1, `acl_permission_check`: "if (IS_POSIXACL(inode) && (mode & S_IRWXG))".
    #[test]
    fn an_empty_mask_makes_a_named_user_one_of_the_others() {
        let acl = acl(&[(Party::User(3), R | W), (Party::Mask, Rights::NONE)]);
        let file = file(acl.mode(), Some(acl));
        assert!(file.allows(&who(3, 9, &[]), R));
        assert!(!file.allows(&who(3, 9, &[]), W));
        assert!(!file.allows(&who(3, 10, &[]), R), "but still one of the group");
    }

    #[test]
    fn lists_that_say_nothing_clear_are_refused() {
        let good = || acl(&[(Party::User(3), R), (Party::Mask, R)]).entries().to_vec();
        let without = |party| {
            let mut entries = good();
            entries.retain(|(other, _)| *other != party);
            Acl::new(entries)
        };
        for party in [Party::Owner, Party::OwningGroup, Party::Other] {
            assert_eq!(without(party), Err(AclError::Missing(party)));
        }
        assert_eq!(without(Party::Mask), Err(AclError::NoMask));
        assert!(without(Party::User(3)).is_ok(), "a mask alone does no harm");
        let twice = [good(), vec![(Party::User(3), W)]].concat();
        assert_eq!(Acl::new(twice), Err(AclError::Twice(Party::User(3))));
        let many = (0..1025).map(|uid| (Party::User(uid), R)).collect();
        assert_eq!(Acl::new(many), Err(AclError::TooMany(1025)));
        assert_eq!(Acl::new(Vec::new()), Err(AclError::Missing(Party::Owner)));
    }

    #[test]
    fn a_mode_and_a_list_go_together() {
        let full = acl(&[(Party::User(3), R | W), (Party::Mask, R)]);
        assert_eq!(full.mode(), 0o644);
        let changed = full.with_mode(0o750);
        assert_eq!(changed.mode(), 0o750);
        assert_eq!(changed.get(Party::OwningGroup), Some(R), "the mask was set, not the group");
        assert_eq!(changed.get(Party::User(3)), Some(R | W));
        let plain = acl(&[]);
        assert!(plain.is_trivial() && !full.is_trivial());
        assert_eq!(plain.with_mode(0o470).mode(), 0o470);
    }

    #[test]
    fn a_sticky_directory_protects_names_from_those_who_can_only_write() {
        let mut directory = Permissions { mode: TYPE_DIRECTORY | 0o777, uid: 1, gid: 10, acl: None };
        assert!(directory.may_remove(&who(2, 9, &[]), 3));
        directory.mode |= STICKY;
        assert!(!directory.may_remove(&who(2, 9, &[]), 3));
        assert!(directory.may_remove(&who(2, 9, &[]), 2), "who owns what it names");
        assert!(directory.may_remove(&who(1, 9, &[]), 3), "who owns the directory");
        assert!(directory.may_remove(&Credentials::ROOT, 3));
        directory.mode = TYPE_DIRECTORY | 0o766;
        assert!(!directory.may_remove(&who(2, 9, &[]), 2), "it needs search too");
    }

    #[test]
    fn owners_and_modes_change_as_the_kernel_lets_them() {
        let armed = file(0o6755, None);
        assert_eq!(armed.changed_mode(&who(1, 10, &[]), 0o2755) & 0o7777, 0o2755);
        assert_eq!(armed.changed_mode(&who(1, 9, &[]), 0o2755) & 0o7777, 0o755);
        assert_eq!(armed.changed_mode(&Credentials::ROOT, 0o17_0777), TYPE_FILE | 0o777, "never the type");
        assert_eq!(armed.disarmed() & 0o7777, 0o755);
        assert_eq!(file(0o6745, None).disarmed() & 0o7777, 0o2745);
        assert!(!armed.may_give(&who(1, 10, &[]), 2, 10));
        assert!(armed.may_give(&who(1, 10, &[20]), 1, 20));
        assert!(!armed.may_give(&who(1, 10, &[20]), 1, 21));
        assert!(armed.may_give(&who(1, 9, &[]), 1, 10), "no change");
        assert!(!armed.may_give(&who(2, 10, &[]), 1, 10));
        assert!(armed.may_give(&Credentials::ROOT, 7, 7));
    }

    /// The same rules as acl(5), "ACCESS CHECK ALGORITHM", tells them, written without looking at the code above.
    fn by_the_book(file: &Permissions, who: &Credentials<'_>, wanted: Rights) -> bool {
        let Some(acl) = &file.acl else {
            let class = if who.uid == file.uid {
                file.mode >> 6
            } else if who.in_group(file.gid) {
                file.mode >> 3
            } else {
                file.mode
            };
            return u16::from(wanted.bits()) & !class == 0;
        };
        let has = |rights: Rights| rights.bits() & wanted.bits() == wanted.bits();
        let entry = |party| acl.entries().iter().find(|entry| entry.0 == party).map(|entry| entry.1);
        let masked = |rights: Rights| has(rights) && entry(Party::Mask).is_none_or(has);
        if who.uid == file.uid {
            return has(entry(Party::Owner).unwrap());
        }
        if let Some(rights) = entry(Party::User(who.uid)) {
            return masked(rights);
        }
        let of_groups: Vec<Rights> = acl
            .entries()
            .iter()
            .filter(|(party, _)| match party {
                Party::OwningGroup => who.in_group(file.gid),
                Party::Group(gid) => who.in_group(*gid),
                _ => false,
            })
            .map(|entry| entry.1)
            .collect();
        if of_groups.is_empty() {
            return has(entry(Party::Other).unwrap());
        }
        of_groups.into_iter().any(masked)
    }

    fn rights() -> impl Strategy<Value = Rights> {
        (0u8..8).prop_map(|bits| Rights::from_bits(bits).unwrap())
    }

    proptest! {
        #[test]
        fn agrees_with_the_manual(
            mode in 0u16..0o1000,
            list in proptest::option::of((
                proptest::collection::btree_map(prop_oneof![
                    (1u32..5).prop_map(Party::User),
                    (10u32..14).prop_map(Party::Group),
                ], rights(), 0..5),
                [rights(), rights(), rights()],
                (1u8..8).prop_map(|bits| Rights::from_bits(bits).unwrap()),
            )),
            uid in 1u32..5,
            gid in 10u32..14,
            groups in proptest::collection::btree_set(10u32..14, 0..3),
            wanted in rights(),
        ) {
            let acl = list.map(|(named, [owner, group, other], mask)| {
                let fixed = [(Party::Owner, owner), (Party::OwningGroup, group), (Party::Other, other), (Party::Mask, mask)];
                Acl::new(named.into_iter().chain(fixed).collect()).unwrap()
            });
            let file = file(acl.as_ref().map_or(mode, Acl::mode), acl);
            let groups: Vec<u32> = groups.into_iter().collect();
            let who = who(uid, gid, &groups);
            prop_assert_eq!(file.allows(&who, wanted), by_the_book(&file, &who, wanted));
        }
    }
}
