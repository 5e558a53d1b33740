//! Running commands in the repository.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::tree;

/// `cargo`, the one that runs this program, at the root of the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree::root());
    command
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())));
        }
    }
    let program = command.get_program().to_string_lossy();
    words.push(program.strip_suffix("/bin/cargo").map_or(program.as_ref(), |_| "cargo").to_owned());
    words.extend(command.get_args().map(|word| quoted(&word.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    if word.contains([' ', '"', '$', '*']) { format!("'{word}'") } else { word.to_owned() }
}

/// Runs to the end, all output on standard error; whether it succeeded.
pub(crate) fn passes(command: &mut Command) -> Result<bool> {
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("cannot run `{}`", line(command)))?;
    Ok(status.success())
}

/// Runs to the end and returns standard output; an error with standard error in it when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How a watched command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// With exit code 0.
    Well,
    /// With another code or by a signal.
    Badly,
    /// It was killed, with all it had started, when its time was over.
    TimedOut,
}

/// Runs for at most `limit`, both outputs merged. `each` gets every line, and `None` when half a second brought none.
pub(crate) fn watch(
    command: &mut Command,
    limit: Duration,
    each: &mut dyn FnMut(Option<&str>),
) -> Result<Ended> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let child = command.spawn();
    // The command keeps what it was given; without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("cannot run `{}`", line(command)))?;
    let lines = lines_of(reader);
    match drain(&mut child, &lines, Instant::now() + limit, each)? {
        Some(status) if status.success() => Ok(Ended::Well),
        Some(_) => Ok(Ended::Badly),
        None => {
            end_family(&child);
            child.wait()?;
            Ok(Ended::TimedOut)
        }
    }
}

fn lines_of(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// Passes lines on until the child has ended (its status) or the deadline has passed (`None`).
fn drain(
    child: &mut Child,
    lines: &Receiver<String>,
    deadline: Instant,
    each: &mut dyn FnMut(Option<&str>),
) -> Result<Option<ExitStatus>> {
    loop {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => each(Some(&line)),
            Err(RecvTimeoutError::Timeout) => {
                each(None);
                // What it started may live on and hold the pipe: its own end is what counts.
                if let Some(status) = child.try_wait()? {
                    return Ok(Some(status));
                }
            }
            // A pipe that ended is not yet a process that ended.
            Err(RecvTimeoutError::Disconnected) => match child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None => thread::sleep(Duration::from_millis(20)),
            },
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
    }
}

/// Kills a child and everything that descends from it.
fn end_family(child: &Child) {
    let mut parents: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            parents.entry(parent).or_default().push(pid);
        }
    }
    let mut family = Vec::new();
    let mut next = i32::try_from(child.id()).into_iter().collect::<Vec<_>>();
    while let Some(pid) = next.pop() {
        family.push(pid);
        next.extend(parents.remove(&pid).unwrap_or_default());
    }
    for pid in family.into_iter().filter_map(Pid::from_raw) {
        // One that is gone already is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The fourth field of `/proc/PID/stat`; the second, a name in parentheses, may hold anything.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (Ended, Vec<String>) {
        let mut lines = Vec::new();
        let ended = watch(Command::new("sh").args(["-c", script]), limit, &mut |line| {
            lines.extend(line.map(str::to_owned));
        });
        (ended.unwrap(), lines)
    }

    #[test]
    fn both_outputs_arrive_in_order() {
        let (ended, lines) = shell("echo a; echo b >&2; echo c; exit 3", Duration::from_secs(60));
        assert_eq!((ended, lines.join("")), (Ended::Badly, "abc".to_owned()));
    }

    #[test]
    fn a_family_ends_with_its_time() {
        let (ended, lines) = shell("sleep 1000 & echo $!; sleep 1000", Duration::from_millis(100));
        assert_eq!(ended, Ended::TimedOut);
        let grandchild: i32 = lines[0].parse().unwrap();
        // A kill is carried out a moment later, and whoever inherits the dead reaps it later still.
        let dead = || match fs::read_to_string(format!("/proc/{grandchild}/stat")) {
            Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])),
            Err(_) => true,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !dead() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(dead());
    }

    #[test]
    fn a_survivor_that_holds_the_pipe_does_not_hold_us() {
        let start = Instant::now();
        let (ended, _) = shell("sleep 30 & exit 0", Duration::from_secs(60));
        assert_eq!(ended, Ended::Well);
        assert!(start.elapsed() < Duration::from_secs(25));
    }
}
