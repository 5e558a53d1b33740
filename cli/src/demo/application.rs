//! The applications of the demonstration: they work like any other, and cheat like none should.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis::raw::RawQueue;
use portcullis::wire::layout::{CompletionEntry, SubmissionEntry, opcode};
use portcullis::{Access, Memory, MemoryAccess, Queue, Request, Session, Status, Volume};

use super::{Order, PATIENCE, Seen};
use crate::arguments::Where;

/// Entries of each queue.
const ENTRIES: u32 = 32;
/// How long the entries are raced.
const RACE: Duration = Duration::from_millis(300);

struct Application {
    session: Session,
    volume: Volume,
    queue: Queue,
    raw: RawQueue,
    memory: Memory,
    /// The file that was copied in.
    file: Vec<u8>,
    kept: Option<u64>,
    /// What was opened for the key that is kept, so that its entry stays in use.
    opened: Vec<Volume>,
}

/// Connects, opens its volume, says its keys and takes orders until its input ends.
pub(crate) fn run(place: &Where, volume: &str) -> Result<()> {
    let session = Session::connect(place.socket.as_ref().context("--socket")?)?;
    let mut app = Application {
        volume: session.open(volume, Access::READ_WRITE)?,
        queue: session.queue(ENTRIES)?,
        raw: RawQueue::create(&session, ENTRIES)?,
        memory: session.register(64 << 10, MemoryAccess::Both)?,
        file: Vec::new(),
        kept: None,
        opened: Vec::new(),
        session,
    };
    let hello = Seen {
        key: app.volume.key(),
        region: app.memory.key(),
        detail: app.session.number().to_string(),
        ..Seen::default()
    };
    say(&hello)?;
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let seen =
            app.obey(order).unwrap_or_else(|e| Seen { failure: Some(format!("{e:#}")), ..Seen::default() });
        say(&seen)?;
    }
    Ok(())
}

fn say(seen: &Seen) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(seen)?)?;
    Ok(out.flush()?)
}

impl Application {
    fn obey(&mut self, order: Order) -> Result<Seen> {
        match order {
            Order::CopyFile { path } => self.copy_file(&path),
            Order::VerifyFile => self.verify_file(),
            Order::UseKey { key } => self.attempt(SubmissionEntry { key, ..self.read() }),
            Order::ReadBeyond => self.attempt(SubmissionEntry { offset: self.volume.size(), ..self.read() }),
            Order::WriteThroughRead => {
                let reader = self.session.open(&self.name()?, Access::READ)?;
                self.attempt(SubmissionEntry { opcode: opcode::WRITE, key: reader.key(), ..self.read() })
            }
            Order::Open { volume } => {
                let volume = self.session.open(&volume, Access::READ_WRITE)?;
                let key = *self.kept.get_or_insert(volume.key());
                self.opened.push(volume);
                Ok(Seen { key, ..Seen::default() })
            }
            Order::UseKept => {
                let key = self.kept.context("no key was kept")?;
                self.attempt(SubmissionEntry { key, ..self.read() })
            }
            Order::UseRegion { region } => self.attempt(SubmissionEntry { region, ..self.read() }),
            Order::Race { foreign_key } => self.race(foreign_key),
            Order::Overrun => self.overrun(),
            Order::Busy => loop {
                let length = 64 << 10;
                let buffer = self.session.buffer(length)?;
                self.queue.execute(Request::read(&self.volume, 0, buffer))?.result?;
            },
        }
    }

    /// The volume is named as it was opened.
    fn name(&self) -> Result<String> {
        let mut names = std::env::args().skip_while(|a| a != "--volume").skip(1);
        names.next().context("--volume")
    }

    /// An honest read of one block, to be made dishonest.
    fn read(&self) -> SubmissionEntry {
        SubmissionEntry {
            opcode: opcode::READ,
            user_data: 1,
            key: self.volume.key(),
            offset: 0,
            length: self.volume.block_size(),
            region: self.memory.key(),
            ..SubmissionEntry::default()
        }
    }

    /// Submits an entry as it is and says how it ended.
    fn attempt(&mut self, entry: SubmissionEntry) -> Result<Seen> {
        self.raw.push(&entry)?;
        self.raw.ring()?;
        let done = wait(&mut self.raw)?;
        Ok(Seen { status: done.status, ..Seen::default() })
    }

    fn copy_file(&mut self, path: &Path) -> Result<Seen> {
        let mut file = std::fs::read(path).with_context(|| path.display().to_string())?;
        file.truncate(usize::try_from(self.volume.size())?);
        let block = self.volume.block_size() as usize;
        file.resize(file.len().next_multiple_of(block).min(usize::try_from(self.volume.size())?), 0);
        self.queue.write_at(&self.volume, 0, &file)?;
        self.queue.flush(&self.volume)?;
        self.file = file;
        self.verify_file()
    }

    fn verify_file(&mut self) -> Result<Seen> {
        let mut back = vec![0; self.file.len()];
        self.queue.read_at(&self.volume, 0, &mut back)?;
        ensure!(back == self.file, "what was read is not what was written");
        Ok(Seen {
            detail: format!("{:.1} MiB identical", back.len() as f64 / f64::from(1 << 20)),
            ..Seen::default()
        })
    }

    /// A second thread rewrites the entries all the time, between one of its own blocks and somebody else's, while this one
    /// rings. Each copy that the adapter makes is of one or the other or of a mixture; whatever it is, it is checked as it
    /// was copied, so that nothing but OK on its own blocks or a refusal can come of it.
    fn race(&mut self, foreign_key: u64) -> Result<Seen> {
        let own = SubmissionEntry { user_data: 0xaaaa, ..self.read() };
        let foreign = SubmissionEntry { user_data: 0x5555, key: foreign_key, offset: 1 << 40, ..own };
        let stop = AtomicBool::new(false);
        let raw = &mut RawQueue::create(&self.session, ENTRIES)?;
        let scribbler = raw.scribbler();
        (0..ENTRIES as usize).for_each(|slot| scribbler.overwrite(slot, &own));
        let (mut answers, mut mixed) = (0u64, 0u64);
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for slot in 0..ENTRIES as usize {
                        scribbler.overwrite(slot, &foreign);
                        scribbler.overwrite(slot, &own);
                    }
                }
            });
            let raced = (|| -> Result<()> {
                let start = Instant::now();
                let mut tail = 0u32;
                while start.elapsed() < RACE || mixed == 0 && start.elapsed() < PATIENCE / 2 {
                    // Announces slots without writing them: the other thread has them under its pen.
                    tail = tail.wrapping_add(ENTRIES / 2);
                    raw.store_tail(tail)?;
                    for _ in 0..ENTRIES / 2 {
                        let done = wait(raw)?;
                        answers += 1;
                        let whole_own = done.user_data == own.user_data;
                        match Status(done.status) {
                            Status::OK | Status::E_BOUNDS => mixed += u64::from(!whole_own),
                            Status::E_PD_MISMATCH => mixed += u64::from(whole_own),
                            other => anyhow::bail!("an entry that was raced ended with {other}"),
                        }
                    }
                }
                Ok(())
            })();
            stop.store(true, Ordering::Relaxed);
            raced
        })?;
        ensure!(mixed > 0, "of {answers} entries none was caught half rewritten: nothing was raced");
        Ok(Seen { detail: format!("{answers} answered, {mixed} caught half rewritten"), ..Seen::default() })
    }

    /// A doorbell far ahead: the queue goes to the error state and takes nothing more.
    fn overrun(&mut self) -> Result<Seen> {
        let raw = &mut RawQueue::create(&self.session, ENTRIES)?;
        let read = self.read();
        raw.push(&read)?;
        raw.store_tail(ENTRIES + 7)?;
        let deadline = Instant::now() + PATIENCE;
        while !raw.is_down() {
            ensure!(Instant::now() < deadline, "the queue is still up");
            std::thread::yield_now();
        }
        while let Some(done) = raw.poll() {
            ensure!(
                Status(done.status) == Status::E_FLUSHED,
                "a stale entry ended with {}",
                Status(done.status)
            );
        }
        Ok(Seen { status: Status::E_DOORBELL_OVERRUN.0, ..Seen::default() })
    }
}

fn wait(raw: &mut RawQueue) -> Result<CompletionEntry> {
    raw.wait(PATIENCE)?.with_context(|| format!("no completion within {PATIENCE:?}"))
}
