//! Rules that demand less than a rule of ours does: each is one slip of its author away from it. A near-miss must notice.

use crate::fuse::rules::Rule;
use std::fmt;

/// What a mutant does not demand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// A premise.
    Premise(String),
    /// That a variable which stands twice in a pattern is one value: the same rows, experts, pages, positions, width, eps.
    Same { var: String, place: String },
    /// That an attribute is this one: the axis, the start of a range, a factor of 1.
    Literal { value: String, place: String },
    /// That no quantization stands in front of an operand which may have codes.
    Uncoded { place: String },
    /// That an operation stands there, or that it is not one like it.
    Operation { op: String, place: String },
}

impl Demand {
    pub const KINDS: [&str; 5] =
        ["premises", "equal variables", "attributes", "quantizations in between", "operations"];

    /// Index into [`Demand::KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Premise(_) => 0,
            Self::Same { .. } => 1,
            Self::Literal { .. } => 2,
            Self::Uncoded { .. } => 3,
            Self::Operation { .. } => 4,
        }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Premise(p) => write!(f, "{p}"),
            Self::Same { var, place } => write!(f, "{var} at {place}"),
            Self::Literal { value, place } => write!(f, "{value} at {place}"),
            Self::Uncoded { place } => write!(f, "no quantize at {place}"),
            Self::Operation { op, place } => write!(f, "{op} at {place}"),
        }
    }
}

/// A rule that demands less.
pub struct Mutant {
    pub rule: Rule,
    pub without: Demand,
}

/// All mutants of a rule. A variable that two patterns share is one demand only where it stands twice in one of them: every equation
/// holds for itself.
pub fn mutants(rule: &Rule) -> Vec<Mutant> {
    let mut all: Vec<Mutant> = (0..rule.premises.len())
        .map(|at| {
            let mut weaker = rule.clone();
            let without = Demand::Premise(weaker.premises.remove(at).to_string());
            Mutant { rule: weaker, without }
        })
        .collect();
    for (p, pattern) in rule.lhs.iter().enumerate() {
        let words = words(pattern);
        for (at, w) in words.iter().enumerate() {
            let mut with =
                |text: &str, without: Demand| all.push(Mutant { rule: replaced(rule, p, at, text), without });
            let place = w.place.clone();
            match w.what {
                What::Variable => {
                    let others = words.iter().enumerate().filter(|(i, o)| *i != at && o.text == w.text);
                    let (before, after) =
                        others.fold((0, 0), |(b, a), (i, _)| if i < at { (b + 1, a) } else { (b, a + 1) });
                    // Of two that are equal, either may be another one.
                    if before + after >= 2 || before == 1 {
                        with("?other", Demand::Same { var: w.text.clone(), place });
                    }
                }
                What::Attribute => with("?other", Demand::Literal { value: w.text.clone(), place }),
                What::Term => {
                    if w.takes_codes() {
                        with(&format!("(quantize {} ?codes)", w.text), Demand::Uncoded { place: place.clone() });
                    }
                    let op = w.text[1..].split(' ').next().unwrap_or("");
                    if let Some((_, like)) = ALIKE.iter().find(|(name, _)| *name == op) {
                        let demand = Demand::Operation { op: format!("{op}, not {like}"), place: place.clone() };
                        with(&w.text.replacen(op, like, 1), demand);
                    }
                    if let (false, Some(operand)) = (place.is_empty(), first_operand(&w.text)) {
                        with(&operand, Demand::Operation { op: op.to_owned(), place });
                    }
                }
            }
        }
    }
    all.retain(|m| is_bound(&m.rule));
    all
}

/// Operations of the same operands.
const ALIKE: [(&str, &str); 5] =
    [("silu", "sigmoid"), ("sigmoid", "softmax"), ("softmax", "sigmoid"), ("add", "mul"), ("mul", "add")];

/// The first operand of a term; none of a projection, whose first argument is a number.
fn first_operand(term: &str) -> Option<String> {
    let op = term[1..].split(' ').next()?;
    let first = words(term).into_iter().find(|w| w.place == format!("{op}/0"))?;
    (op != "proj" && !matches!(first.what, What::Attribute)).then_some(first.text)
}

/// Whether all that the right sides, premises and computed attributes use is found on the left.
fn is_bound(rule: &Rule) -> bool {
    fn variables(text: &str) -> impl Iterator<Item = &str> {
        text.split([' ', '(', ')', ',', '{', '}']).filter(|w| w.starts_with('?'))
    }
    let bound: Vec<&str> = rule.lhs.iter().flat_map(|l| variables(l)).collect();
    let made = |v: &str| rule.lets.iter().any(|(name, _)| *name == v);
    let asked = rule.premises.iter().map(ToString::to_string).chain(rule.lets.iter().map(|(_, b)| b.to_string()));
    let rights = rule.equations.iter().map(|(_, right)| (*right).to_owned());
    asked.chain(rights).all(|text| variables(&text).all(|v| made(v) || bound.contains(&v)))
}

/// The rule with one word of one of its patterns replaced. Equations of terms inside the pattern are left out: they state the old one.
fn replaced(rule: &Rule, pattern: usize, word: usize, by: &str) -> Rule {
    let old = rule.lhs[pattern];
    let Word { from, text, .. } = &words(old)[word];
    let new = format!("{}{by}{}", &old[..*from], &old[from + text.len()..]);
    let new: &'static str = Box::leak(new.into_boxed_str());
    let mut weaker = rule.clone();
    weaker.lhs[pattern] = new;
    weaker.equations.retain(|(left, _)| rule.lhs.contains(left));
    weaker.equations.iter_mut().filter(|(left, _)| *left == old).for_each(|(left, _)| *left = new);
    weaker
}

/// The rule with two neighbouring variables of one right side exchanged, for every such pair: gate and up, positions and sequences.
pub fn exchanged(rule: &Rule) -> Vec<Mutant> {
    let mut all = vec![];
    for (e, (_, right)) in rule.equations.iter().enumerate() {
        let words = words(right);
        let variables: Vec<&Word> = words.iter().filter(|w| matches!(w.what, What::Variable)).collect();
        for pair in variables.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let end = a.from + a.text.len();
            if a.text == b.text || right[end..b.from].trim() != "" {
                continue;
            }
            let (before, after) = (&right[..a.from], &right[b.from + b.text.len()..]);
            let text = format!("{before}{} {}{after}", b.text, a.text);
            let mut wrong = rule.clone();
            wrong.equations[e].1 = Box::leak(text.into_boxed_str());
            let without = Demand::Same { var: format!("{} before {}", a.text, b.text), place: a.place.clone() };
            all.push(Mutant { rule: wrong, without });
        }
    }
    all
}

enum What {
    Variable,
    Attribute,
    Term,
}

/// An argument in a pattern.
struct Word {
    what: What,
    text: String,
    /// Byte of the pattern at which it begins.
    from: usize,
    /// Operations around it with the number of the argument: `mul/0 silu/0`; nothing for the whole pattern.
    place: String,
}

impl Word {
    /// Whether it is an operand that may be int8 rows in an operation which gives floats.
    fn takes_codes(&self) -> bool {
        let around = self.place.split(' ').next_back().unwrap_or("");
        ["linear/0", "linear_f32/0", "swiglu/0", "expert_linear/0", "expert_swiglu/0", "expert_down/0"]
            .contains(&around)
    }
}

/// All arguments of a pattern, terms included, and the pattern itself.
fn words(pattern: &str) -> Vec<Word> {
    // Operations that are open: name, arguments so far, where the term began.
    let mut open: Vec<(&str, usize, usize)> = vec![];
    let place = |open: &[(&str, usize, usize)]| -> String {
        let parts: Vec<String> = open.iter().map(|(op, n, _)| format!("{op}/{n}")).collect();
        parts.join(" ")
    };
    let mut all = vec![];
    let mut rest = 0;
    while rest < pattern.len() {
        let tail = &pattern[rest..];
        let len = match tail.as_bytes()[0] {
            b' ' => 1,
            b'(' => {
                let name = tail[1..].split([' ', ')']).next().unwrap_or("");
                open.push((name, 0, rest));
                1 + name.len()
            }
            b')' => {
                let (_, _, from) = open.pop().expect("parentheses match");
                let text = pattern[from..=rest].to_owned();
                all.push(Word { what: What::Term, text, from, place: place(&open) });
                if let Some((_, n, _)) = open.last_mut() {
                    *n += 1;
                }
                1
            }
            first => {
                let text = tail.split([' ', ')']).next().unwrap_or("");
                let what = if first == b'?' { What::Variable } else { What::Attribute };
                all.push(Word { what, text: text.to_owned(), from: rest, place: place(&open) });
                if let Some((_, n, _)) = open.last_mut() {
                    *n += 1;
                }
                text.len()
            }
        };
        rest += len;
    }
    all
}

#[test]
fn arguments_know_their_place() {
    let found: Vec<String> =
        words("(mul (silu (linear ?x ?g)) (scale ?x 1.0))").iter().map(|w| format!("{} {}", w.place, w.text)).collect();
    let expected = [
        "mul/0 silu/0 linear/0 ?x",
        "mul/0 silu/0 linear/1 ?g",
        "mul/0 silu/0 (linear ?x ?g)",
        "mul/0 (silu (linear ?x ?g))",
        "mul/1 scale/0 ?x",
        "mul/1 scale/1 1.0",
        "mul/1 (scale ?x 1.0)",
        " (mul (silu (linear ?x ?g)) (scale ?x 1.0))",
    ];
    assert_eq!(found, expected);
}
