//! Many processes that write to one file at the same time: nothing is lost, and nothing is torn.

use std::path::Path;

use portcullis::{Files, OpenOptions, Session};

use super::files::{content, format, writable};
use super::{Case, Rig, pattern};
use crate::process::{Actor, Role, say, wait_for_go};
use crate::scale::{counted, often};

pub(super) const CASES: &[Case] = &[
    Case { name: "eight_processes_append_lines_and_none_is_lost_or_torn", run: appends },
    Case { name: "eight_processes_write_adjacent_records_and_none_is_lost", run: records },
];

/// So many processes at a time.
const PROCESSES: u32 = 8;
/// Bytes of a record: several to a block, and none begins where a block does but the first.
const RECORD: usize = 100;

/// How much each writes: in a guest, where all of it takes long, less.
fn each(rig: &Rig) -> u32 {
    if rig.is_software() { 10_000 } else { often(300, 1_000) }
}

/// Line `number` of somebody, of one of many lengths; some are longer than a block.
fn line(who: u32, number: u32) -> String {
    let filling =
        "abcdefgh".repeat((number as usize * 7) % 20 + if number.is_multiple_of(500) { 700 } else { 0 });
    format!("{who} {number} {filling} {}\n", filling.len())
}

/// Runs as many processes as there are, that each do what `what` says, at once.
fn at_once(socket: &Path, what: &str, each: u32) {
    let start = |who| Actor::start(Role::Writer, socket, &format!("{what} {who} {each}"));
    let mut actors: Vec<Actor> = (0..PROCESSES).map(start).collect();
    actors.iter_mut().for_each(|actor| assert_eq!(actor.line(), "ready"));
    actors.iter_mut().for_each(Actor::go);
    actors.iter_mut().for_each(|actor| assert_eq!(actor.line(), "done"));
}

/// In a process of its own: writes as `argument` says.
pub(crate) fn play(socket: &Path, argument: &str) {
    let words: Vec<&str> = argument.split(' ').collect();
    let &[what, who, each] = words.as_slice() else { panic!("not three words: {argument}") };
    let (who, each) = (who.parse().unwrap(), each.parse().unwrap());
    let files = Session::connect(socket).unwrap().files().unwrap();
    say("ready");
    wait_for_go();
    match what {
        "lines" => append_lines(&files, who, each),
        _ => write_records(&files, who, each),
    }
    say("done");
}

fn append_lines(files: &Files, who: u32, each: u32) {
    let file = OpenOptions::new().read(true).append(true).open(files, "v:/log").unwrap();
    for number in 0..each {
        let line = line(who, number);
        let at = file.append(line.as_bytes()).unwrap();
        if number.is_multiple_of(50) {
            let mut back = vec![0; line.len()];
            file.read_exact_at(&mut back, at).unwrap();
            assert!(back == line.as_bytes(), "line {number} of {who} is at {at} at once");
        }
    }
}

fn write_records(files: &Files, who: u32, each: u32) {
    let file = writable().open(files, "v:/records").unwrap();
    for round in 0..each {
        let record = round * PROCESSES + who;
        file.write_all_at(&pattern(record, RECORD), u64::from(record) * RECORD as u64).unwrap();
    }
}

fn appends(rig: &Rig) {
    let lines = each(rig);
    let adapter = rig.isolated();
    let files = format(&Session::connect(adapter.socket()).unwrap());
    drop(files.create("v:/log").unwrap());
    at_once(adapter.socket(), "lines", lines);
    let text = String::from_utf8(content(&files.open("v:/log").unwrap())).expect("nothing is torn");
    let mut next = [0; PROCESSES as usize];
    for found in text.split_inclusive('\n') {
        let who = found.split(' ').next().unwrap().parse::<usize>().expect("nothing is torn");
        assert_eq!(found, line(who as u32, next[who]), "the next line of {who}");
        next[who] += 1;
    }
    assert_eq!(next, [lines; PROCESSES as usize], "nothing is lost");
    counted(lines * PROCESSES, "lines appended by eight processes");
}

fn records(rig: &Rig) {
    let each = each(rig);
    let adapter = rig.isolated();
    let files = format(&Session::connect(adapter.socket()).unwrap());
    drop(files.create("v:/records").unwrap());
    at_once(adapter.socket(), "records", each);
    let all = content(&files.open("v:/records").unwrap());
    assert_eq!(all.len(), RECORD * (each * PROCESSES) as usize);
    for (number, record) in all.chunks(RECORD).enumerate() {
        assert!(record == pattern(number as u32, RECORD), "record {number}");
    }
    counted(each * PROCESSES, "records written by eight processes");
}
