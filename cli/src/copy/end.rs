//! Where a copy comes from and where it goes: files here, files in volumes, volumes as a whole, standard input and output.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use portcullis::Place;
use portcullis::wire::files::check_path;
use portcullis::wire::name::escape_bytes;

use crate::output;
use crate::units::parse_size;

/// One end of a copy, as the command line names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Standard,
    Volume { name: String, offset: u64 },
    Item(Item),
}

/// Something with a name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    /// In a file system of the kernel's.
    Host(PathBuf),
    /// In a volume.
    Inside(Place),
}

impl End {
    /// Reads what stands on a command line. Paths are bytes, and need not be text.
    pub(crate) fn parse(text: OsString) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Standard);
        }
        let bytes = text.as_bytes();
        let shown = escape_bytes(bytes);
        // No volume has a slash in its name.
        let colon = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        let Some(colon) = colon.filter(|at| bytes.get(*at) == Some(&b':')) else {
            return Ok(Self::Item(Item::Host(text.into())));
        };
        let (name, inside) = (&bytes[..colon], &bytes[colon + 1..]);
        let Ok(name) = str::from_utf8(name) else {
            return Err(format!("\"{shown}\" names no volume before the colon; a file is written ./{shown}"));
        };
        match inside {
            _ if name.is_empty() => {
                Err(format!("\"{shown}\" names no volume before the colon; a file is written ./{shown}"))
            }
            [] => Ok(Self::Volume { name: name.to_owned(), offset: 0 }),
            [b'@', offset @ ..] => {
                let offset = parse_size(&String::from_utf8_lossy(offset))?;
                Ok(Self::Volume { name: name.to_owned(), offset })
            }
            [b'/', ..] => {
                let place = Place::new(name, inside).map_err(|error| error.to_string())?;
                Ok(Self::Item(Item::Inside(place)))
            }
            _ => Err(format!(
                "\"{}\" does not name a place in volume \"{name}\": give {name}:/PATH for a file in it, {name}: for all of \
                 it, or {name}:@OFFSET; a file is written ./{shown}",
                escape_bytes(inside)
            )),
        }
    }
}

/// Whether a name may stand in a directory. What a volume tells may come from a disk that somebody prepared: with `..`, or with a
/// slash, its files would land elsewhere than in the directory that they are copied to.
fn check_component(name: &[u8]) -> Result<()> {
    let path = [b"/", name].concat();
    ensure!(
        name.iter().all(|byte| *byte != b'/') && path.len() > 1 && check_path(&path).is_ok(),
        "a directory has an entry \"{}\", which is no name of a file; it is left out",
        escape_bytes(name)
    );
    Ok(())
}

impl Item {
    /// What has this name in the directory here.
    pub(crate) fn join(&self, name: &[u8]) -> Result<Self> {
        check_component(name)?;
        Ok(match self {
            Self::Host(path) => Self::Host(path.join(OsStr::from_bytes(name))),
            Self::Inside(place) => Self::Inside(place.join(name)?),
        })
    }

    /// Its name in its directory; `None` for a root, and for what a path names by `.` or `..` at its end: of them the content is
    /// meant.
    pub(crate) fn name(&self) -> Option<Vec<u8>> {
        match self {
            Self::Host(path) => {
                let bytes = path.as_os_str().as_bytes();
                let dots = bytes.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty());
                let name = path.file_name().filter(|_| dots != Some(b"."));
                name.map(|name| name.to_owned().into_vec())
            }
            Self::Inside(place) => Some(place.name().to_vec()).filter(|name| !name.is_empty()),
        }
    }

    pub(crate) fn host(&self) -> Option<&Path> {
        if let Self::Host(path) = self { Some(path) } else { None }
    }
}

/// Escaped.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => f.write_str(&escape_bytes(path.as_os_str().as_bytes())),
            Self::Inside(place) => place.fmt(f),
        }
    }
}

/// Escaped.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("-"),
            Self::Volume { name, offset: 0 } => write!(f, "{}:", output::name(name)),
            Self::Volume { name, offset } => write!(f, "{}:@{offset}", output::name(name)),
            Self::Item(item) => item.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<End, String> {
        End::parse(text.into())
    }

    #[test]
    fn ends_are_files_streams_and_volumes() {
        let volume = |name: &str, offset| Ok(End::Volume { name: name.into(), offset });
        let host = |path: &str| Ok(End::Item(Item::Host(path.into())));
        let inside = |place: &str| Ok(End::Item(Item::Inside(place.parse().unwrap())));
        assert_eq!(parse("-"), Ok(End::Standard));
        assert_eq!(parse("a.bin"), host("a.bin"));
        assert_eq!(parse("./a:b"), host("./a:b"));
        assert_eq!(parse("/tmp/a:b"), host("/tmp/a:b"));
        assert_eq!(parse("vol:"), volume("vol", 0));
        assert_eq!(parse("vol:@16M"), volume("vol", 16 << 20));
        assert_eq!(parse("vol:/path"), inside("vol:/path"));
        assert_eq!(parse("vol://a//b/./c:d/"), inside("vol:/a/b/c:d"));
        assert_eq!(parse("vol:/"), inside("vol:/"));
        for text in [":", ":x", "vol:x", "vol:@", "vol:@x", "vol:/a/../b", " vol:/a"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let bytes = OsString::from_vec(b"vol:/\xff\x1b".to_vec());
        assert_eq!(End::parse(bytes).unwrap().to_string(), r"vol:/\xff\u{1b}");
        assert!(End::parse(OsString::from_vec(b"v\xff:/a".to_vec())).is_err());
    }

    #[test]
    fn what_has_no_name_of_its_own_stands_for_its_content() {
        let name = |text: &str| match parse(text).unwrap() {
            End::Item(item) => item.name().map(|name| String::from_utf8(name).unwrap()),
            other => panic!("{other:?}"),
        };
        for text in [".", "..", "a/.", "a/./", "a/..", "/", "v:/", "v:/."] {
            assert_eq!(name(text), None, "{text}");
        }
        for (text, is) in [("a", "a"), ("a/b/", "b"), ("/tmp/.x", ".x"), ("v:/a/b", "b"), ("v:/a/", "a")] {
            assert_eq!(name(text).as_deref(), Some(is), "{text}");
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_no_name() {
        for item in [Item::Host("/tmp/x".into()), Item::Inside("v:/x".parse().unwrap())] {
            for bad in ["", ".", "..", "a/b", "../a", "/etc", "a\0", &"n".repeat(256)] {
                let error = item.join(bad.as_bytes()).unwrap_err().to_string();
                assert!(error.contains("no name of a file"), "{error}");
            }
            assert!(item.join(b"...").is_ok() && item.join(b"a\xff\n").is_ok());
        }
    }
}
