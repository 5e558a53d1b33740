//! What goes to standard output: tables and JSON. Text from outside is escaped.

use std::io::{self, Write};

use anyhow::Context;
use serde_json::Value;

/// Prints a text, and is content if nobody reads it to the end.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// The same of what may be no text.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// Prints one JSON document.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

/// An error and what caused it, on one line. Causes that an error's own text names already are not said twice.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = text + colon + &cause;
        }
    }
    text
}

/// Says on standard error what went wrong, on one line.
pub(crate) fn complain(error: &anyhow::Error) {
    eprintln!("portcullis: {}", plain(&describe(error)));
}

/// A text for a terminal: it may have lines, and nothing else that moves the cursor or changes what one sees.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\n' | '\\' | '\'' | '"') || c.escape_debug().count() == 1 {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    shown
}

/// A name for a table: one line, everything unusual escaped.
pub(crate) fn name(text: &str) -> String {
    portcullis::wire::name::escape(text)
}

/// Columns, as wide as their widest cell. The last one is not padded.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads = heads.iter().map(ToString::to_string).collect();
    let all: Vec<Vec<String>> = std::iter::once(heads).chain(rows.iter().cloned()).collect();
    columns(&all)
}

/// The same without heads.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let start = text.len();
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.truncate(text[start..].trim_end().len() + start);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong  22\n");
        assert_eq!(table(&["X"], &[]), "X\n");
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = || io::Error::from(io::ErrorKind::NotFound);
        let error = anyhow::Error::from(cause()).context("opening x");
        assert_eq!(describe(&error), format!("opening x: {}", cause()));
        let error = anyhow::Error::from(cause()).context(format!("opening x: {}; make it first", cause()));
        assert_eq!(describe(&error), format!("opening x: {}; make it first", cause()));
    }

    #[test]
    fn text_from_outside_cannot_drive_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\"c\""), "a\\u{1b}[2Jb\\r\n\"c\"");
        assert_eq!(plain("x\u{202e}y"), "x\\u{202e}y");
        assert!(!name("a\nb\u{1b}").contains(['\n', '\u{1b}']));
    }
}
