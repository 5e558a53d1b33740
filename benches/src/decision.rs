//! What the tables take to decide, beside a bare direct index; see [`crate::check`].

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::check::{self, Rig, Scene, Subject};
use crate::figure::Figure;
use crate::rounds::{Cores, Plan, Turn, interleave};

/// Requests between two looks at the clock.
const PIECE: u32 = 20_000;

/// Independent requests at random over tables of `entries` entries.
///
/// # Errors
/// If there is too little memory.
pub fn decision(name: &str, entries: u32, plan: Plan) -> Result<Figure> {
    let needed = check::needed_bytes(entries);
    ensure!(check::free_bytes()? > 2 * needed, "tables of {entries} entries take {} MiB", needed >> 20);
    let rig = &RefCell::new(Rig::new(entries));
    let side = |subject| -> Turn<'_> { Box::new(move |time| Ok(run(&mut rig.borrow_mut(), subject, time))) };
    let mut figure = Figure::new(name, "ns/request");
    figure.note(format!("{entries} entries; `loop` is what making up the requests takes, which is in all"));
    interleave(
        &mut figure,
        plan,
        Cores::two()?,
        &mut [
            ("table part", side(Subject::Table)),
            ("bare index", side(Subject::Bare)),
            ("whole decision", side(Subject::Whole)),
            ("loop", side(Subject::Nothing)),
        ],
    )?;
    Ok(figure)
}

fn run(rig: &mut Rig, subject: Subject, time: Duration) -> f64 {
    let began = Instant::now();
    let mut requests = 0_u32;
    while began.elapsed() < time || requests == 0 {
        rig.run(subject, Scene::Single, PIECE);
        requests += PIECE;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let nanoseconds = began.elapsed().as_nanos() as f64;
    nanoseconds / f64::from(requests)
}
