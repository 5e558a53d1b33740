//! Tables for people.

use std::time::Duration;

/// Seconds, short: `0.4 s`, `73 s`.
pub(crate) fn seconds(time: Duration) -> String {
    let time = time.as_secs_f64();
    if time < 10.0 { format!("{time:.1} s") } else { format!("{time:.0} s") }
}

/// Rows in columns, the last one as long as it likes. The first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let rows = [["a", "bcd", "e"], ["fgh", "i", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "  a    bcd  e\n  fgh  i\n");
    }

    #[test]
    fn long_times_lose_their_decimals() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(73)), "73 s");
    }
}
