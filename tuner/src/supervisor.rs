//! The process that measures, and who watches it: a variant that crashes or does not end is an outcome, and the next one is measured in a new process.

use crate::measure::{Ask, Event};
use deepfuse_cache::{Outcome, Record};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Why a kernel was not measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be: why.
    Kernel(String),
    /// Nothing can be: the process does not start, or does not answer.
    Process(String),
}

/// A deadline is counted in ticks that this process was awake for: who is stopped together with the other one counts nothing.
const TICK: Duration = Duration::from_millis(100);

/// Keeps one measuring process, and starts another when it is gone.
pub struct Supervisor {
    /// Starts the process, whose loop is [`crate::measure::serve`].
    command: Box<dyn Fn() -> Command>,
    /// Longest time without an event: of compiling a variant, or of running it.
    deadline: Duration,
    running: Option<Running>,
}

struct Running {
    child: Child,
    events: Receiver<Event>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone
        let _ = self.child.wait();
    }
}

/// How an attempt ended.
enum Attempt {
    Done(Result<Box<Record>, Failure>),
    /// The process was lost while it ran this variant, if it had come so far.
    Lost(Option<usize>, Outcome),
}

impl Supervisor {
    pub fn new(command: Box<dyn Fn() -> Command>, deadline: Duration) -> Self {
        Self { command, deadline, running: None }
    }

    /// The record of a kernel.
    pub fn measure(&mut self, mut ask: Ask) -> Result<Box<Record>, Failure> {
        loop {
            match self.attempt(&ask)? {
                Attempt::Done(result) => return result,
                Attempt::Lost(at, outcome) => {
                    self.running = None;
                    let at = at.filter(|at| !ask.known.contains_key(at));
                    let lost = || Failure::Kernel("the measuring process ended before it ran anything".to_owned());
                    ask.known.insert(at.ok_or_else(lost)?, outcome);
                }
            }
        }
    }

    fn attempt(&mut self, ask: &Ask) -> Result<Attempt, Failure> {
        if self.running.is_none() {
            self.running = Some(start((self.command)()).map_err(|e| Failure::Process(e.to_string()))?);
        }
        let running = self.running.as_mut().expect("it was just started");
        let line = serde_json::to_string(ask).expect("an ask is plain data");
        if let Some(input) = &mut running.child.stdin {
            let _ = writeln!(input, "{line}").and_then(|()| input.flush()); // a process that is gone is noticed below
        }
        let (mut at, mut quiet) = (None, Duration::ZERO);
        loop {
            match running.events.recv_timeout(TICK) {
                Ok(Event::At(variant)) => (at, quiet) = (Some(variant), Duration::ZERO),
                Ok(Event::Done(record)) => {
                    let checked = Record::from_json(record.to_json().as_bytes());
                    return Ok(Attempt::Done(checked.map(Box::new).map_err(Failure::Process)));
                }
                Ok(Event::Failed(why)) => return Ok(Attempt::Done(Err(Failure::Kernel(why)))),
                Err(RecvTimeoutError::Disconnected) => return Ok(Attempt::Lost(at, Outcome::Crash)),
                Err(RecvTimeoutError::Timeout) => quiet += TICK,
            }
            if quiet >= self.deadline {
                return Ok(Attempt::Lost(at, Outcome::Timeout));
            }
        }
    }
}

fn start(mut command: Command) -> std::io::Result<Running> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (sender, events) = channel();
    let output = child.stdout.take().expect("it was asked for");
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let event = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let Some(event) = event else { break }; // whoever tells something else is not ours
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    Ok(Running { child, events })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deepfuse_cache::{Candidate, Key, SCHEMA};
    use std::collections::BTreeMap;

    fn record() -> Record {
        let candidate = |outcome, nanos| Candidate {
            parameters: BTreeMap::from([("rows".to_owned(), outcome as u32)]),
            code: "0".repeat(64),
            outcome,
            nanos,
        };
        Record {
            schema: SCHEMA.to_owned(),
            key: Key {
                kernel: "linear".to_owned(),
                sizes: BTreeMap::new(),
                target: "x86-64".to_owned(),
                features: vec![],
                cpu: "a CPU".to_owned(),
                threads: 1,
            },
            toolchain: "deepfuse 0.1.0".to_owned(),
            date: "2026-11-28".to_owned(),
            read_mb_per_s: 1,
            estimated_nanos: 1,
            candidates: vec![candidate(Outcome::Ok, vec![1]), candidate(Outcome::Crash, vec![])],
        }
    }

    /// A shell in the place of the measuring process: `script` may use `$done`, the last event.
    fn supervised(script: &'static str, deadline: Duration) -> Result<Box<Record>, Failure> {
        let done = serde_json::to_string(&Event::Done(Box::new(record()))).unwrap();
        let command = move || {
            let mut c = Command::new("sh");
            c.arg("-c").arg(script).env("done", &done);
            c
        };
        let (graph, bucket) = ("g".to_owned(), "decode-1".to_owned());
        let ask = Ask { graph, appended: vec![], bucket, known: BTreeMap::new() };
        Supervisor::new(Box::new(command), deadline).measure(ask)
    }

    const LONG: Duration = Duration::from_mins(2);

    #[test]
    fn a_process_that_answers() {
        assert_eq!(supervised(r#"read ask; echo '{"at":0}'; echo "$done"; read more"#, LONG), Ok(Box::new(record())));
        let failed = supervised(r#"read ask; echo '{"failed":"no room"}'; read more"#, LONG);
        assert_eq!(failed, Err(Failure::Kernel("no room".to_owned())));
    }

    /// The next process is told what the last one died of, twice.
    #[test]
    fn a_process_that_crashes() {
        let script = r#"read ask
            case "$ask" in
              *'"1":"crash"'*'"3":"crash"'*) echo "$done"; read more;;
              *'"1":"crash"'*) echo '{"at":2}'; echo '{"at":3}'; kill -9 $$;;
              *) echo '{"at":0}'; echo '{"at":1}'; exit 1;;
            esac"#;
        assert_eq!(supervised(script, LONG), Ok(Box::new(record())));
        let early = supervised("read ask; exit 1", LONG);
        assert!(matches!(&early, Err(Failure::Kernel(why)) if why.contains("before it ran anything")), "{early:?}");
        let again = supervised(r#"read ask; echo '{"at":1}'; exit 1"#, LONG);
        assert!(matches!(again, Err(Failure::Kernel(_))), "a variant that was to be left out: no endless loop");
    }

    #[test]
    fn a_process_that_hangs() {
        let script = r#"read ask
            case "$ask" in *'"1":"timeout"'*) echo "$done"; read more;; *) echo '{"at":1}'; exec sleep 600;; esac"#;
        assert_eq!(supervised(script, Duration::from_millis(400)), Ok(Box::new(record())));
    }

    #[test]
    fn a_process_that_is_not_ours() {
        let other = supervised("echo hello; exec sleep 600", LONG);
        assert!(matches!(other, Err(Failure::Kernel(_))), "{other:?}");
        let ask = Ask { graph: String::new(), appended: vec![], bucket: String::new(), known: BTreeMap::new() };
        let mut missing = Supervisor::new(Box::new(|| Command::new("/nonexistent/deepfuse")), LONG);
        assert!(matches!(missing.measure(ask), Err(Failure::Process(_))));
    }
}
