//! Perplexity of a text.

use super::{Check, cache_bytes, compare::log_softmax};
use crate::tokenizer::Tokenizer;
use crate::{Artifact, Error, Feed, Limits, Options, Session};
use deepfuse_artifact::interrupt;
use std::path::Path;
use std::sync::Arc;

pub fn perplexity(artifact: &Arc<Artifact>, file: &Path, window: u32, options: &Options) -> Result<Check, Error> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::input(file, e.to_string()))?;
    let tokenizer = Tokenizer::of(artifact)?;
    let mut ids: Vec<u32> = tokenizer.bos().into_iter().collect();
    ids.extend(tokenizer.encode_plain(&text)?);
    let context = artifact.manifest().limits.context;
    if window < 2 || window > context {
        return Err(Error::Usage(format!("--window {window}: from 2 to {context} tokens")));
    }
    let windows = ids.chunks_exact(window as usize);
    let count = windows.len();
    if count == 0 {
        return Err(Error::input(
            file,
            format!(
                "{} tokens are less than one window of {window}; give a smaller --window or a longer text",
                ids.len()
            ),
        ));
    }
    let limits =
        Limits { max_tokens: window, max_sequences: 1, cache_bytes: cache_bytes(artifact, u64::from(window), 1) };
    let mut session = Session::load(artifact.clone(), limits, options)?;
    let sequence = session.add_sequence()?;
    let mut sum = 0.0;
    for window in windows {
        if interrupt::requested() {
            return Err(Error::Interrupted);
        }
        session.truncate(sequence, 0)?;
        session.step(&[Feed::all(sequence, window)])?;
        for (i, next) in window[1..].iter().enumerate() {
            sum -= log_softmax(session.logits(i).expect("all rows were asked for"))[*next as usize];
        }
    }
    let predictions = count * (window as usize - 1);
    let perplexity = (sum / predictions as f64).exp();
    let detail = format!("{} ids, {count} windows of {window}, {predictions} predictions", ids.len());
    let check = Check::new("perplexity", perplexity.is_finite(), detail);
    Ok(Check { perplexity: Some(perplexity).filter(|p| p.is_finite()), ..check })
}
