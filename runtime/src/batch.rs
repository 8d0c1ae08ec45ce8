//! Divides the tokens of a step into batches that fit the limits, and writes the batch inputs of the kernels.

use crate::Error;
use crate::pages::{Pages, SequenceId};
use deepfuse_artifact::PAGE_TOKENS;
use deepfuse_artifact::plan::Input;

/// Tokens for one sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    pub sequence: SequenceId,
    pub ids: &'a [u32],
    /// How many of the last tokens want logits.
    pub logits: usize,
}

impl<'a> Feed<'a> {
    /// Tokens, and logits of the last one.
    pub fn last(sequence: SequenceId, ids: &'a [u32]) -> Self {
        Self { sequence, ids, logits: 1 }
    }

    /// Tokens, and logits of all of them.
    pub fn all(sequence: SequenceId, ids: &'a [u32]) -> Self {
        Self { sequence, ids, logits: ids.len() }
    }
}

/// Largest sizes of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    pub tokens: u32,
    /// New tokens of one sequence.
    pub chunk: u32,
    pub sequences: u32,
    pub pages: u32,
    pub rows: u32,
}

/// Sizes of one batch: the symbols of a step, and what else decides between buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSizes {
    pub tokens: u32,
    pub sequences: u32,
    pub pages: u32,
    pub rows: u32,
    pub cached: u64,
    /// As in [`deepfuse_artifact::plan::Assumptions`].
    pub queries: u32,
    pub context: u32,
}

impl BatchSizes {
    /// Values of the plan's symbols, in their order.
    pub fn symbols(self) -> [u64; 5] {
        let [t, s, p, r] = [self.tokens, self.sequences, self.pages, self.rows].map(u64::from);
        [t, s, p, r, self.cached]
    }
}

/// The inputs of one batch. Its lists have room for the largest batch and never move.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    ids: Vec<i32>,
    pos: Vec<i32>,
    seq: Vec<i32>,
    pages: Vec<i32>,
    page_start: Vec<i32>,
    rows: Vec<i32>,
    /// Tokens of each feed that are done, and of the step before it.
    done: Vec<u32>,
    base: Vec<u32>,
    /// Logits row of the session for each wanted token of the step, in the order of the feeds.
    row_of: Vec<u32>,
    /// Where each feed's wanted tokens start in `row_of`.
    first_row: Vec<u32>,
    rows_done: u32,
}

impl Batch {
    pub fn new(limits: BatchLimits) -> Self {
        let room = |n: u32| Vec::with_capacity(n as usize);
        let sequences = limits.sequences as usize;
        Self {
            limits,
            ids: room(limits.tokens),
            pos: room(limits.tokens),
            seq: room(limits.tokens),
            pages: room(limits.pages),
            page_start: room(limits.sequences + 1),
            rows: room(limits.rows),
            done: Vec::with_capacity(sequences),
            base: Vec::with_capacity(sequences),
            row_of: Vec::with_capacity(limits.rows as usize),
            first_row: Vec::with_capacity(sequences),
            rows_done: 0,
        }
    }

    /// Where an input lies; never changes.
    pub fn address(&self, input: Input) -> u64 {
        let list = match input {
            Input::Ids => &self.ids,
            Input::Pos => &self.pos,
            Input::Seq => &self.seq,
            Input::Pages => &self.pages,
            Input::PageStart => &self.page_start,
            Input::Rows => &self.rows,
        };
        list.as_ptr() as u64
    }

    /// Logits row of wanted token `i` of the step.
    pub fn row(&self, i: usize) -> Option<usize> {
        self.row_of.get(i).map(|r| *r as usize)
    }

    /// Wanted tokens of the step.
    pub fn rows(&self) -> usize {
        self.row_of.len()
    }

    /// Rows of earlier batches of this step.
    pub fn rows_before(&self) -> u32 {
        self.rows_done - self.rows.len() as u32
    }

    /// Starts a step; the pages have not grown yet.
    pub fn start(&mut self, feeds: &[Feed<'_>], pages: &Pages) -> Result<(), Error> {
        self.done.clear();
        self.base.clear();
        self.row_of.clear();
        self.first_row.clear();
        self.rows_done = 0;
        for feed in feeds {
            self.done.push(0);
            self.base.push(pages.tokens(feed.sequence)?);
            self.first_row.push(self.row_of.len() as u32);
            self.row_of.resize(self.row_of.len() + feed.logits, 0);
        }
        Ok(())
    }

    /// Fills in the next batch; `None` when the step is done. The pages have grown.
    pub fn next(&mut self, feeds: &[Feed<'_>], pages: &Pages) -> Result<Option<BatchSizes>, Error> {
        [&mut self.ids, &mut self.pos, &mut self.seq, &mut self.pages, &mut self.page_start, &mut self.rows]
            .into_iter()
            .for_each(Vec::clear);
        let mut sizes = BatchSizes::default();
        // Pairs of a new token and a context row, and context rows.
        let (mut pairs, mut rows) = (0u64, 0u64);
        for (i, feed) in feeds.iter().enumerate() {
            let (done, before) = (self.done[i], self.base[i] + self.done[i]);
            let left = feed.ids.len() as u32 - done;
            let take = left.min(self.limits.chunk).min(self.limits.tokens - sizes.tokens);
            let list = (before + take).div_ceil(PAGE_TOKENS);
            if take == 0 || sizes.pages + list > self.limits.pages {
                continue;
            }
            self.page_start.push(sizes.pages as i32);
            self.pages.extend(pages.list(feed.sequence, list)?.iter().map(|p| *p as i32));
            for j in done..done + take {
                self.token(i, feed, j, sizes.sequences);
            }
            self.done[i] += take;
            sizes.tokens += take;
            sizes.sequences += 1;
            sizes.pages += list;
            sizes.cached += u64::from(before);
            sizes.context = sizes.context.max(before + take);
            rows += u64::from(before + take);
            pairs += u64::from(before + take) * u64::from(take);
        }
        self.page_start.push(sizes.pages as i32);
        sizes.rows = self.rows.len() as u32;
        sizes.queries = pairs.div_ceil(rows.max(1)) as u32;
        Ok((sizes.tokens > 0).then_some(sizes))
    }

    /// Adds token `j` of feed `i`, which is sequence `seq` of this batch.
    fn token(&mut self, i: usize, feed: &Feed<'_>, j: u32, seq: u32) {
        let first_wanted = (feed.ids.len() - feed.logits) as u32;
        if j >= first_wanted {
            self.row_of[(self.first_row[i] + j - first_wanted) as usize] = self.rows_done;
            self.rows_done += 1;
            self.rows.push(self.ids.len() as i32);
        }
        self.ids.push(feed.ids[j as usize] as i32);
        self.pos.push((self.base[i] + j) as i32);
        self.seq.push(seq as i32);
    }
}
