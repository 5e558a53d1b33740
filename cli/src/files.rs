//! What is done with files in volumes by their names: mv, rm, mkdir, df, fsck; ls and stat are in a module of their own.

mod list;
mod options;
mod show;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use portcullis::wire::files::{CheckReport, FileKind, FileSystemInfo, FileSystemKind};
use portcullis::{Files, Place, Status};
use serde_json::{Value, json};

use crate::arguments::Where;
use crate::connect::connect;
use crate::copy::is_over;
use crate::output;
use crate::units::show_size;
use crate::volume::answer;
pub(crate) use list::{list, stat};
pub(crate) use options::{
    CheckOptions, CopyOptions, ListOptions, MakeOptions, MountOptions, MoveOptions, Places, RemoveOptions,
    SpaceOptions, StatOptions,
};

/// Exit code of a check that could not be made, as of fsck(8).
const NOT_CHECKED: u8 = 8;

/// Does something for each of several things. What fails is said, and does not keep the others from being done.
#[derive(Default)]
struct Each {
    failures: u64,
}

impl Each {
    /// An error only if there is no sense in going on.
    fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_over(&error) => Err(error),
            Err(error) => {
                self.failures += 1;
                output::complain(&error);
                Ok(None)
            }
        }
    }

    fn code(&self) -> ExitCode {
        if self.failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Prints which of the things were done, for scripts; a person is told of failures only.
fn report(place: &Where, done: &str, places: &[String], each: &Each) -> Result<ExitCode> {
    if place.json {
        output::print_json(&json!({ done: places, "failures": each.failures }))?;
    }
    Ok(each.code())
}

/// Whether a place is a directory; links are followed.
fn is_directory(files: &Files, place: &Place) -> Result<bool> {
    match files.metadata(place) {
        Ok(its) => Ok(its.kind == FileKind::Directory),
        Err(error) if error.status() == Some(Status::E_NO_RESOURCE) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {place}")),
    }
}

pub(crate) fn rename(options: &MoveOptions, place: &Where) -> Result<ExitCode> {
    let Some((target, sources)) = options.places.split_last() else { bail!("nothing to rename") };
    let files = connect(place)?.files()?;
    let into = is_directory(&files, target)?;
    ensure!(into || sources.len() == 1, "several sources go into a directory: {target} is none");
    let (mut each, mut done) = (Each::default(), Vec::new());
    for source in sources {
        let to = if into { target.join(source.name())? } else { target.clone() };
        let renamed =
            if options.no_clobber { files.rename_new(source, &to) } else { files.rename(source, &to) };
        let renamed = renamed.with_context(|| format!("cannot rename {source} to {to}"));
        if each.take(renamed)?.is_some() {
            done.push(to.to_string());
        }
    }
    report(place, "renamed", &done, &each)
}

pub(crate) fn remove(options: &RemoveOptions, place: &Where) -> Result<ExitCode> {
    let files = connect(place)?.files()?;
    let (mut each, mut done) = (Each::default(), Vec::new());
    for victim in &options.places {
        match files.symlink_metadata(victim) {
            Ok(its) => {
                let before = each.failures;
                remove_one(&files, victim, its.kind, options.recursive, &mut each)?;
                if each.failures == before {
                    done.push(victim.to_string());
                }
            }
            Err(error) if options.force && error.status() == Some(Status::E_NO_RESOURCE) => {}
            Err(error) => {
                each.take(Err::<(), _>(error).with_context(|| format!("cannot remove {victim}")))?;
            }
        }
    }
    report(place, "removed", &done, &each)
}

fn remove_one(files: &Files, victim: &Place, kind: FileKind, recursive: bool, each: &mut Each) -> Result<()> {
    let removed = match kind {
        FileKind::Directory if !recursive => Err(anyhow::anyhow!(
            "cannot remove {victim}: it is a directory; -r removes it with all that is in it"
        )),
        FileKind::Directory => return remove_tree(files, victim, each),
        _ => files.remove_file(victim).with_context(|| format!("cannot remove {victim}")),
    };
    each.take(removed).map(drop)
}

/// Removes a directory and all that is in it, as far as it goes. The root directory stays.
fn remove_tree(files: &Files, directory: &Place, each: &mut Each) -> Result<()> {
    let before = each.failures;
    let listing = || format!("cannot list {directory}");
    let Some(entries) = each.take(files.read_dir(directory).with_context(listing))? else { return Ok(()) };
    // What is removed meanwhile does not keep the listing from naming everything else.
    for entry in entries {
        let Some(entry) = each.take(entry.with_context(listing))? else { break };
        let Some(below) = each.take(directory.join(entry.name.as_bytes()).map_err(Into::into))? else {
            continue;
        };
        remove_one(files, &below, entry.kind, true, each)?;
    }
    if each.failures > before || directory.parent().is_none() {
        return Ok(()); // It is not empty, and why has been said.
    }
    let removed =
        files.remove_dir(directory).with_context(|| format!("cannot remove the directory {directory}"));
    each.take(removed).map(drop)
}

pub(crate) fn make(options: &MakeOptions, place: &Where) -> Result<ExitCode> {
    let files = connect(place)?.files()?;
    let (mut each, mut done) = (Each::default(), Vec::new());
    for directory in &options.places {
        let made = if options.parents {
            make_all(&files, directory, options.mode)
        } else {
            files.create_dir_with_mode(directory, options.mode).map_err(Into::into)
        };
        let made: Result<()> = made.with_context(|| format!("cannot make the directory {directory}"));
        if each.take(made)?.is_some() {
            done.push(directory.to_string());
        }
    }
    report(place, "made", &done, &each)
}

/// The mode is of the last one; those around it are as usual.
fn make_all(files: &Files, directory: &Place, mode: u16) -> Result<()> {
    if let Some(parent) = directory.parent() {
        files.create_dir_all(parent)?;
    }
    match files.create_dir_with_mode(directory, mode) {
        Err(error) if error.status() == Some(Status::E_EXISTS) && is_directory(files, directory)? => Ok(()),
        made => Ok(made?),
    }
}

pub(crate) fn space(options: &SpaceOptions, place: &Where) -> Result<ExitCode> {
    let files = connect(place)?.files()?;
    let mut each = Each::default();
    let mut all = Vec::new();
    let named = |volume: &str| {
        files.space(volume).with_context(|| format!("cannot ask volume {}", output::name(volume)))
    };
    for volume in &options.volumes {
        all.extend(each.take(named(volume))?.map(|space| (volume.clone(), space)));
    }
    if options.volumes.is_empty() {
        let volumes =
            files.session().volumes().collect::<Result<Vec<_>, _>>().context("cannot list the volumes")?;
        for volume in volumes.into_iter().map(|volume| volume.name) {
            let space = named(&volume);
            // Not asked for by name: those without files, of others, or in use as blocks are none of them.
            let other = [Status::E_STORE, Status::E_AUTH, Status::E_BUSY_TIMEOUT];
            let status =
                space.as_ref().err().and_then(|error| error.downcast_ref::<portcullis::Error>()?.status());
            if !status.is_some_and(|status| other.contains(&status)) {
                all.extend(each.take(space)?.map(|space| (volume, space)));
            }
        }
    }
    let json = all.iter().map(|(volume, space)| space_json(volume, space)).collect();
    if place.json || each.failures == 0 || !all.is_empty() {
        answer(place, &json, || space_table(&all))?;
    }
    Ok(each.code())
}

fn format_name(kind: FileSystemKind) -> &'static str {
    match kind {
        FileSystemKind::Portcullis => "portcullis",
        FileSystemKind::Ext4 => "ext4",
    }
}

fn space_table(all: &[(String, FileSystemInfo)]) -> String {
    if all.is_empty() {
        return "No volume holds files. Make a file system in one: portcullis volume format NAME\n"
            .to_owned();
    }
    let row = |(volume, its): &(String, FileSystemInfo)| {
        let used = its.bytes.saturating_sub(its.free);
        // Of what this user could have, rounded up: a full one must not look as if there were room.
        let of = used.saturating_add(its.available);
        let percent = if of == 0 { 0 } else { (u128::from(used) * 100).div_ceil(u128::from(of)) };
        vec![
            output::name(volume),
            format_name(its.kind).to_owned(),
            show_size(its.bytes),
            show_size(used),
            show_size(its.available),
            format!("{percent}%"),
            its.files.to_string(),
        ]
    };
    let heads = ["VOLUME", "FORMAT", "SIZE", "USED", "AVAILABLE", "USE", "FILES"];
    output::table(&heads, &all.iter().map(row).collect::<Vec<_>>())
}

pub(crate) fn space_json(volume: &str, its: &FileSystemInfo) -> Value {
    json!({
        "volume": volume,
        "format": format_name(its.kind),
        "block_size": its.block_size,
        "bytes": its.bytes,
        "free": its.free,
        "available": its.available,
        "files": its.files,
        "free_files": its.free_files,
        "in_place": its.in_place,
        "own": its.own,
        "quota": its.quota,
    })
}

pub(crate) fn check(options: &CheckOptions, place: &Where) -> Result<ExitCode> {
    let checked = connect(place).and_then(|session| Ok(session.files()?.check(&options.volume, false)?));
    let report =
        match checked.with_context(|| format!("cannot check volume {}", output::name(&options.volume))) {
            Ok(report) => report,
            Err(error) => {
                output::complain(&error);
                return Ok(ExitCode::from(NOT_CHECKED));
            }
        };
    let json = json!({
        "volume": options.volume,
        "files": report.files,
        "extents": report.extents,
        "found": report.found,
        "findings": report.findings,
    });
    answer(place, &json, || check_text(&options.volume, &report))?;
    Ok(if report.found > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn check_text(volume: &str, report: &CheckReport) -> String {
    let volume = output::name(volume);
    let mut text: String =
        report.findings.iter().map(|finding| format!("{volume}: {}\n", output::plain(finding))).collect();
    let more = report.found.saturating_sub(report.findings.len() as u64);
    if more > 0 {
        text += &format!("{volume}: and {more} more\n");
    }
    let verdict = match report.found {
        0 => "nothing is wrong".to_owned(),
        found => format!("{found} found; copy out what can be read, and format the volume"),
    };
    text + &format!("{volume}: {} files and directories looked at: {verdict}\n", report.files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_and_counted() {
        let mut report = CheckReport { files: 3, extents: 2, ..CheckReport::default() };
        assert!(check_text("v", &report).contains("3 files and directories looked at: nothing is wrong"));
        report.found = 3;
        report.findings = vec!["inode 7: bad\u{1b}[2J".into(), "two".into()];
        let text = check_text("v", &report);
        assert!(text.contains("v: and 1 more\n") && text.contains("3 found"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_full_file_system_looks_full() {
        let its = FileSystemInfo {
            kind: FileSystemKind::Portcullis,
            block_size: 4096,
            bytes: 1000 << 20,
            free: 1,
            available: 1,
            files: 5,
            free_files: 0,
            in_place: false,
            own: 0,
            quota: None,
        };
        let text = space_table(&[("v".into(), its.clone())]);
        assert!(text.contains("100%") && text.contains("999.99 MiB"), "{text}");
        assert!(space_table(&[]).contains("volume format"));
        assert_eq!(space_json("v", &its)["available"], 1);
    }
}
