//! Files and directories as a person and as a script read them.

use portcullis::Place;
use portcullis::wire::files::{FileAttributes, FileKind, Time};
use portcullis::wire::name::escape_bytes;
use serde_json::{Map, Value, json};

use crate::output;
use crate::subject::{Name, group_name, user_name};

/// `-rw-r--r--`, as ls(1) writes it.
pub(super) fn mode(kind: FileKind, mode: u16) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Other => '?',
    });
    // The bits of a party, the bit that changes its last letter, and that letter with and without the right to execute.
    for (shift, special, with, without) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => with,
            (false, true) => without,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

pub(super) fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "link",
        FileKind::Other => "other",
    }
}

/// `2026-11-22T18:53:40Z`, with the fraction if it is asked for.
pub(super) fn time(time: Time, fraction: bool) -> String {
    let (day, second) = (time.seconds.div_euclid(86_400), time.seconds.rem_euclid(86_400));
    let (year, month, day) = date(day);
    let fraction = if fraction { format!(".{:09}", time.nanoseconds) } else { String::new() };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of the Gregorian calendar, from days since 1970 began. Years are counted from March on, so that the day
/// that some of them have more is their last.
fn date(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097; // days of 400 years
    let days = days.saturating_add(719_468); // since 0000-03-01
    let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

pub(super) fn owner(id: u32) -> String {
    user_name(id).map_or_else(|| id.to_string(), |name| output::name(&name))
}

pub(super) fn group(id: u32) -> String {
    group_name(id).map_or_else(|| id.to_string(), |name| output::name(&name))
}

/// A name for a script: as text, and in hexadecimal digits where it is none.
fn name_json(fields: &mut Map<String, Value>, key: &str, name: &[u8]) {
    match str::from_utf8(name) {
        Ok(text) => drop(fields.insert(key.to_owned(), text.into())),
        Err(_) => {
            let digits: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
            fields.insert(key.to_owned(), escape_bytes(name).into());
            fields.insert(format!("{key}_hex"), digits.into());
        }
    }
}

/// What is known of something, as a script reads it.
pub(super) fn as_json(place: &Place, its: &FileAttributes) -> Value {
    let mut fields = Map::new();
    fields.insert("volume".to_owned(), place.volume().into());
    name_json(&mut fields, "path", place.path());
    name_json(&mut fields, "name", place.name());
    let rest = json!({
        "kind": kind(its.kind),
        "number": its.number,
        "mode": format!("{:04o}", its.mode),
        "uid": its.owner,
        "gid": its.group,
        "links": its.links,
        "length": its.length,
        "allocated": its.allocated,
        "accessed": time(its.accessed, true),
        "modified": time(its.modified, true),
        "changed": time(its.changed, true),
    });
    if let Value::Object(rest) = rest {
        fields.extend(rest);
    }
    Value::Object(fields)
}

/// The same as a person reads it.
pub(super) fn as_text(place: &Place, its: &FileAttributes) -> String {
    let mut text = format!(
        "path      {place}\nkind      {}, number {}\nlength    {} bytes, {} allocated\nmode      {:04o} {}\n\
         owner     {} ({}), group {} ({})\nlinks     {}\n",
        kind(its.kind),
        its.number,
        its.length,
        its.allocated,
        its.mode,
        mode(its.kind, its.mode),
        owner(its.owner),
        its.owner,
        group(its.group),
        its.group,
        its.links,
    );
    for (subject, bits) in &its.access {
        let letter = |bit, letter| if bits & bit != 0 { letter } else { '-' };
        let rights: String = [letter(4, 'r'), letter(2, 'w'), letter(1, 'x')].iter().collect();
        text += &format!("access    {} {rights}\n", output::name(&Name(*subject).to_string()));
    }
    text + &format!(
        "accessed  {}\nmodified  {}\nchanged   {}\n",
        time(its.accessed, true),
        time(its.modified, true),
        time(its.changed, true)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_those_of_ls() {
        for (kind, bits, is) in [
            (FileKind::Regular, 0o644, "-rw-r--r--"),
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::Regular, 0o4755, "-rwsr-xr-x"),
            (FileKind::Regular, 0o6644, "-rwSr-Sr--"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
            (FileKind::Other, 0o1000, "?--------T"),
        ] {
            assert_eq!(mode(kind, bits), is);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds, nanoseconds| Time { seconds, nanoseconds };
        for (seconds, is) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_373_620, "2026-11-22T18:53:40Z"),
            (-62_135_596_800, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(time(at(seconds, 5), false), is);
        }
        assert_eq!(time(at(0, 5), true), "1970-01-01T00:00:00.000000005Z");
        // Whatever a disk says, it is a text.
        assert!(!time(at(i64::MAX, u32::MAX), true).is_empty() && !time(at(i64::MIN, 0), true).is_empty());
        // Each day is the one after the day before.
        let mut last = date(-800_000);
        for day in -799_999..800_000 {
            let next = date(day);
            let goes_on = next == (last.0, last.1, last.2 + 1)
                || next == (last.0, last.1 + 1, 1)
                || next == (last.0 + 1, 1, 1);
            assert!(goes_on && next.2 <= 31 && next.1 <= 12, "{last:?} {next:?}");
            last = next;
        }
    }

    #[test]
    fn names_that_are_no_text_are_told_to_scripts_too() {
        let mut fields = Map::new();
        name_json(&mut fields, "name", b"a\n");
        assert_eq!(Value::Object(fields), json!({ "name": "a\n" }));
        let mut fields = Map::new();
        name_json(&mut fields, "name", b"a\xff");
        assert_eq!(Value::Object(fields), json!({ "name": r"a\xff", "name_hex": "61ff" }));
    }
}
