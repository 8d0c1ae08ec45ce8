//! The plan: everything a runtime executes, with buffers placed and kernels named. It has a text form, `.plan`.
//!
//! Sizes depend on the symbols of a step (`T` tokens, `S` sequences, `P` pages, `R` logits rows, `C` cached tokens). A buffer lives in the
//! arena of one symbol: at run time it starts at `offset * limit` and holds `bytes * n`, where `n <= limit` is the symbol's value
//! in this step and `limit` its largest value, fixed when a session is created. So one plan serves any limits.

/// Symbols of a step, in the order of the launch arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Symbol {
    T,
    S,
    P,
    R,
    C,
}

impl Symbol {
    pub const ALL: [Self; 5] = [Self::T, Self::S, Self::P, Self::R, Self::C];

    pub fn name(self) -> &'static str {
        match self {
            Self::T => "T",
            Self::S => "S",
            Self::P => "P",
            Self::R => "R",
            Self::C => "C",
        }
    }
}

/// Arena a buffer lies in: of fixed size, or growing with a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arena {
    Fixed,
    Per(Symbol),
    /// Growing with a product, in units of one `T` times one `P`: score matrices of unfused attention.
    PerTokenPage,
}

impl Arena {
    /// Its units where the symbols, in the order of [`Symbol::ALL`], have these values.
    pub fn units(self, symbols: [u64; 5]) -> u128 {
        let of = |s: Symbol| u128::from(symbols[s as usize]);
        match self {
            Self::Fixed => 1,
            Self::Per(symbol) => of(symbol),
            Self::PerTokenPage => of(Symbol::T) * of(Symbol::P),
        }
    }
}

/// A range of memory for one value of a step. Buffers whose lifetimes do not meet may share bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub arena: Arena,
    /// Bytes from the arena's start, per unit of its symbol; a multiple of 64.
    pub offset: u64,
    /// Bytes per unit of its symbol; a multiple of 64.
    pub bytes: u64,
}

/// A state of the model: rows of `row_bytes`, paged, 64 tokens a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub name: String,
    pub kind: StateKind,
    pub row_bytes: u64,
}

/// How a state grows and is cut back, as in the IR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    Paged,
    PagedEvery { every: u32 },
    Window { window: u32 },
    Fixed { rows: u32 },
}

/// A packed weight: a tensor of the artifact's weight files, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    pub name: String,
    pub bytes: u64,
    /// Matrices one after the other, of equal size: experts, heads. Workers divide the rows of each.
    pub matrices: u32,
    /// For people: what it is made of.
    pub note: String,
}

/// A kernel of the code file.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Exported symbol: `extern "C" fn(args: *const u64, phase: u32, worker: u32, workers: u32)`.
    pub symbol: String,
    pub family: String,
    /// Phases, with a barrier between them.
    pub phases: u32,
    /// Rows that with different choices read all experts: `bytes` grow with `T` or `R` no further, and with random choices towards that. 0: they
    /// always grow.
    pub saturates: u32,
    /// For people and traces: bytes that must move and operations.
    pub bytes: Terms,
    pub operations: Terms,
}

/// Coefficients of a sum over `[1, T, S, P, R, C, T P / S, R P / S]`: the last two are rows times the pages of an average sequence.
pub type Terms = [f64; 8];

/// Batch inputs, i32 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// Token ids, `[T]`.
    Ids,
    /// Position of each token in its sequence, `[T]`.
    Pos,
    /// Sequence of each token, `[T]`.
    Seq,
    /// Physical pages of all sequences, in order, `[P]`.
    Pages,
    /// Where each sequence's pages start in `Pages`, `[S + 1]`.
    PageStart,
    /// Tokens that want logits, `[R]`.
    Rows,
}

/// One pointer argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arg {
    Input(Input),
    /// Index into [`BucketPlan::buffers`], and bytes into it (views).
    Buffer {
        index: u32,
        offset: u64,
    },
    /// Index into [`Plan::states`].
    State(u32),
    /// Index into [`Plan::weights`], and bytes into it.
    Weight {
        index: u32,
        offset: u64,
    },
    /// The step's result: f32 logits `[R, vocab]`.
    Logits,
}

/// Runs one kernel on all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Index into [`Plan::kernels`].
    pub kernel: u32,
    pub args: Vec<Arg>,
    /// For traces: where in the model this is, `layers.3.mlp`.
    pub label: String,
}

/// One action of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Launch(Launch),
    /// Copies between devices or buffers.
    Copy {
        from: Arg,
        to: Arg,
        bytes: u64,
    },
    /// A collective operation over the devices of a group.
    Collective {
        kind: String,
        buffer: Arg,
        bytes: u64,
    },
    /// Waits for a queue.
    Wait {
        queue: u32,
    },
}

/// A range of whole numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u32,
    pub max: u32,
}

impl Range {
    pub fn contains(self, n: u32) -> bool {
        (self.min..=self.max).contains(&n)
    }
}

/// What a batch must be like for a bucket's plan to be used. Upper ends also say how much its buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assumptions {
    pub tokens: Range,
    /// New tokens that look at a context row, on average and rounded up: `ceil(sum_s q_s x_s / sum_s x_s)` for `q_s` new tokens of
    /// sequence `s` over a context of `x_s`.
    pub queries: Range,
    /// Tokens of the longest sequence, the new ones included.
    pub context: Range,
    pub pages: Range,
}

impl Assumptions {
    /// The four ranges with their names, in the order of the text form.
    pub fn ranges(&self) -> [(&'static str, Range); 4] {
        [("tokens", self.tokens), ("queries", self.queries), ("context", self.context), ("pages", self.pages)]
    }

    /// Takes every batch.
    pub fn is_general(&self) -> bool {
        self.ranges().iter().all(|(_, r)| r.is_general())
    }
}

/// The actions of a step for the batches of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketPlan {
    pub name: String,
    pub assumptions: Assumptions,
    pub buffers: Vec<Buffer>,
    pub actions: Vec<Action>,
}

/// A compiled model. `buckets` go from special to general; the last one takes any batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub vocab: u32,
    pub states: Vec<State>,
    pub weights: Vec<Weight>,
    pub kernels: Vec<Kernel>,
    pub buckets: Vec<BucketPlan>,
}

impl Plan {
    /// For people: `370 to 407 launches a step in 10 buckets`.
    pub fn launches(&self) -> String {
        let counts = || self.buckets.iter().map(|b| b.actions.len());
        let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
        let range = if least == most { most.to_string() } else { format!("{least} to {most}") };
        format!("{range} launches a step in {} buckets", self.buckets.len())
    }
}
