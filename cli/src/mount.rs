//! `portcullis mount`: the files of a volume for ordinary tools, through the kernel's FUSE.
//!
//! Everything is done in one session, whose rights are those of the user that mounts: the adapter decides each request. The
//! kernel lets no other user into the mount, so that it need not decide a second time (`default_permissions`), from attributes that
//! may be old and without the access lists.

mod answer;
mod nodes;
mod served;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use adapter::signals::termination;
use anyhow::{Context, Result, ensure};
use fuser::{Config, MountOption, Session, SessionUnmounter};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::UnmountFlags;
use serde_json::json;

use crate::arguments::Where;
use crate::connect::connect;
use crate::files::MountOptions;
use crate::output;
use crate::volume::answer;
use served::Served;

pub(crate) fn run(options: &MountOptions, place: &Where) -> Result<ExitCode> {
    let directory = &options.directory;
    let shown = || output::name(&directory.to_string_lossy());
    // Before any thread is started: they all leave the signals to one.
    let stop = termination().context("cannot block SIGTERM and SIGINT")?;
    ensure!(directory.is_dir(), "cannot mount on {}: it is no directory; make one first", shown());
    let volume = output::name(&options.volume);
    let files = connect(place)?.files()?;
    let served =
        Served::new(files, &options.volume).with_context(|| format!("cannot mount volume {volume}"))?;
    let mut session = Session::new(served, directory, &config(options)).with_context(|| {
        format!(
            "cannot mount on {}: it needs /dev/fuse (modprobe fuse), and, for users other than root, fusermount3 (package fuse3)",
            shown()
        )
    })?;
    let unmounter = session.unmount_callable();
    let mounted = directory.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || unmount_on(&stop, unmounter, &mounted))?;
    let json = json!({ "volume": options.volume, "directory": directory.to_string_lossy() });
    answer(place, &json, || {
        format!("{volume} is mounted on {}; Ctrl-C, SIGTERM or umount(8) ends it\n", shown())
    })?;
    session.run().with_context(|| format!("serving {volume} on {}", shown()))?;
    Ok(ExitCode::SUCCESS)
}

fn config(options: &MountOptions) -> Config {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    // Options are one text with commas for the kernel and its helper: a volume's name must not bring any.
    let name = if options.volume.chars().all(plain) { &options.volume } else { "volume" };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("portcullis-{name}")),
        MountOption::Subtype("portcullis".to_owned()),
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config
}

/// Unmounts on the first signal. If something is in use there it goes on for those until they are done; the second one ends it.
fn unmount_on(stop: &OwnedFd, mut unmounter: SessionUnmounter, directory: &Path) {
    let wait = || {
        while poll(&mut [PollFd::new(stop, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
        // The next one makes it readable again.
        let _ = rustix::io::read(stop, &mut [0; 128]);
    };
    wait();
    if unmounter.unmount().is_err() && rustix::mount::unmount(directory, UnmountFlags::DETACH).is_ok() {
        eprintln!(
            "portcullis: the mount is in use; it is gone from its place, and ends with the last that uses it"
        );
    }
    wait();
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_brings_no_options() {
        let source = |volume: &str| {
            let options = MountOptions { volume: volume.into(), directory: "/mnt".into(), read_only: true };
            let config = config(&options);
            assert!(config.mount_options.contains(&MountOption::RO));
            config.mount_options.into_iter().find_map(|option| match option {
                MountOption::FSName(name) => Some(name),
                _ => None,
            })
        };
        assert_eq!(source("notes-1.x").as_deref(), Some("portcullis-notes-1.x"));
        for volume in ["a,allow_other", "a\\,suid", "a b", "ä"] {
            assert_eq!(source(volume).as_deref(), Some("portcullis-volume"), "{volume}");
        }
    }
}
