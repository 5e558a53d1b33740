//! Paths: absolute, in bytes.

use super::error::shown;
use super::{FileError, MAX_DEPTH, MAX_NAME, MAX_PATH};

/// The names of a path, from the root down; none for the root itself.
pub(super) fn names(path: &[u8]) -> Result<Vec<&[u8]>, FileError> {
    let bad = |why| FileError::Path { path: shown(path), why };
    if path.len() > MAX_PATH {
        return Err(bad("it is too long"));
    }
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    if names.len() > MAX_DEPTH {
        return Err(bad("it has too many names"));
    }
    for name in &names {
        if name.len() > MAX_NAME {
            return Err(bad("a name in it is too long"));
        }
        if name.contains(&0) {
            return Err(bad("it has a NUL byte"));
        }
        // There is no current directory, and nobody's path means something else than it says.
        if *name == b"." || *name == b".." {
            return Err(bad("\".\" and \"..\" are no names here"));
        }
    }
    Ok(names)
}

/// Whether a name from the disk is one.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && names(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_or_refused() {
        let list = |path: &'static str| names(path.as_bytes()).map(|names| names.join(&b'|'));
        assert_eq!(list("/a/b").unwrap(), b"a|b");
        assert_eq!(list("a//b/").unwrap(), b"a|b");
        assert_eq!(list("/").unwrap(), b"");
        assert_eq!(names(b"/\xff\x01\n").unwrap(), [b"\xff\x01\n"], "all other bytes are good");
        for bad in ["/a/./b", "..", "/a/..", "a\0b"] {
            assert!(matches!(list(bad), Err(FileError::Path { .. })), "{bad:?}");
        }
        assert!(names(&[b'x'; 255]).is_ok());
        assert!(names(&[b'x'; 256]).is_err());
        let deep = |depth| b"/x".repeat(depth);
        assert!(names(&deep(MAX_DEPTH)).is_ok());
        assert!(names(&deep(MAX_DEPTH + 1)).is_err());
        let long = |bytes: usize| {
            let mut path = [b'/'; 5000].to_vec();
            path.truncate(bytes);
            path
        };
        assert!(names(&long(MAX_PATH)).is_ok());
        assert!(names(&long(MAX_PATH + 1)).is_err());
        for (name, good) in [(&b"a"[..], true), (b"", false), (b"a/b", false), (b"/", false), (b"..", false)]
        {
            assert_eq!(is_name(name), good, "{name:?}");
        }
    }
}
