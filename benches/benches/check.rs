//! The decision of the protection tables (S4) beside a bare direct index, by the size of the table: what
//! [`benches::check`] measures, printed.
//!
//! With `--count SUBJECT ENTRIES REQUESTS` it only does that many requests of one subject (`nothing`, `bare`, `table`,
//! `whole`), to be run under callgrind. With numbers it measures tables of those sizes, else of 10 to 10^6 entries, and of
//! 10^7 if there is memory for it.
//!
//! What it does not show: a grant of more than one range, of which what lies beyond the first is found in the LBA table; a
//! table larger than what a poller keeps pointers to; and a control plane at work. The tables are in one process's memory, in
//! large pages as an adapter asks for them, the bare index alike, and where those lie makes a difference between two runs of a
//! million entries, on either side. The release follows the check at once, on warm lines, where the engine waits for the
//! device.

use std::env;

use benches::check::{self, Figures, Rig, Scene, Subject};
use benches::cpu;

const SIZES: [u32; 7] = [10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// In each of nine runs.
const REQUESTS: u32 = 1 << 19;

fn print(figures: &Figures) {
    println!("{} entries", figures.entries);
    for figure in &figures.scenes {
        let mut line = format!("  {:<10}", figure.scene.name());
        for subject in Subject::ALL {
            let check::Spread { median, low, high } = figure.of(subject);
            line += &format!("  {} {median:.1} ns ({low:.1} to {high:.1})", subject.name());
        }
        let ratio = |check::Spread { median, low, high }| format!("{median:.2} ({low:.2} to {high:.2})");
        println!("{line}");
        println!(
            "{:<14}table to bare {}, whole to bare {}",
            "",
            ratio(figure.table_to_bare),
            ratio(figure.whole_to_bare)
        );
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, subject, entries, requests] = &arguments[..]
        && flag == "--count"
    {
        let subject = Subject::ALL.into_iter().find(|known| known.name() == subject).expect("a subject");
        let [entries, requests] =
            [entries, requests].map(|number| number.replace('_', "").parse().expect("a number"));
        Rig::new(entries).run(subject, Scene::Single, requests);
        return;
    }
    let sizes: Vec<u32> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    // The first processor that it may use; beside other work that is as good as any.
    let _pinned = cpu::pair().ok().flatten().and_then(|(first, _)| cpu::Pinned::to(first).ok());
    cpu::note_load("before");
    for entries in if sizes.is_empty() { SIZES.to_vec() } else { sizes } {
        let free = check::free_bytes().unwrap_or(0);
        let needed = check::needed_bytes(entries);
        if needed > free / 2 {
            println!("{entries} entries: left out, {} MiB needed, {} free", needed >> 20, free >> 20);
            continue;
        }
        print(&check::measure(entries, REQUESTS));
    }
    cpu::note_load("after");
}
