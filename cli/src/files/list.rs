//! `portcullis ls` and `portcullis stat`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use portcullis::wire::files::{FileAttributes, FileKind};
use portcullis::wire::name::escape_bytes;
use portcullis::{Files, Place};
use serde_json::Value;

use super::show;
use super::{Each, ListOptions, StatOptions};
use crate::arguments::Where;
use crate::connect::connect;
use crate::output;

/// Exit code if something that was named cannot be listed, as of ls(1).
const NOT_LISTED: u8 = 2;
/// Lines that are printed at once where nothing is sorted.
const LINES: usize = 1000;

pub(crate) fn list(options: &ListOptions, place: &Where) -> Result<ExitCode> {
    let files = connect(place)?.files()?;
    let json = place.json.then(Vec::new);
    let mut listing = Listing { files: &files, options, json, each: Each::default(), first: true };
    let (mut alone, mut directories) = (Vec::new(), Vec::new());
    for named in &options.places {
        // As of ls(1): a link that is named is followed, unless it is itself that is shown.
        let follow = !options.long && !options.directory;
        let its = if follow { files.metadata(named) } else { files.symlink_metadata(named) };
        let its = its.with_context(|| format!("cannot list {named}"));
        if let Some(its) = listing.each.take(its)? {
            if its.kind == FileKind::Directory && !options.directory {
                directories.push(named);
            } else {
                alone.push(Row { place: named.clone(), kind: its.kind, attributes: Some(its) });
            }
        }
    }
    let named = listing.each.failures;
    listing.show(&mut alone, true)?;
    for directory in directories {
        listing.directory(directory, options.recursive || options.places.len() > 1)?;
    }
    let Listing { json, each, .. } = listing;
    if let Some(all) = json {
        output::print_json(&Value::Array(all))?;
    }
    Ok(if named > 0 { ExitCode::from(NOT_LISTED) } else { each.code() })
}

/// One line of a listing.
struct Row {
    place: Place,
    kind: FileKind,
    attributes: Option<FileAttributes>,
}

struct Listing<'a> {
    files: &'a Files,
    options: &'a ListOptions,
    /// What goes to a script, all at once.
    json: Option<Vec<Value>>,
    each: Each,
    /// Nothing has been printed yet.
    first: bool,
}

impl Listing<'_> {
    /// A directory, and with -R what is below it, each under its own head.
    fn directory(&mut self, directory: &Place, headed: bool) -> Result<()> {
        let listing = || format!("cannot list {directory}");
        let attributes = self.options.long || self.json.is_some();
        let entries = match attributes {
            true => self.files.read_dir_with_attributes(directory),
            false => self.files.read_dir(directory),
        };
        let Some(entries) = self.each.take(entries.with_context(listing))? else { return Ok(()) };
        if headed && self.json.is_none() && !self.options.zero {
            let blank = if self.first { "" } else { "\n" };
            output::print(&format!("{blank}{directory}:\n"))?;
            self.first = false;
        }
        let (mut rows, mut below) = (Vec::new(), Vec::new());
        for entry in entries {
            let Some(entry) = self.each.take(entry.with_context(listing))? else { break };
            let joined = directory.join(entry.name.as_bytes()).with_context(listing);
            let Some(place) = self.each.take(joined)? else { continue };
            if self.options.recursive && entry.kind == FileKind::Directory {
                below.push(place.clone());
            }
            rows.push(Row { place, kind: entry.kind, attributes: entry.attributes });
            if self.options.unsorted && rows.len() >= LINES {
                self.show(&mut rows, false)?;
            }
        }
        self.show(&mut rows, false)?;
        if !self.options.unsorted {
            below.sort();
        }
        below.iter().try_for_each(|place| self.directory(place, true))
    }

    /// Prints rows, and takes them. `named`: they were named themselves, so that the whole place is shown.
    fn show(&mut self, rows: &mut Vec<Row>, named: bool) -> Result<()> {
        let mut rows = std::mem::take(rows);
        if rows.is_empty() {
            return Ok(());
        }
        self.first = false;
        if !self.options.unsorted {
            rows.sort_by(|a, b| a.place.cmp(&b.place));
        }
        if let Some(all) = &mut self.json {
            let attributes = |row: &Row| row.attributes.as_ref().map(|its| show::as_json(&row.place, its));
            all.extend(rows.iter().filter_map(attributes));
            return Ok(());
        }
        if self.options.zero {
            let whole = self.options.recursive || named;
            let name = |row: &Row| if whole { row.place.path().to_vec() } else { row.place.name().to_vec() };
            let all: Vec<u8> = rows.iter().flat_map(|row| [name(row), vec![0]].concat()).collect();
            return output::print_bytes(&all);
        }
        let lines: Vec<String> = rows.iter().map(|row| self.name(row, named)).collect();
        if self.options.long {
            return output::print(&self.table(&rows, &lines));
        }
        output::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    }

    fn name(&self, row: &Row, named: bool) -> String {
        let mut name = if named { row.place.to_string() } else { escape_bytes(row.place.name()) };
        if self.options.long
            && row.kind == FileKind::Symlink
            && let Ok(target) = self.files.read_link(&row.place)
        {
            name += &format!(" -> {}", escape_bytes(&target));
        }
        name
    }

    fn table(&self, rows: &[Row], names: &[String]) -> String {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .zip(names)
            .filter_map(|(row, name)| {
                let its = row.attributes.as_ref()?;
                Some(vec![
                    show::mode(its.kind, its.mode),
                    its.links.to_string(),
                    show::owner(its.owner),
                    show::group(its.group),
                    its.length.to_string(),
                    show::time(its.modified, false),
                    name.clone(),
                ])
            })
            .collect();
        output::columns(&cells)
    }
}

pub(crate) fn stat(options: &StatOptions, place: &Where) -> Result<ExitCode> {
    let files = connect(place)?.files()?;
    let mut each = Each::default();
    let mut all = Vec::new();
    for named in &options.places {
        let its = if options.follow { files.metadata(named) } else { files.symlink_metadata(named) };
        let its = each.take(its.with_context(|| format!("cannot look at {named}")))?;
        all.extend(its.map(|its| (named, its)));
    }
    if place.json {
        output::print_json(&all.iter().map(|(named, its)| show::as_json(named, its)).collect())?;
    } else {
        let texts: Vec<String> = all.iter().map(|(named, its)| show::as_text(named, its)).collect();
        output::print(&texts.join("\n"))?;
    }
    Ok(each.code())
}
