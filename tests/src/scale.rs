//! How much of a test is run and from which seed on, as the environment says, and what it came to.

use std::fmt::Display;
use std::io::Write;

/// Whether the large counts are wanted.
pub fn soak() -> bool {
    std::env::var_os("PORTCULLIS_SOAK").is_some_and(|value| value == "1")
}

/// A small number for every change; a large one when there is time.
pub fn often<T>(small: T, large: T) -> T {
    if soak() { large } else { small }
}

/// A number from the environment. What is no number is nobody's wish, and no run begins from it.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The first seed, `usual` unless another one is asked for; told, so that a run can be had again.
pub fn seed(usual: u64) -> u64 {
    let seed = number("PORTCULLIS_SEED").unwrap_or(usual);
    tell(&format!("PORTCULLIS_SEED={seed}"));
    seed
}

/// Tells `cargo xtask soak` what was reached.
pub fn counted(number: impl Display, what: &str) {
    tell(&format!("counted: {number} {what}"));
}

/// Not by `println`: a test that passes under libtest would keep it to itself.
pub fn tell(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").expect("somebody listens");
}
