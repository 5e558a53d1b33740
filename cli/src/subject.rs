//! Users and groups by name and number.
#![allow(unsafe_code)] // the C library knows the users, wherever they are kept

use std::ffi::{CStr, CString};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::str::FromStr;

use portcullis::Subject;

/// A subject as the command line names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Name(pub(crate) Subject);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let subject = match text.split_once(':') {
            None if text == "everyone" => Subject::Everyone,
            Some(("user", who)) => Subject::User(number(who, "user", user_id)?),
            Some(("group", who)) => Subject::Group(number(who, "group", group_id)?),
            _ => {
                return Err(format!(
                    "{text:?} names nobody: give user:NAME, user:UID, group:NAME, group:GID or everyone"
                ));
            }
        };
        Ok(Self(subject))
    }
}

fn number(who: &str, kind: &str, find: impl Fn(&str) -> Option<u32>) -> Result<u32, String> {
    if let Ok(number) = who.parse() {
        return Ok(number);
    }
    find(who).ok_or_else(|| format!("this machine knows no {kind} {who:?}: give another name, or a number"))
}

impl fmt::Display for Name {
    /// By name where there is one: `user:alice`, `group:1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Subject::User(id) => write!(f, "user:{}", user_name(id).unwrap_or_else(|| id.to_string())),
            Subject::Group(id) => write!(f, "group:{}", group_name(id).unwrap_or_else(|| id.to_string())),
            Subject::Everyone => f.write_str("everyone"),
        }
    }
}

/// The subject by number, which does not change with the machine.
pub(crate) fn by_number(subject: Subject) -> String {
    match subject {
        Subject::User(id) => format!("user:{id}"),
        Subject::Group(id) => format!("group:{id}"),
        Subject::Everyone => "everyone".to_owned(),
    }
}

/// Enough for an entry of the user or group database, which may list members.
const ENTRY_BYTES: usize = 256 * 1024;

/// Calls one of the get...r functions of the C library, and takes what is wanted out of the entry that it found.
fn look_up<Entry, T>(
    find: impl FnOnce(*mut Entry, *mut libc::c_char, usize, *mut *mut Entry) -> libc::c_int,
    take: impl FnOnce(&Entry) -> T,
) -> Option<T> {
    let mut entry = MaybeUninit::<Entry>::zeroed();
    let mut text: Vec<libc::c_char> = vec![0; ENTRY_BYTES];
    let mut found = ptr::null_mut();
    let error = find(entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &raw mut found);
    if error != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the function says that it filled `entry`, whose pointers lead into `text`; both live until the end.
    Some(take(unsafe { &*found }))
}

fn user_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    look_up(
        // SAFETY: all pointers are valid for what they are said to be for, `text` with its length.
        |entry, text, length, found| unsafe { libc::getpwnam_r(name.as_ptr(), entry, text, length, found) },
        |entry: &libc::passwd| entry.pw_uid,
    )
}

fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    look_up(
        // SAFETY: as in `user_id`.
        |entry, text, length, found| unsafe { libc::getgrnam_r(name.as_ptr(), entry, text, length, found) },
        |entry: &libc::group| entry.gr_gid,
    )
}

/// The name of a user; `None` if this machine knows none.
pub(crate) fn user_name(id: u32) -> Option<String> {
    look_up(
        // SAFETY: as in `user_id`.
        |entry, text, length, found| unsafe { libc::getpwuid_r(id, entry, text, length, found) },
        |entry: &libc::passwd| {
            // SAFETY: the name is a C string inside `text`.
            let name = unsafe { CStr::from_ptr(entry.pw_name) };
            name.to_string_lossy().into_owned()
        },
    )
}

/// The name of a group; `None` if this machine knows none.
pub(crate) fn group_name(id: u32) -> Option<String> {
    look_up(
        // SAFETY: as in `user_id`.
        |entry, text, length, found| unsafe { libc::getgrgid_r(id, entry, text, length, found) },
        |entry: &libc::group| {
            // SAFETY: the name is a C string inside `text`.
            let name = unsafe { CStr::from_ptr(entry.gr_name) };
            name.to_string_lossy().into_owned()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_by_name_and_number() {
        let parse = |text: &str| text.parse::<Name>().map(|name| name.0);
        assert_eq!(parse("everyone"), Ok(Subject::Everyone));
        assert_eq!(parse("user:1000"), Ok(Subject::User(1000)));
        assert_eq!(parse("group:7"), Ok(Subject::Group(7)));
        assert_eq!(parse("user:root"), Ok(Subject::User(0)));
        assert_eq!(parse("group:root"), Ok(Subject::Group(0)));
        assert_eq!(Name(Subject::User(0)).to_string(), "user:root");
        assert_eq!(Name(Subject::User(4_000_000_000)).to_string(), "user:4000000000");
        assert_eq!(by_number(Subject::Group(7)), "group:7");
    }

    #[test]
    fn nobody_is_said_to_be_nobody() {
        for text in ["", "alice", "users:1", "user:", "user:no such user", "group:-1", "user:4294967296"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
