//! Names that come from outside: which are good, and how any is shown.

use crate::control::MAX_NAME;

/// Why a name is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No character at all.
    #[error("a name must not be empty")]
    Empty,
    /// Too many bytes.
    #[error("a name of {0} bytes is longer than the {MAX_NAME} allowed")]
    TooLong(usize),
    /// A path component with a meaning of its own.
    #[error("\".\" and \"..\" are not names")]
    Dots,
    /// A character that no name may have.
    #[error("a name must not contain {}: use printable characters but '/' and ':'", escape_char(*.0))]
    Character(char),
}

/// Whether `name` may name a volume or a file: 1 to [`MAX_NAME`] bytes, printable, without `/` and `:`, neither `.` nor
/// `..`; no blank at either end.
///
/// # Errors
/// The first rule broken.
pub fn check_name(name: &str) -> Result<(), NameError> {
    match name {
        "" => return Err(NameError::Empty),
        "." | ".." => return Err(NameError::Dots),
        _ if name.len() > MAX_NAME => return Err(NameError::TooLong(name.len())),
        _ => {}
    }
    if let Some(bad) = name.chars().find(|&c| c == '/' || c == ':' || !printable(c)) {
        return Err(NameError::Character(bad));
    }
    match name.chars().next().into_iter().chain(name.chars().next_back()).find(|&c| c == ' ') {
        Some(blank) => Err(NameError::Character(blank)),
        None => Ok(()),
    }
}

/// `name` for logs, tables and messages: what is not printable, and the backslash, as escapes (`\n`, `\u{202e}`), so that
/// no name can look like something else or drive a terminal.
pub fn escape(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    for c in name.chars() {
        if c != '\\' && printable(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

/// As [`escape`], for what may be no text: bytes that are none are shown as `\xff`.
pub fn escape_bytes(name: &[u8]) -> String {
    let mut shown = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        shown.push_str(&escape(chunk.valid()));
        chunk.invalid().iter().for_each(|byte| shown.extend(byte.escape_ascii().map(char::from)));
    }
    shown
}

/// The beginning of a text: at most so many bytes, and whole characters.
pub fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    end.and_then(|end| text.get(..end)).unwrap_or("")
}

fn escape_char(c: char) -> String {
    format!("'{}'", escape(c.encode_utf8(&mut [0; 4])))
}

/// Whether a character shows as itself and leaves its neighbours alone. What `char::escape_debug` would escape does not:
/// controls, formats, unassigned and private characters, combining marks, separators other than the blank.
fn printable(c: char) -> bool {
    matches!(c, '\'' | '"') || c.escape_debug().count() == 1
}
