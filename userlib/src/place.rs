//! Where a file is: a volume, and a path in it.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use wire::files::{FilePath, check_path};
use wire::name::{beginning, check_name, escape};

use crate::error::Error;

/// A volume and a path in it, written `VOLUME:/path`. The path is put into its shortest form: without `.`, without two slashes
/// in a row or one at the end. `..` is refused: what it leads to is not known here.
///
/// ```
/// use portcullis::Place;
/// let place: Place = "notes:/2024//./log.txt/".parse()?;
/// assert_eq!((place.volume(), place.path()), ("notes", b"/2024/log.txt".as_slice()));
/// assert_eq!(place.to_string(), "notes:/2024/log.txt");
/// assert_eq!("notes:".parse::<Place>()?.path(), b"/", "its root");
/// assert!("/2024/log.txt".parse::<Place>().is_err(), "of which volume?");
/// # Ok::<(), portcullis::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    volume: String,
    path: FilePath,
}

impl Place {
    /// A path, which is bytes as anywhere in Linux, in a volume. It need not begin with a slash.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that no volume has, or a path that no file has.
    ///
    /// ```
    /// use portcullis::Place;
    /// assert_eq!(Place::new("v", "a/b")?.path(), b"/a/b");
    /// assert!(Place::new("v", "a/../b").is_err());
    /// # Ok::<(), portcullis::Error>(())
    /// ```
    pub fn new(volume: &str, path: impl AsRef<[u8]>) -> Result<Self, Error> {
        check_name(volume)
            .map_err(|error| Error::Argument(format!("volume \"{}\": {error}", escape(volume))))?;
        let mut short = Vec::new();
        for component in path.as_ref().split(|&byte| byte == b'/') {
            if !matches!(component, b"" | b".") {
                short.push(b'/');
                short.extend_from_slice(component);
            }
        }
        if short.is_empty() {
            short.push(b'/');
        }
        let refused = |why: &dyn fmt::Display| {
            let shown = wire::name::escape_bytes(&short);
            let shown = beginning(&shown, 200);
            Error::Argument(format!("path \"{shown}\" in volume \"{}\": {why}", escape(volume)))
        };
        check_path(&short).map_err(|error| refused(&error))?;
        let path = FilePath::new(short.clone()).map_err(|error| refused(&error))?;
        Ok(Self { volume: volume.to_owned(), path })
    }

    /// The volume's name.
    ///
    /// ```
    /// assert_eq!(portcullis::Place::new("v", "/a")?.volume(), "v");
    /// # Ok::<(), portcullis::Error>(())
    /// ```
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// The path, beginning with a slash.
    ///
    /// ```
    /// assert_eq!(portcullis::Place::new("v", "a")?.path(), b"/a");
    /// # Ok::<(), portcullis::Error>(())
    /// ```
    pub fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    /// What has this name in the directory here.
    ///
    /// # Errors
    /// As [`Place::new`].
    ///
    /// ```
    /// let place = portcullis::Place::new("v", "/a")?.join("b")?;
    /// assert_eq!(place.path(), b"/a/b");
    /// # Ok::<(), portcullis::Error>(())
    /// ```
    pub fn join(&self, name: impl AsRef<[u8]>) -> Result<Self, Error> {
        Self::new(&self.volume, [self.path(), b"/", name.as_ref()].concat())
    }

    /// The directory that it is in; `None` for the root.
    ///
    /// ```
    /// let place = portcullis::Place::new("v", "/a/b")?;
    /// assert_eq!(place.parent().map(|it| it.to_string()), Some("v:/a".to_owned()));
    /// # Ok::<(), portcullis::Error>(())
    /// ```
    pub fn parent(&self) -> Option<Self> {
        let slash = self.path().iter().rposition(|&byte| byte == b'/')?;
        let path = match self.path() {
            b"/" => return None,
            path if slash == 0 => &path[..1],
            path => &path[..slash],
        };
        Some(Self { volume: self.volume.clone(), path: FilePath::new(path).ok()? })
    }

    /// Its name in that directory; empty for the root.
    ///
    /// ```
    /// assert_eq!(portcullis::Place::new("v", "/a/b")?.name(), b"b");
    /// # Ok::<(), portcullis::Error>(())
    /// ```
    pub fn name(&self) -> &[u8] {
        let slash = self.path().iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        &self.path()[slash + 1..]
    }

    pub(crate) fn wire(&self) -> (String, FilePath) {
        (self.volume.clone(), self.path.clone())
    }
}

/// Escaped.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", escape(&self.volume), self.path)
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some((volume, path)) => Self::new(volume, path),
            None => Err(Error::Argument(format!(
                "\"{}\" names no volume: write VOLUME:/path, notes:/log.txt for example",
                escape(text)
            ))),
        }
    }
}

/// What says where a file is: a [`Place`], its text, or a volume and a path.
///
/// ```
/// use portcullis::{Place, ToPlace};
/// let place = Place::new("v", "/a")?;
/// assert_eq!("v:/a".to_place()?, place);
/// assert_eq!(("v", "/a").to_place()?, place);
/// assert_eq!(("v", std::path::Path::new("/a")).to_place()?, place);
/// assert_eq!(place.to_place()?, place);
/// # Ok::<(), portcullis::Error>(())
/// ```
pub trait ToPlace {
    /// Where it is.
    ///
    /// # Errors
    /// As [`Place::new`].
    fn to_place(&self) -> Result<Place, Error>;
}

impl ToPlace for Place {
    fn to_place(&self) -> Result<Place, Error> {
        Ok(self.clone())
    }
}

impl ToPlace for str {
    fn to_place(&self) -> Result<Place, Error> {
        self.parse()
    }
}

impl ToPlace for String {
    fn to_place(&self) -> Result<Place, Error> {
        self.parse()
    }
}

impl<V: AsRef<str>, P: AsRef<Path>> ToPlace for (V, P) {
    fn to_place(&self) -> Result<Place, Error> {
        Place::new(self.0.as_ref(), self.1.as_ref().as_os_str().as_bytes())
    }
}

impl<T: ToPlace + ?Sized> ToPlace for &T {
    fn to_place(&self) -> Result<Place, Error> {
        (**self).to_place()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_into_its_shortest_form_or_refused() {
        for (text, path) in [
            ("v:/", "/"),
            ("v:", "/"),
            ("v:a", "/a"),
            ("v://a//b/./", "/a/b"),
            ("v:/a:b", "/a:b"),
            ("v:/...", "/..."),
        ] {
            assert_eq!(text.parse::<Place>().unwrap().path(), path.as_bytes(), "{text}");
        }
        for bad in
            ["v", "", ":/a", "a/b:/c", "v:/..", "v:/a/../b", "v:/a\0b", &format!("v:/{}", "n".repeat(256))]
        {
            assert!(matches!(bad.parse::<Place>(), Err(Error::Argument(_))), "{bad:?}");
        }
        let error = Place::new("v", b"/\x1b[2J\xff/..".as_slice()).unwrap_err().to_string();
        assert!(error.contains(r"\u{1b}[2J\xff"), "{error}");
    }

    #[test]
    fn parents_and_names_lead_back() {
        let place = Place::new("v", "/a/b/c").unwrap();
        let parent = place.parent().unwrap();
        assert_eq!(parent.join(place.name()).unwrap(), place);
        let root = parent.parent().and_then(|a| a.parent()).unwrap();
        assert_eq!((root.path(), root.name(), root.parent()), (b"/".as_slice(), b"".as_slice(), None));
        assert_eq!(root.join("a").unwrap().to_string(), "v:/a");
    }
}
