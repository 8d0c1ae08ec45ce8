//! A loaded model with its cache: sequences are added, fed with tokens, cut, forked and removed.

use crate::batch::{Batch, BatchLimits, BatchSizes, Feed};
use crate::code::Code;
use crate::error::Error;
use crate::isa::{self, Emulate};
use crate::look::Observer;
use crate::pages::{Pages, SequenceId};
use crate::pool::{Pinning, Pool};
use crate::program::{self, Memory, Prepared, SymbolLimits};
use crate::trace::{Recorder, Recording};
use crate::{memory, numa};
use deepfuse_artifact::plan::{Assumptions, Plan, Range, StateKind};
use deepfuse_artifact::{Artifact, PAGE_TOKENS, manifest};
use std::sync::Arc;

/// Largest sizes of a session; memory is reserved for them when it is loaded and used as it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of one batch; longer prompts are run in several.
    pub max_tokens: u32,
    pub max_sequences: u32,
    /// For the states of all sequences.
    pub cache_bytes: u64,
}

/// How a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub threads: u32,
    pub pinning: Pinning,
    /// Most new tokens of one sequence in a batch; `None`: as many as fit.
    pub prefill_chunk: Option<u32>,
    /// Run every batch with this bucket's plan.
    pub force_bucket: Option<String>,
    /// Longest sequence, if it should be shorter than the model allows.
    pub context: Option<u32>,
    /// Instructions to execute in software where the artifact's code has them.
    pub emulate: Option<Emulate>,
}

impl Options {
    /// All cores that this process may use, and nothing unusual.
    pub fn automatic() -> Self {
        Self {
            threads: default_threads(),
            pinning: Pinning::WorkersOnly,
            prefill_chunk: None,
            force_bucket: None,
            context: None,
            emulate: None,
        }
    }
}

/// One worker a core, and no more than a control group's quota.
pub fn default_threads() -> u32 {
    let quota = std::thread::available_parallelism().map_or(1, usize::from);
    crate::pool::allowed_cpus().cores.min(quota) as u32
}

/// A model in memory. See the crate's documentation for an example.
#[derive(Debug)]
pub struct Session {
    // Dropped in this order: threads, then what they used.
    pool: Pool,
    buckets: Vec<Prepared>,
    batch: Batch,
    pages: Pages,
    memory: Memory,
    recorder: Recorder,
    forced: Option<usize>,
    max_rows: u32,
    context: u32,
    _code: Code,
    artifact: Arc<Artifact>,
}

impl Session {
    /// Loads the code, reserves all memory, starts the threads. Weights stay mapped; nothing is read ahead, unless the threads sit on
    /// several NUMA nodes: then pages are moved to where they are read.
    ///
    /// Errors: exit 5 if the code is for another CPU, 6 if the system refuses what it needs, 7 if memory is missing, 2 for limits that fit nothing.
    pub fn load(artifact: Arc<Artifact>, limits: Limits, options: &Options) -> Result<Self, Error> {
        let (plan, about) = (artifact.plan(), artifact.manifest());
        if about.shapes_only {
            return Err(deepfuse_artifact::Error::ShapesOnly { path: artifact.path().to_owned() }.into());
        }
        isa::prepare(&artifact, options.emulate)?;
        let context = context_limit(about.limits.context, options.context)?;
        let (pages, per_sequence) = page_limits(plan, limits, context)?;
        let max_tokens = limits.max_tokens;
        let max_rows = max_tokens.max(limits.max_sequences);
        let symbols = SymbolLimits {
            tokens: max_tokens,
            sequences: limits.max_sequences,
            pages,
            rows: max_rows,
            cached: u64::from(pages) * u64::from(PAGE_TOKENS),
        };
        check_memory(plan, symbols)?;
        let path = artifact.path().join(&about.section(manifest::section::CODE).expect("checked by the reader").file);
        let code = Code::load(&path, artifact.section(manifest::section::CODE).expect("checked by the reader"))?;
        let entries = program::entries(&code, &path, plan)?;
        let memory = Memory::new(plan, symbols)?;
        let forced = options.force_bucket.as_deref().map(|name| find_bucket(plan, name)).transpose()?;
        let chunk = options.prefill_chunk.unwrap_or(max_tokens).clamp(1, max_tokens);
        // Batches of a forced bucket are no larger than it takes.
        let upper = forced.map(|b| plan.buckets[b].assumptions);
        let at_most = |limit: u32, range: fn(&Assumptions) -> Range| upper.map_or(limit, |a| limit.min(range(&a).max));
        let batch = Batch::new(BatchLimits {
            tokens: at_most(max_tokens, |a| a.tokens),
            chunk: at_most(chunk, |a| a.queries),
            sequences: limits.max_sequences,
            pages: at_most(pages, |a| a.pages),
            rows: max_rows,
        });
        let prepare = |b| program::prepare(&artifact, b, &entries, &memory, &batch, (symbols, options.emulate));
        let buckets: Vec<Prepared> = plan.buckets.iter().map(prepare).collect::<Result<_, _>>()?;
        let launches = buckets.iter().map(|b| b.launched.len()).max().unwrap_or(0);
        let mut pool = Pool::new(options.threads, options.pinning)
            .map_err(|source| Error::System { what: "start the worker threads".into(), source })?;
        numa::place(&artifact, &numa::placement(plan, pool.seats()), &mut pool)?;
        let recorder = Recorder::new(plan.kernels.len(), launches, pool.workers());
        let pages = Pages::new(pages, limits.max_sequences, per_sequence);
        Ok(Self { pool, buckets, batch, pages, memory, recorder, forced, max_rows, context, _code: code, artifact })
    }

    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Tokens that one sequence can have.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Tokens that can want logits in one step.
    pub fn max_rows(&self) -> u32 {
        self.max_rows
    }

    pub fn threads(&self) -> u32 {
        self.pool.workers()
    }

    /// Whether the worker threads have CPUs of their own.
    pub fn pinned(&self) -> bool {
        self.pool.pinned()
    }

    /// Cache pages of 64 tokens that are free.
    pub fn free_pages(&self) -> u32 {
        self.pages.free_pages()
    }

    /// A new, empty sequence.
    pub fn add_sequence(&mut self) -> Result<SequenceId, Error> {
        self.pages.add()
    }

    /// Ends a sequence; its pages can be used by others.
    pub fn remove_sequence(&mut self, id: SequenceId) -> Result<(), Error> {
        self.pages.remove(id)
    }

    /// Tokens of a sequence.
    pub fn tokens(&self, id: SequenceId) -> Result<u32, Error> {
        self.pages.tokens(id)
    }

    /// Forgets all but the first `tokens` tokens of a sequence.
    pub fn truncate(&mut self, id: SequenceId, tokens: u32) -> Result<(), Error> {
        self.pages.truncate(id, tokens)
    }

    /// A second sequence with the same tokens. Both share their cache until they differ.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, Error> {
        self.pages.fork(id)
    }

    /// Appends tokens to sequences and computes the logits that are asked for. Allocates nothing.
    ///
    /// More tokens than fit a batch are run in several. Logits of earlier steps are gone.
    ///
    /// Errors: all are found before anything is changed (apart from a panic, which is a bug): an id beyond the vocabulary, a sequence
    /// longer than the context, a full cache, more logits than [`Session::max_rows`], a sequence that is unknown or named twice.
    pub fn step(&mut self, feeds: &[Feed<'_>]) -> Result<(), Error> {
        self.step_observed(feeds, None)
    }

    /// [`Session::step`], launch by launch: an observer is shown what each is about to read. Slower.
    pub fn step_observed(&mut self, feeds: &[Feed<'_>], mut observer: Option<&mut Observer<'_>>) -> Result<(), Error> {
        self.check(feeds)?;
        self.batch.start(feeds, &self.pages)?;
        for feed in feeds {
            if let Some(copy) = self.pages.grow(feed.sequence, feed.ids.len() as u32)? {
                self.memory.copy_page(self.artifact.plan(), copy);
            }
        }
        while let Some(sizes) = self.batch.next(feeds, &self.pages)? {
            let bucket = self.choose(sizes)?;
            let row_bytes = u64::from(self.artifact.plan().vocab) * 4;
            let logits = self.memory.logits.address() + u64::from(self.batch.rows_before()) * row_bytes;
            let (prepared, plan) = (&mut self.buckets[bucket], (self.artifact.plan(), bucket));
            prepared.run(&mut self.pool, plan, (sizes, logits), &self.recorder, observer.as_deref_mut())?;
            self.recorder.collect(self.artifact.plan(), bucket as u32, &prepared.launched, sizes);
        }
        Ok(())
    }

    fn check(&mut self, feeds: &[Feed<'_>]) -> Result<(), Error> {
        let vocab = self.artifact.plan().vocab;
        let mut rows = 0;
        for (i, feed) in feeds.iter().enumerate() {
            if feed.ids.is_empty() {
                return Err(Error::NoTokens);
            }
            if feeds[..i].iter().any(|f| f.sequence == feed.sequence) {
                return Err(Error::SequenceTwice);
            }
            if let Some(id) = feed.ids.iter().find(|id| **id >= vocab) {
                return Err(Error::Vocabulary { id: i64::from(*id), vocab });
            }
            let tokens = u64::from(self.pages.tokens(feed.sequence)?) + feed.ids.len() as u64;
            if tokens > u64::from(self.context) {
                return Err(Error::Context { tokens, context: self.context });
            }
            rows += feed.logits.min(feed.ids.len()) as u64;
            if feed.logits > feed.ids.len() {
                return Err(Error::TooManyRows { rows: feed.logits as u64, limit: feed.ids.len() as u32 });
            }
        }
        if rows > u64::from(self.max_rows) {
            return Err(Error::TooManyRows { rows, limit: self.max_rows });
        }
        let missing = self.pages.missing(feeds.iter().map(|f| (f.sequence, f.ids.len() as u32)))?;
        if missing > 0 {
            return Err(Error::CacheFull { needed: missing, free: self.pages.free_pages() });
        }
        self.check_forced(feeds)
    }

    /// A step is divided until its batches fit a forced bucket, but a sequence is not.
    fn check_forced(&self, feeds: &[Feed<'_>]) -> Result<(), Error> {
        let Some(bucket) = self.forced.map(|b| &self.buckets[b]) else { return Ok(()) };
        for feed in feeds {
            let pages = (self.pages.tokens(feed.sequence)? + feed.ids.len() as u32).div_ceil(PAGE_TOKENS);
            let most = bucket.assumptions.pages.max;
            if pages > most {
                let reason = format!("a sequence of {pages} pages, at most {most}");
                return Err(Error::Bucket { name: bucket.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// The first bucket whose assumptions hold; the last one takes everything.
    fn choose(&self, sizes: BatchSizes) -> Result<usize, Error> {
        let fits = |b: &Prepared| {
            let found = [sizes.tokens, sizes.queries, sizes.context, sizes.pages];
            b.assumptions.ranges().iter().zip(found).all(|((_, range), n)| range.contains(n))
        };
        let chosen = self.forced.or_else(|| self.buckets.iter().position(fits));
        chosen.ok_or_else(|| Error::Unsupported("a plan whose last bucket is not general".into()))
    }

    /// Number of logits rows of the last step.
    pub fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// Logits of the last step, f32 `[vocab]`: row `i` in the order of its feeds and of the tokens that asked for them.
    pub fn logits(&self, i: usize) -> Option<&[f32]> {
        let vocab = self.artifact.plan().vocab as usize;
        self.batch.row(i).map(|row| self.memory.logits.floats((row * vocab * 4) as u64, vocab))
    }

    /// Records times of launches from now on.
    pub fn record(&mut self, recording: Recording) {
        self.recorder.set(recording);
    }

    /// What was recorded since [`Session::record`].
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }
}

fn context_limit(model: u32, asked: Option<u32>) -> Result<u32, Error> {
    let context = asked.unwrap_or(model);
    if context == 0 || context > model {
        return Err(Error::Limit(format!("a context of {context} tokens, the model takes 1 to {model}")));
    }
    Ok(context.min(i32::MAX as u32))
}

/// Pages in all and for one sequence.
fn page_limits(plan: &Plan, limits: Limits, context: u32) -> Result<(u32, u32), Error> {
    if limits.max_tokens == 0 || limits.max_sequences == 0 {
        return Err(Error::Limit("at least one token and one sequence".into()));
    }
    if let Some(s) = plan.states.iter().find(|s| s.kind != StateKind::Paged) {
        return Err(Error::Unsupported(format!("states like {} ({:?})", s.name, s.kind)));
    }
    let page_bytes = page_bytes(plan);
    let wanted = u64::from(context.div_ceil(PAGE_TOKENS)) * u64::from(limits.max_sequences);
    let pages = limits.cache_bytes.checked_div(page_bytes).unwrap_or(wanted).min(wanted).min(1 << 24) as u32;
    if pages == 0 {
        return Err(Error::Limit(format!(
            "{} bytes for the cache, one page of 64 tokens takes {page_bytes}",
            limits.cache_bytes
        )));
    }
    Ok((pages, pages.min(context.div_ceil(PAGE_TOKENS))))
}

/// Bytes of one page over all states.
pub fn page_bytes(plan: &Plan) -> u64 {
    plan.states.iter().map(|s| s.row_bytes * u64::from(PAGE_TOKENS)).sum()
}

/// What a full session will touch must be there. Arenas that grow with the context are left out: few batches come near their limit.
fn check_memory(plan: &Plan, limits: SymbolLimits) -> Result<(), Error> {
    use deepfuse_artifact::plan::{Arena, Symbol};
    let grows = |a: &Arena| matches!(a, Arena::PerTokenPage | Arena::Per(Symbol::P | Symbol::C));
    let arenas: u128 =
        program::arena_bytes(plan, limits).iter().filter(|(a, _)| !grows(a)).map(|(_, bytes)| bytes).sum();
    let needed = u64::try_from(arenas).unwrap_or(u64::MAX).saturating_add(u64::from(limits.pages) * page_bytes(plan));
    let available = memory::available_bytes();
    if needed > available {
        return Err(Error::Memory { what: "the cache and activations of a session", needed, available });
    }
    Ok(())
}

fn find_bucket(plan: &Plan, name: &str) -> Result<usize, Error> {
    let known = || plan.buckets.iter().map(|b| b.name.clone()).collect();
    plan.buckets
        .iter()
        .position(|b| b.name == name)
        .ok_or_else(|| Error::NoBucket { name: name.to_owned(), known: known() })
}
