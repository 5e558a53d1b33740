//! The command line of what is done with files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use portcullis::Place;
use portcullis::wire::name::escape_bytes;

use crate::copy::End;
use crate::units::parse_size;

/// Reads VOLUME:/path. A path is bytes, and need not be text.
fn parse_place(text: &OsStr) -> Result<Place, String> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':');
    let volume = colon.and_then(|colon| Some((str::from_utf8(&bytes[..colon]).ok()?, &bytes[colon + 1..])));
    match volume {
        Some((volume, path)) => Place::new(volume, path).map_err(|error| error.to_string()),
        None => Err(format!(
            "\"{}\" names no volume: write VOLUME:/path, notes:/log.txt for example",
            escape_bytes(bytes)
        )),
    }
}

fn place() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().try_map(|text| parse_place(&text))
}

#[derive(Args, Debug)]
pub(crate) struct Places {
    /// Files of volumes
    #[arg(required = true, value_name = "VOLUME:/PATH", value_parser = place())]
    pub(crate) places: Vec<Place>,
}

#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  portcullis ls notes:/
  portcullis ls -l notes:/2024 notes:/log.txt
  portcullis ls -R --json notes:/ | jq -r '.[] | select(.length > 1000000) | .path'
  portcullis ls -R --zero notes:/ | xargs -0 ...    # names as they are; without it unusual characters are escaped

Exit code 2 if something that was named cannot be listed, 1 for less than that.")]
pub(crate) struct ListOptions {
    /// Directories and files of volumes
    #[arg(required = true, value_name = "VOLUME:/PATH", value_parser = place())]
    pub(crate) places: Vec<Place>,
    /// Kind, rights, owner, group, length and time (UTC) of the last change
    #[arg(short = 'l', long)]
    pub(crate) long: bool,
    /// Also what is in directories below
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Directories themselves, not what is in them
    #[arg(short = 'd', long, conflicts_with = "recursive")]
    pub(crate) directory: bool,
    /// In the order of the file system, each as soon as it is known
    #[arg(short = 'U', long)]
    pub(crate) unsorted: bool,
    /// Names as they are, each ended by a zero byte; with -R paths in the volume
    #[arg(long, conflicts_with_all = ["long", "json"])]
    pub(crate) zero: bool,
}

#[derive(Args, Debug)]
#[command(after_long_help = "\
A source or the target is one of
  FILE              a file or directory here; one with a colon in its name is written ./like:this
  VOLUME:/PATH      a file or directory in a volume
  VOLUME:           a whole volume of blocks
  VOLUME:@OFFSET    a place in it
  -                 standard input or output

Examples:
  portcullis cp photo.jpg notes:/                    # into a directory of a volume
  portcullis cp -r -p src notes:/backup              # a directory, with modes and times
  portcullis cp notes:/a notes:/b other:/            # several, into a directory
  portcullis cp -r notes:/backup/. restored          # what is in a directory
  tar c src | portcullis cp - notes:/src.tar
  portcullis cp disk.img blocks:                     # to the beginning of a volume
  portcullis cp blocks: copy.img                     # the whole volume
  portcullis cp blocks: part --bytes 183402          # so many bytes of it
  portcullis cp part.bin blocks:@16M                 # at an offset, a multiple of the block size

What was written to volumes is durable when the command ends. Runs of zeroes become holes of files here; in a volume \
they take room. A volume of blocks keeps whole ones: if the last block is not full, it is filled up with zeroes; the command \
says so, and how many bytes to read back.

Something that cannot be copied is named on standard error, and the rest is copied; the exit code is 1 then.")]
pub(crate) struct CopyOptions {
    /// Sources, and then the target
    #[arg(
        required = true,
        num_args = 2..,
        value_names = ["SOURCE", "TARGET"],
        value_parser = OsStringValueParser::new().try_map(End::parse)
    )]
    pub(crate) ends: Vec<End>,
    /// Directories, with all that is in them
    #[arg(short, long, visible_short_alias = 'R', conflicts_with = "bytes")]
    pub(crate) recursive: bool,
    /// Keep modes, times and, where this user may, owners
    #[arg(short, long)]
    pub(crate) preserve: bool,
    /// Copy what symbolic links lead to, also below a directory
    #[arg(short = 'L', long)]
    pub(crate) follow: bool,
    /// Copy that many bytes [default: all]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(crate) bytes: Option<u64>,
    /// Requests in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) depth: u32,
    /// Bytes of one request
    #[arg(long, default_value = "256k", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) chunk: u64,
    /// No progress bar and no summary
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl CopyOptions {
    /// To copy these, without a word.
    pub(crate) fn quiet(ends: Vec<End>) -> Self {
        Self {
            ends,
            recursive: false,
            preserve: false,
            follow: false,
            bytes: None,
            depth: 8,
            chunk: 256 << 10,
            quiet: true,
        }
    }
}

#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  portcullis mv notes:/draft notes:/log.txt          # a file of that name is replaced, in one step
  portcullis mv notes:/a notes:/b notes:/2024        # into a directory

Names change within a volume. From one to another: portcullis cp -r -p, and then rm -r.")]
pub(crate) struct MoveOptions {
    /// Files and directories, and then the new name or the directory
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "TARGET"], value_parser = place())]
    pub(crate) places: Vec<Place>,
    /// Do not replace what is there
    #[arg(short, long)]
    pub(crate) no_clobber: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RemoveOptions {
    /// Files, and with -r directories
    #[arg(required = true, value_name = "VOLUME:/PATH", value_parser = place())]
    pub(crate) places: Vec<Place>,
    /// Directories, with all that is in them
    #[arg(short, long, visible_short_alias = 'R')]
    pub(crate) recursive: bool,
    /// Say nothing of what is not there
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct MakeOptions {
    /// The directories to make
    #[arg(required = true, value_name = "VOLUME:/PATH", value_parser = place())]
    pub(crate) places: Vec<Place>,
    /// Also those around them that are not there; none is an error if it is there
    #[arg(short, long)]
    pub(crate) parents: bool,
    /// Permission bits, in octal
    #[arg(short, long, default_value = "755", value_parser = parse_mode)]
    pub(crate) mode: u16,
}

fn parse_mode(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("{text:?} is no mode: give octal digits, 755 or 0700 for example")),
    }
}

#[derive(Args, Debug)]
pub(crate) struct StatOptions {
    /// Files and directories of volumes
    #[arg(required = true, value_name = "VOLUME:/PATH", value_parser = place())]
    pub(crate) places: Vec<Place>,
    /// Of what a symbolic link leads to
    #[arg(short = 'L', long)]
    pub(crate) follow: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SpaceOptions {
    /// Volumes [default: all that hold files]
    #[arg(value_name = "VOLUME")]
    pub(crate) volumes: Vec<String>,
}

#[derive(Args, Debug)]
#[command(after_long_help = "\
Looks at all metadata. No file of the volume may be open meanwhile.

Exit codes: 0 nothing is wrong, 1 something is, 8 it could not be checked.")]
pub(crate) struct CheckOptions {
    /// The volume
    pub(crate) volume: String,
}

#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  portcullis mount notes /mnt &
  ls -l /mnt; tar cf backup.tar -C /mnt .; vi /mnt/2024/log.txt
  umount /mnt                                        # or end the command

For looking around with ordinary tools, by FUSE: each request makes its way through the kernel, this command and the adapter. \
Its rights are those of the user who mounts; the kernel lets no other user in, root included. It needs /dev/fuse, and, for users \
other than root, fusermount3. Programs that want to be fast open files with the library.

There are no symbolic or hard links, and no extended attributes. What is written is durable after fsync(2).")]
pub(crate) struct MountOptions {
    /// The volume
    pub(crate) volume: String,
    /// An empty directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Only to be read
    #[arg(short, long)]
    pub(crate) read_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bytes_in_a_volume() {
        let place = parse_place(OsStr::from_bytes(b"v:/\xff//b/")).unwrap();
        assert_eq!((place.volume(), place.path()), ("v", b"/\xff/b".as_slice()));
        assert_eq!(parse_place(OsStr::new("v:")).unwrap().path(), b"/");
        for bad in [b"v".as_slice(), b"/v/b", b"\xff:/a", b":/a", b"v:/..", b"\x1b:"] {
            let error = parse_place(OsStr::from_bytes(bad)).unwrap_err();
            assert!(!error.contains('\x1b'), "{error}");
        }
    }

    #[test]
    fn a_mode_is_octal() {
        assert_eq!((parse_mode("755"), parse_mode("07777")), (Ok(0o755), Ok(0o7777)));
        for bad in ["", "8", "rwx", "10000", "-1"] {
            assert!(parse_mode(bad).unwrap_err().contains("octal"), "{bad}");
        }
    }
}
