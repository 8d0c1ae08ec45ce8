//! Pages of the cache: who holds which, shared between forks, copied when one of them writes.
//!
//! A sequence of `n` tokens holds `ceil(n / 64)` pages. Forks share all pages; a page is written only by a sequence that holds it alone,
//! so the last, partly filled page of a fork is copied when either side grows.

use crate::Error;
use deepfuse_artifact::PAGE_TOKENS;

/// A sequence of a session. Stays unique after the sequence is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId {
    slot: u32,
    generation: u32,
}

/// Rows `0..rows` of a page that must be copied before the step that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    pub from: u32,
    pub to: u32,
    pub rows: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    live: bool,
    generation: u32,
    tokens: u32,
}

/// All pages and sequences of a session. Nothing allocates after [`Pages::new`].
#[derive(Debug)]
pub struct Pages {
    /// How many sequences hold each page.
    holders: Vec<u32>,
    /// Free pages; the next one to use is at the end.
    free: Vec<u32>,
    slots: Vec<Slot>,
    /// Page numbers of slot `i` start at `i * per_sequence`.
    table: Vec<u32>,
    per_sequence: u32,
    /// Pages whose holders were lowered while counting, see [`Pages::missing`].
    lowered: Vec<u32>,
}

impl Pages {
    /// `pages` in all, at most `per_sequence` for each of `sequences`.
    pub fn new(pages: u32, sequences: u32, per_sequence: u32) -> Self {
        Self {
            holders: vec![0; pages as usize],
            free: (0..pages).rev().collect(),
            slots: vec![Slot::default(); sequences as usize],
            table: vec![0; sequences as usize * per_sequence as usize],
            per_sequence,
            lowered: Vec::with_capacity(sequences as usize),
        }
    }

    /// Pages that nobody holds.
    pub fn free_pages(&self) -> u32 {
        self.free.len() as u32
    }

    fn slot(&self, id: SequenceId) -> Result<usize, Error> {
        let slot = self.slots.get(id.slot as usize).filter(|s| s.live && s.generation == id.generation);
        slot.map(|_| id.slot as usize).ok_or(Error::NoSequence)
    }

    /// A new, empty sequence.
    pub fn add(&mut self) -> Result<SequenceId, Error> {
        let limit = self.slots.len() as u32;
        let slot = self.slots.iter().position(|s| !s.live).ok_or(Error::TooManySequences { limit })?;
        let generation = self.slots[slot].generation.wrapping_add(1);
        self.slots[slot] = Slot { live: true, generation, tokens: 0 };
        Ok(SequenceId { slot: slot as u32, generation })
    }

    /// Ends a sequence and gives its pages back.
    pub fn remove(&mut self, id: SequenceId) -> Result<(), Error> {
        self.truncate(id, 0)?;
        self.slots[id.slot as usize].live = false;
        Ok(())
    }

    /// Tokens of a sequence.
    pub fn tokens(&self, id: SequenceId) -> Result<u32, Error> {
        Ok(self.slots[self.slot(id)?].tokens)
    }

    /// The first `count` pages of a sequence.
    pub fn list(&self, id: SequenceId, count: u32) -> Result<&[u32], Error> {
        let start = self.slot(id)? * self.per_sequence as usize;
        Ok(&self.table[start..start + count as usize])
    }

    /// A sequence with the same tokens. Costs no page until one of the two grows.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, Error> {
        let from = self.slot(id)?;
        let tokens = self.slots[from].tokens;
        let new = self.add()?;
        self.slots[new.slot as usize].tokens = tokens;
        let (n, pages) = (self.per_sequence as usize, tokens.div_ceil(PAGE_TOKENS) as usize);
        self.table.copy_within(from * n..from * n + pages, new.slot as usize * n);
        for page in &self.table[from * n..from * n + pages] {
            self.holders[*page as usize] += 1;
        }
        Ok(new)
    }

    /// Keeps the first `tokens` tokens.
    pub fn truncate(&mut self, id: SequenceId, tokens: u32) -> Result<(), Error> {
        let slot = self.slot(id)?;
        let now = self.slots[slot].tokens;
        if tokens > now {
            return Err(Error::Truncate { tokens: now, to: tokens });
        }
        let start = slot * self.per_sequence as usize;
        for i in tokens.div_ceil(PAGE_TOKENS)..now.div_ceil(PAGE_TOKENS) {
            let page = self.table[start + i as usize];
            self.holders[page as usize] -= 1;
            if self.holders[page as usize] == 0 {
                self.free.push(page);
            }
        }
        self.slots[slot].tokens = tokens;
        Ok(())
    }

    /// How many pages are missing to grow all sequences of `growth` (each named once) by so many tokens; 0 if all fits.
    pub fn missing(&mut self, growth: impl Iterator<Item = (SequenceId, u32)>) -> Result<u32, Error> {
        let mut needed = 0;
        let mut unknown = false;
        for (id, more) in growth {
            let Ok(slot) = self.slot(id) else {
                unknown = true;
                break;
            };
            let tokens = self.slots[slot].tokens;
            needed += (tokens + more).div_ceil(PAGE_TOKENS) - tokens.div_ceil(PAGE_TOKENS);
            // Of the holders of a shared page, all but the last one to write take a copy.
            if let Some(page) = self.partial_page(slot)
                && self.holders[page as usize] > 1
            {
                self.holders[page as usize] -= 1;
                self.lowered.push(page);
                needed += 1;
            }
        }
        while let Some(page) = self.lowered.pop() {
            self.holders[page as usize] += 1;
        }
        if unknown { Err(Error::NoSequence) } else { Ok(needed.saturating_sub(self.free_pages())) }
    }

    /// The last page of a sequence, if it has room.
    fn partial_page(&self, slot: usize) -> Option<u32> {
        let tokens = self.slots[slot].tokens;
        let last = slot * self.per_sequence as usize + (tokens / PAGE_TOKENS) as usize;
        (!tokens.is_multiple_of(PAGE_TOKENS)).then(|| self.table[last])
    }

    /// Grows a sequence; [`Pages::missing`] was asked before. Returns the copy that must be made first, if any.
    pub fn grow(&mut self, id: SequenceId, more: u32) -> Result<Option<PageCopy>, Error> {
        let slot = self.slot(id)?;
        let tokens = self.slots[slot].tokens;
        let start = slot * self.per_sequence as usize;
        let mut copy = None;
        if let Some(from) = self.partial_page(slot)
            && more > 0
            && self.holders[from as usize] > 1
        {
            let to = self.take();
            self.holders[from as usize] -= 1;
            self.table[start + (tokens / PAGE_TOKENS) as usize] = to;
            copy = Some(PageCopy { from, to, rows: tokens % PAGE_TOKENS });
        }
        for i in tokens.div_ceil(PAGE_TOKENS)..(tokens + more).div_ceil(PAGE_TOKENS) {
            self.table[start + i as usize] = self.take();
        }
        self.slots[slot].tokens = tokens + more;
        Ok(copy)
    }

    fn take(&mut self) -> u32 {
        let page = self.free.pop().expect("`missing` said that there are enough pages");
        self.holders[page as usize] = 1;
        page
    }
}
