//! Generation of one answer.

use crate::sample::{Sampler, Sampling};
use crate::{Error, Feed, Session};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub prompt: &'a [u32],
    pub max_new_tokens: u32,
    /// Ids that end the answer; empty to ignore them.
    pub stop_ids: &'a [u32],
    pub sampling: Sampling,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// One of the stop ids, which is the last id of the answer.
    Eos,
    /// As many tokens as were asked for.
    Length,
    /// The sequence is as long as the context.
    Context,
    /// The caller had enough.
    Caller,
}

impl StopReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Length => "length",
            Self::Context => "context",
            Self::Caller => "caller",
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    pub ids: Vec<u32>,
    pub stop: StopReason,
    /// From the start to the first id.
    pub prompt_time: Duration,
    /// From the first id to the last.
    pub decode_time: Duration,
}

impl Generated {
    /// Tokens after the first one per second; `None` if there are none.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        let tokens = self.ids.len().saturating_sub(1);
        (tokens > 0).then(|| tokens as f64 / self.decode_time.as_secs_f64())
    }
}

/// Generates in a new sequence, which is removed afterwards. `on_token` gets every id as it comes.
///
/// Errors: those of [`Session::step`], without any token; NaN in the logits.
pub fn generate(
    session: &mut Session,
    request: &Request<'_>,
    on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<()>, Error>,
) -> Result<Generated, Error> {
    request.sampling.check()?;
    let sequence = session.add_sequence()?;
    let result = run(session, sequence, request, on_token);
    session.remove_sequence(sequence)?;
    result
}

fn run(
    session: &mut Session,
    sequence: crate::SequenceId,
    request: &Request<'_>,
    on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<()>, Error>,
) -> Result<Generated, Error> {
    let start = Instant::now();
    let mut sampler = Sampler::new(request.sampling);
    let mut ids = Vec::with_capacity(request.max_new_tokens.min(session.context()) as usize);
    session.step(&[Feed::last(sequence, request.prompt)])?;
    let mut first = start;
    let stop = loop {
        if ids.len() as u32 == request.max_new_tokens {
            break StopReason::Length;
        }
        let id = sampler.pick(session.logits(0).expect("one row was asked for"))?;
        if ids.is_empty() {
            first = Instant::now();
        }
        ids.push(id);
        if on_token(id)?.is_break() {
            break StopReason::Caller;
        }
        if request.stop_ids.contains(&id) {
            break StopReason::Eos;
        }
        if session.tokens(sequence)? == session.context() {
            break StopReason::Context;
        }
        if ids.len() as u32 == request.max_new_tokens {
            break StopReason::Length;
        }
        session.step(&[Feed::last(sequence, &[id])])?;
    };
    let first = if ids.is_empty() { Instant::now() } else { first };
    Ok(Generated { ids, stop, prompt_time: first - start, decode_time: first.elapsed() })
}
