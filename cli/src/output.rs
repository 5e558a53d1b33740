//! What goes to standard output: tables and JSON. Text from outside is escaped.

use std::io::{self, Write};

use anyhow::Context;
use serde_json::Value;

/// Prints a text, and is content if nobody reads it to the end.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
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
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heads.get(column).map(|head| head.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = line(&mut heads.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
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
