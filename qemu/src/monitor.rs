//! QEMU's monitor (QMP): what happens to the hardware of a running machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the monitor of a machine that was started with `-qmp unix:PATH,server=on,wait=off`.
pub struct Monitor {
    reader: BufReader<UnixStream>,
    /// What came of a line so far.
    line: Vec<u8>,
    /// Heard and not yet asked for.
    events: Vec<Value>,
}

impl Monitor {
    /// Connects, and agrees on what both can do.
    ///
    /// # Errors
    /// If nobody listens at `path`, or what listens is not QMP.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("no monitor at {}", path.display()))?;
        let mut monitor = Self { reader: BufReader::new(stream), line: Vec::new(), events: Vec::new() };
        let greeting = monitor.hear(PATIENCE)?;
        if greeting.get("QMP").is_none() {
            bail!("what listens at {} is no monitor: {greeting}", path.display());
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has a command executed, and returns what it says.
    ///
    /// # Errors
    /// QEMU's own word, if it refuses.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut message = json!({ "execute": command, "arguments": arguments }).to_string();
        message.push('\n');
        self.reader.get_mut().write_all(message.as_bytes())?;
        loop {
            let mut answer = self.hear(PATIENCE)?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            self.events.push(answer);
        }
    }

    /// Waits for an event called `name` with `data` in its data; earlier ones that nobody waited for count, each once.
    ///
    /// # Errors
    /// If it does not come within `patience`.
    pub fn wait_for(&mut self, name: &str, (key, value): (&str, &str), patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        let is_it = |event: &Value| event["event"] == name && event["data"][key] == value;
        loop {
            if let Some(at) = self.events.iter().position(is_it) {
                self.events.remove(at);
                return Ok(());
            }
            let event = self.hear(end.saturating_duration_since(Instant::now()));
            self.events.push(event.with_context(|| format!("no event {name} within {patience:?}"))?);
        }
    }

    /// The next message.
    fn hear(&mut self, patience: Duration) -> Result<Value> {
        // None is no timeout at all.
        self.reader.get_ref().set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        // What came of a line before the time was up stays.
        if self.reader.read_until(b'\n', &mut self.line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line)
            .with_context(|| format!("the monitor said {:?}", String::from_utf8_lossy(&line).trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_told_from_events_and_refusals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let qemu = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let say = |reader: &mut BufReader<UnixStream>, text: &str| {
                reader.get_mut().write_all(text.as_bytes()).unwrap();
            };
            say(&mut reader, "{\"QMP\": {}}\n");
            let mut asked = Vec::new();
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk\"}}\n{\"return\": 7}\n",
                "{\"error\": {\"desc\": \"no such device\"}}\n",
            ] {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                asked.push(line);
                say(&mut reader, answer);
            }
            asked
        });
        let mut monitor = Monitor::connect(&path).unwrap();
        assert_eq!(monitor.execute("device_del", &json!({ "id": "disk" })).unwrap(), json!(7));
        let refused = monitor.execute("device_del", &json!({ "id": "disk" })).unwrap_err();
        assert!(refused.to_string().contains("no such device"), "{refused}");
        let disk = ("device", "disk");
        monitor.wait_for("DEVICE_DELETED", disk, Duration::ZERO).unwrap();
        monitor.wait_for("DEVICE_DELETED", disk, Duration::ZERO).expect_err("there was one");
        let asked = qemu.join().unwrap();
        assert!(asked[0].contains("qmp_capabilities") && asked[1].contains("\"id\":\"disk\""), "{asked:?}");
    }
}
