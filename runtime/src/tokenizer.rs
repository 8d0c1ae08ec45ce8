//! Text to ids and back, with the tokenizer of the checkpoint.
//!
//! The beginning-of-sentence token comes exactly once: where the post-processor of `tokenizer.json` adds it, or else where
//! `tokenizer_config.json` says `add_bos_token`; never again where the text begins with it already.

use crate::Error;
use deepfuse_artifact::Artifact;
use deepfuse_artifact::manifest::{TokensInfo, section};
use serde_json::Value;

/// Tokenizer with its special ids.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// The tokenizer of an artifact.
    ///
    /// Errors: [`Error::NoTokenizer`] if it has none.
    pub fn of(artifact: &Artifact) -> Result<Self, Error> {
        let json = artifact.section(section::TOKENIZER).ok_or(Error::NoTokenizer)?;
        Self::new(json, artifact.section(section::TOKENIZER_CONFIG), &artifact.manifest().tokens)
    }

    /// From `tokenizer.json`, `tokenizer_config.json`, and the ids of `config.json`.
    pub fn new(json: &[u8], config: Option<&[u8]>, tokens: &TokensInfo) -> Result<Self, Error> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let parsed = config.map(serde_json::from_slice).transpose();
        let config: Value =
            parsed.map_err(|e| Error::Tokenizer(format!("tokenizer_config.json: {e}")))?.unwrap_or_default();
        // `"bos_token": "<s>"` or `{"content": "<s>", ...}`
        let named = config["bos_token"].as_str().or_else(|| config["bos_token"]["content"].as_str());
        let bos = named.and_then(|t| inner.token_to_id(t)).or(tokens.bos);
        Ok(Self { inner, bos, add_bos: config["add_bos_token"].as_bool().unwrap_or(false) })
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Ids of a prompt, with the beginning-of-sentence token by the tokenizer's rule.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.ids(text, true)?;
        if let Some(bos) = self.bos {
            let leading = ids.iter().take_while(|id| **id == bos).count();
            if leading > 1 {
                ids.drain(1..leading);
            } else if leading == 0 && self.add_bos {
                ids.insert(0, bos);
            }
        }
        Ok(ids)
    }

    /// Ids of a text as it stands, without special tokens around it.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids, without special tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// A decoder for ids that come one by one.
    pub fn stream(&self) -> Stream<'_> {
        Stream { tokenizer: self, ids: vec![], read: 0, sent: 0 }
    }
}

/// Ids that are decoded together at most; more can only be bytes that are no text.
const MAX_PENDING_IDS: usize = 64;

/// Turns ids into text piece by piece. A character whose bytes are spread over several ids comes out whole, with the last of them.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last ids: `read` of them are sent and stay as context (some decoders drop a leading space), the others are pending.
    ids: Vec<u32>,
    read: usize,
    /// Bytes of text of the pending ids that are sent.
    sent: usize,
}

impl Stream<'_> {
    /// Adds an id; the text that is certain now.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let text = self.pending()?;
        // The last character may be the start of one that is not complete.
        let whole = text.strip_suffix('\u{fffd}');
        let ready = whole.unwrap_or(&text);
        let piece = ready.get(self.sent..).unwrap_or("").to_owned();
        if whole.is_none() || self.ids.len() - self.read > MAX_PENDING_IDS {
            let rest = text.get(self.sent..).unwrap_or("").to_owned();
            self.ids.drain(..self.read);
            self.read = self.ids.len();
            self.sent = 0;
            return Ok(rest);
        }
        self.sent += piece.len();
        Ok(piece)
    }

    /// The text that is left when no more ids come.
    pub fn finish(self) -> Result<String, Error> {
        Ok(self.pending()?.get(self.sent..).unwrap_or("").to_owned())
    }

    /// Text of the pending ids, as it follows the context.
    fn pending(&self) -> Result<String, Error> {
        let context = self.tokenizer.decode(&self.ids[..self.read])?;
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(all.get(context.len()..).unwrap_or("").to_owned())
    }
}
