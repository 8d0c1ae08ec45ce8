//! Batch shapes that have a plan of their own.

use crate::types::{PAGE_TOKENS, Sizes};
use std::ops::RangeInclusive;

/// Assumptions about a batch, and the sizes at which costs are compared for it.
///
/// The runtime takes the first bucket of [`Bucket::all`] whose ranges hold the batch. Lower ends say where a plan pays; upper ends also say how
/// much its buffers hold, so a plan may run any batch that is not above them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    pub name: String,
    /// Tokens of the batch.
    pub tokens: RangeInclusive<u32>,
    /// New tokens that look at a context row, on average and rounded up: `ceil(sum_s q_s x_s / sum_s x_s)` for `q_s` new tokens of sequence `s`
    /// over a context of `x_s`. One number for every sequence if all have as many.
    ///
    /// It decides between the forms of attention: rebuilding keys and values from the latent costs once a context row, and saves once a
    /// (query, context row).
    pub queries: RangeInclusive<u32>,
    /// Tokens of the longest sequence, the new ones included.
    pub context: RangeInclusive<u32>,
    /// Pages over all sequences; bounds what is expanded per context row.
    pub pages: RangeInclusive<u32>,
    /// The sizes that costs are computed at.
    pub typical: Sizes,
}

const ANY: RangeInclusive<u32> = 1..=u32::MAX;

/// Pages of 64 Ki tokens: what expanded keys and values are kept for.
const EXPANDED: RangeInclusive<u32> = 1..=1024;

/// A row of the table: name, tokens, queries, context, pages; then the typical batch as tokens, sequences, context of each.
struct Row(&'static str, [RangeInclusive<u32>; 4], [u64; 3]);

/// From special to general.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    //                     tokens     queries    context   pages
    Row("decode-1",      [1..=1,     1..=1,     1..=4096, ANY],      [1, 1, 512]),
    Row("decode-1-long", [1..=1,     1..=1,     ANY,      ANY],      [1, 1, 32_768]),
    Row("decode-8",      [2..=8,     1..=1,     ANY,      ANY],      [8, 8, 1024]),
    Row("decode-64",     [9..=64,    1..=1,     ANY,      ANY],      [64, 64, 1024]),
    // Drafted tokens of speculative decoding, and the shortest prompts.
    Row("verify",        [2..=64,    2..=8,     ANY,      ANY],      [8, 2, 1024]),
    // A prompt from its beginning: every context row is a new token too.
    Row("prefill-64",    [9..=64,    9..=64,    1..=128,  ANY],      [64, 1, 64]),
    // A part of a prompt over what is cached: few queries for each context row.
    Row("chunk",         [9..=u32::MAX, 9..=128, 129..=u32::MAX, ANY], [128, 1, 4096]),
    Row("prefill-512",   [65..=512,  9..=u32::MAX, ANY,   EXPANDED], [512, 1, 512]),
    Row("prefill-4096",  [513..=u32::MAX, 9..=u32::MAX, ANY, EXPANDED], [4096, 1, 4096]),
    Row("mixed",         [ANY,       ANY,       ANY,      ANY],      [128, 32, 1024]),
];

impl Bucket {
    /// The buckets of a compile, most special first; the last one takes any batch.
    pub fn all() -> Vec<Self> {
        ROWS.iter().map(Self::of).collect()
    }

    /// A bucket of [`Bucket::all`].
    pub fn named(name: &str) -> Option<Self> {
        ROWS.iter().find(|r| r.0 == name).map(Self::of)
    }

    /// Names of all buckets, for people: `decode-1, decode-1-long, ..`.
    pub fn names() -> String {
        ROWS.iter().map(|r| r.0).collect::<Vec<_>>().join(", ")
    }

    /// One token of one sequence over a short context.
    pub fn decode() -> Self {
        Self::of(&ROWS[0])
    }

    /// A prompt of some hundred tokens.
    pub fn prefill() -> Self {
        Self::named("prefill-512").expect("a row of the table")
    }

    /// Whether a batch with these numbers is inside all ranges.
    pub fn holds(&self, tokens: u32, queries: u32, context: u32, pages: u32) -> bool {
        self.tokens.contains(&tokens)
            && self.queries.contains(&queries)
            && self.context.contains(&context)
            && self.pages.contains(&pages)
    }

    /// The typical batch, for people: `8 sequences, context 1024` of one token each, `128 tokens, context 4096`.
    pub fn typical_text(&self) -> String {
        let Sizes([tokens, sequences, _, _, cached]) = self.typical;
        let many = |n: u64, of: &str| if n == 1 { format!("1 {of}") } else { format!("{n} {of}s") };
        let what = match sequences {
            1 => many(tokens, "token"),
            n if n == tokens => many(n, "sequence"),
            n => format!("{} of {}", many(tokens, "token"), many(n, "sequence")),
        };
        format!("{what}, context {}", (cached + tokens) / sequences.max(1))
    }

    fn of(row: &Row) -> Self {
        let Row(name, [tokens, queries, context, pages], [t, s, x]) = row;
        Self {
            name: (*name).to_owned(),
            tokens: tokens.clone(),
            queries: queries.clone(),
            context: context.clone(),
            pages: pages.clone(),
            typical: Sizes([*t, *s, s * x.div_ceil(PAGE_TOKENS), *s, s * x - t]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(tokens: u32, queries: u32, context: u32) -> String {
        let pages = context.div_ceil(64);
        let found = Bucket::all().into_iter().find(|b| b.holds(tokens, queries, context, pages));
        found.map_or_else(String::new, |b| b.name)
    }

    #[test]
    fn a_typical_batch_is_of_its_bucket() {
        for b in Bucket::all().iter().filter(|b| b.name != "mixed") {
            let Sizes([t, s, p, r, c]) = b.typical;
            let (queries, context) = ((t / s) as u32, ((c + t) / s) as u32);
            assert_eq!(first(t as u32, queries, context), b.name);
            assert!(b.pages.contains(&(p as u32)) && r == s);
        }
    }

    #[test]
    fn a_typical_batch_in_words() {
        let text = |name| Bucket::named(name).map(|b| b.typical_text());
        assert_eq!(text("decode-1").as_deref(), Some("1 token, context 512"));
        assert_eq!(text("decode-8").as_deref(), Some("8 sequences, context 1024"));
        assert_eq!(text("verify").as_deref(), Some("8 tokens of 2 sequences, context 1024"));
        assert_eq!(text("chunk").as_deref(), Some("128 tokens, context 4096"));
    }

    #[test]
    fn the_last_one_takes_every_batch() {
        let all = Bucket::all();
        let last = all.last().expect("a bucket");
        assert_eq!([&last.tokens, &last.queries, &last.context, &last.pages], [&ANY; 4]);
        assert!(all.iter().rev().skip(1).all(|b| b.tokens != ANY || b.queries != ANY), "no other is general");
    }

    #[test]
    fn shapes_and_their_buckets() {
        for (tokens, queries, context, name) in [
            (1, 1, 1, "decode-1"),
            (1, 1, 4096, "decode-1"),
            (1, 1, 4097, "decode-1-long"),
            (2, 1, 9999, "decode-8"),
            (8, 1, 9999, "decode-8"),
            (9, 1, 9, "decode-64"),
            (65, 1, 9, "mixed"),
            (2, 2, 2, "verify"),
            (64, 8, 100, "verify"),
            (65, 8, 100, "mixed"),
            (9, 9, 9, "prefill-64"),
            (64, 64, 128, "prefill-64"),
            (64, 64, 129, "chunk"),
            (128, 128, 4096, "chunk"),
            (2048, 128, 4096, "chunk"),
            (65, 65, 65, "prefill-512"),
            (128, 128, 128, "prefill-512"),
            (129, 129, 4096, "prefill-512"),
            (512, 512, 65_536, "prefill-512"),
            (513, 513, 513, "prefill-4096"),
            (9000, 9000, 9000, "prefill-4096"),
            (512, 512, 65_537, "mixed"),
        ] {
            assert_eq!(first(tokens, queries, context), name, "{tokens} tokens, {queries} queries, context {context}");
        }
    }
}
