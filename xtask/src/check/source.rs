//! Rust source as far as the rules need it: which characters are code, which lines are tests, where functions end.

use std::ops::Range;

/// A source file.
pub(super) struct Source {
    /// The text with comments, strings and character literals blanked; the same lines.
    lines: Vec<String>,
    /// Lines (from 0) of items under `#[cfg(test)]`.
    tests: Vec<Range<usize>>,
}

/// A function outside of tests.
pub(super) struct Function {
    pub(super) name: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) lines: usize,
}

impl Source {
    pub(super) fn new(text: &str) -> Self {
        let code = blank(text);
        let tests = test_items(&code);
        Self { lines: code.lines().map(str::to_owned).collect(), tests }
    }

    /// Lines of code outside of tests, numbered from 1, comments and literals blanked.
    pub(super) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines
            .iter()
            .enumerate()
            .filter(|(line, _)| !self.tests.iter().any(|tests| tests.contains(line)))
            .map(|(line, text)| (line + 1, text.as_str()))
    }

    /// All lines, numbered from 1, comments and literals blanked.
    pub(super) fn all_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(line, text)| (line + 1, text.as_str()))
    }

    /// The functions outside of tests that have a body.
    pub(super) fn functions(&self) -> Vec<Function> {
        let code = self.lines.join("\n");
        let mut functions = Vec::new();
        for start in words(&code, "fn") {
            let rest = &code[start + 2..];
            let name: String =
                rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let line = code[..start].matches('\n').count();
            if name.is_empty() || self.tests.iter().any(|tests| tests.contains(&line)) {
                continue;
            }
            if let Some(end) = item_end(&code, start).filter(|end| code[..*end].ends_with('}')) {
                functions.push(Function {
                    name,
                    line: line + 1,
                    lines: code[start..end].matches('\n').count() + 1,
                });
            }
        }
        functions
    }
}

/// Whether `word` stands alone in `line`.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    words(line, word).next().is_some()
}

fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// The end of the item that begins at or after `start`: behind its body, or behind its semicolon.
fn item_end(code: &str, start: usize) -> Option<usize> {
    let mut round = 0_usize;
    let mut curly = 0_usize;
    for (at, c) in code[start..].char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round = round.saturating_sub(1),
            '{' => curly += 1,
            '}' => {
                curly = curly.saturating_sub(1);
                if curly == 0 && round == 0 {
                    return Some(start + at + 1);
                }
            }
            ';' if curly == 0 && round == 0 => return Some(start + at + 1),
            _ => {}
        }
    }
    None
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    let line = |at: usize| code[..at].matches('\n').count();
    let attribute = "#[cfg(test)]";
    code.match_indices(attribute)
        .filter_map(|(at, _)| Some(line(at)..line(item_end(code, at + attribute.len())?) + 1))
        .collect()
}

/// Blanks comments, strings and character literals, keeping every newline.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(c);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let peek = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\0');
    let identifier = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match (peek(0), peek(1)) {
        ('/', '/') => chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |length| at + length),
        ('/', '*') => block_comment_end(chars, at),
        ('"', _) => quoted_end(chars, at, '"'),
        ('r', '"' | '#') if !identifier => raw_end(chars, at, 1),
        ('b' | 'c', 'r') if !identifier && matches!(peek(2), '"' | '#') => raw_end(chars, at, 2),
        ('\'', '\\') => quoted_end(chars, at, '\''),
        ('\'', _) if peek(2) == '\'' => at + 3,
        _ => at,
    }
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 1;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    chars.len()
}

fn quoted_end(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 1,
            c if c == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    chars.len()
}

/// A raw string whose `#`s begin `prefix` characters after `start`; a raw identifier is left alone.
fn raw_end(chars: &[char], start: usize, prefix: usize) -> usize {
    let hashes = chars[start + prefix..].iter().take_while(|&&c| c == '#').count();
    let open = start + prefix + hashes;
    if chars.get(open) != Some(&'"') {
        return start;
    }
    let closes = |at: usize| {
        chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    (open + 1..chars.len()).find(|&at| closes(at)).map_or(chars.len(), |at| at + 1 + hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_kept() {
        let text = "a /* x /* y */\n z */ b // unsafe\nc(\"un\\\"safe\", '\\'', 'x', r#\"q\"q\"#, b\"k\") 'life r#type";
        assert_eq!(
            blank(text).split_whitespace().collect::<Vec<_>>().join(" "),
            "a b c( , , , , b ) 'life r#type"
        );
        assert_eq!(blank(text).matches('\n').count(), text.matches('\n').count());
    }

    #[test]
    fn tests_are_not_code() {
        let source = Source::new("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n");
        assert_eq!(source.code_lines().map(|(line, _)| line).collect::<Vec<_>>(), [1, 6]);
        assert_eq!(source.functions().iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn functions_have_lengths() {
        let source = Source::new("trait T { fn none(&self) -> [u8; 4]; }\nfn one(x: [u8; 2]) {\n  {}\n}\n");
        let functions = source.functions();
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].name.as_str(), functions[0].line, functions[0].lines), ("one", 2, 3));
    }

    #[test]
    fn words_stand_alone() {
        assert!(has_word("an unsafe { }", "unsafe"));
        assert!(!has_word("allow(unsafe_code)", "unsafe"));
    }
}
