//! Why a rule did not fire: the match that came nearest, and what it lacked.

use crate::check::pattern::{Pattern, Place, ReadRule};
use crate::check::table::{Node, Table, What};
use crate::check::{Reason, Replay, apply};
use crate::fuse::Numerics;
use deepfuse_ir::premise::Premise;
use indexmap::IndexMap;

/// Most matches that are looked at; a region has tens.
const MATCH_LIMIT: usize = 4096;

/// What became of a rule in a layer class. Ordered: what comes first is nearer to firing.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Both sides are known to be equal.
    Holds,
    /// It applies within the limit and was not applied: it was disabled, or the search hit its limit.
    Left,
    /// It applies, beyond the numeric limit.
    Beyond { class: Numerics },
    /// The left side is there, this premise fails; `values` says what its variables are.
    Premise { premise: Premise, values: String },
    /// The left side is there, the right side cannot be built.
    Refused { reason: String },
    /// A part of the left side is there: so many of its operations, and the first difference.
    Near { found: usize, of: usize, expected: String, instead: String },
    /// Not even the first operation is there.
    Absent { operation: String },
}

impl Outcome {
    /// Smaller is nearer to firing.
    pub fn distance(&self) -> (u8, usize) {
        match self {
            Self::Holds => (0, 0),
            Self::Left => (1, 0),
            Self::Beyond { .. } => (2, 0),
            Self::Premise { .. } => (3, 0),
            Self::Refused { .. } => (4, 0),
            Self::Near { found, of, .. } => (5, of.saturating_sub(*found)),
            Self::Absent { .. } => (6, 0),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Holds => f.write_str("it matches and says nothing new: other steps made both sides equal"),
            Self::Left => f.write_str("it applies; it was disabled, or the search hit its limit"),
            Self::Beyond { class } => write!(f, "it applies as `{}`, beyond --numerics", class.name()),
            Self::Premise { premise, values } => write!(f, "it matches, but {premise} fails: {values}"),
            Self::Refused { reason } => write!(f, "it matches, but {reason}"),
            Self::Near { found, of, expected, instead } => {
                write!(
                    f,
                    "nearest match has {found} of {of} operations: where it asks for {expected} there is {instead}"
                )
            }
            Self::Absent { operation } => write!(f, "no match: there is no {operation}"),
        }
    }
}

/// What became of a rule in a class that no step of it changed.
pub fn why_not(replay: &Replay, rule: &ReadRule, limit: Numerics) -> Outcome {
    let index = Index::of(&replay.table);
    let full = matches(&index, rule);
    let outcomes = full.iter().map(|vars| judge(&replay.table, rule, vars, limit));
    outcomes.min_by_key(Outcome::distance).unwrap_or_else(|| nearest(&index, rule))
}

/// Terms by class.
struct Index<'a> {
    table: &'a Table,
    classes: IndexMap<usize, Vec<usize>>,
}

type Vars = IndexMap<String, usize>;

impl<'a> Index<'a> {
    fn of(table: &'a Table) -> Self {
        let mut classes: IndexMap<usize, Vec<usize>> = IndexMap::new();
        for term in 0..table.nodes.len() {
            classes.entry(table.find(term)).or_default().push(term);
        }
        Self { table, classes }
    }

    /// Terms equal to `term` that a pattern's node could stand for.
    fn like<'b>(&'b self, node: &'b Node, term: usize) -> impl Iterator<Item = &'a Node> + 'b {
        let class = &self.classes[&self.table.find(term)];
        class.iter().map(|t| &self.table.nodes[*t]).filter(|n| n.like(node))
    }

    /// One term of every class.
    fn roots(&self) -> impl Iterator<Item = usize> + '_ {
        self.classes.keys().copied()
    }
}

fn matches(index: &Index<'_>, rule: &ReadRule) -> Vec<Vars> {
    let mut found = vec![Vars::new()];
    for pattern in &rule.lhs {
        let mut next = vec![];
        for vars in &found {
            for root in index.roots() {
                extend(index, pattern, pattern.root(), root, vars, &mut next);
            }
        }
        next.truncate(MATCH_LIMIT);
        found = next;
    }
    found
}

/// All ways in which the pattern below `at` is `term`, given what variables already are.
fn extend(index: &Index<'_>, pattern: &Pattern, at: usize, term: usize, vars: &Vars, found: &mut Vec<Vars>) {
    let term = index.table.find(term);
    match &pattern.nodes[at] {
        Place::Var(v) => match vars.get(v) {
            Some(known) if *known != term => {}
            _ => {
                let mut vars = vars.clone();
                vars.insert(v.clone(), term);
                found.push(vars);
            }
        },
        Place::Node(Node::Attr(a)) if index.table.facts(term).what == What::Attr(a.clone()) => found.push(vars.clone()),
        Place::Node(node) => {
            for candidate in index.like(node, term) {
                let mut partial = vec![vars.clone()];
                for (place, child) in node.children().iter().zip(candidate.children()) {
                    let mut next = vec![];
                    for vars in &partial {
                        extend(index, pattern, *place, *child, vars, &mut next);
                    }
                    partial = next;
                }
                found.extend(partial);
            }
        }
    }
}

/// What is wrong with a full match.
fn judge(table: &Table, rule: &ReadRule, vars: &Vars, limit: Numerics) -> Outcome {
    let mut table = table.clone();
    let before = (table.nodes.len(), table.classes());
    match apply(&mut table, rule, vars.clone()) {
        Ok(done) if done.class > limit => Outcome::Beyond { class: done.class },
        Ok(_) if (table.nodes.len(), table.classes()) == before => Outcome::Holds,
        Ok(_) => Outcome::Left,
        Err(Reason::Premise(premise)) => Outcome::Premise { premise, values: values(&table, &premise, vars) },
        Err(reason) => Outcome::Refused { reason: reason.to_string() },
    }
}

/// `?g is bf16[8, 16], ?u is f32[8, 16]` for the variables of a premise.
fn values(table: &Table, premise: &Premise, vars: &Vars) -> String {
    let text = premise.to_string();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '?' && c != '_').filter(|w| w.starts_with('?'));
    let told = words.filter_map(|v| Some(format!("{v} is {}", describe(table, *vars.get(v)?))));
    told.collect::<Vec<_>>().join(", ")
}

/// `softmax : bf16[T, 16]`, `"tnd,xnd->tnx"`
fn describe(table: &Table, term: usize) -> String {
    let class = table.find(term);
    match &table.facts(class).what {
        What::Attr(a) => format!("`{a}`"),
        What::Values(types) => {
            let types: Vec<String> = types.iter().map(ToString::to_string).collect();
            let name = match &table.nodes[class] {
                Node::Input(_) if table.facts(class).constant => "a weight".to_owned(),
                Node::Input(_) => "an input".to_owned(),
                Node::Proj([_, node]) => format!("a result of {}", operation_name(&table.nodes[*node])),
                node => operation_name(node),
            };
            format!("{name} : {}", types.join(", "))
        }
    }
}

/// How much of a pattern is there.
#[derive(Clone, Default)]
struct Part {
    /// Operations found.
    found: usize,
    /// What was asked for, what is there.
    miss: Option<(String, String)>,
    vars: Vec<(String, usize)>,
}

fn nearest(index: &Index<'_>, rule: &ReadRule) -> Outcome {
    let operation = |p: &&Place| matches!(p, Place::Node(Node::Op(..) | Node::Proj(_)));
    let of = rule.lhs.iter().map(|p| p.nodes.iter().filter(operation).count()).sum();
    let best = |pattern: &Pattern| {
        let parts = index.roots().map(|root| part(index, pattern, pattern.root(), root));
        parts.reduce(|best, next| if next.found > best.found { next } else { best }).unwrap_or_default()
    };
    let parts: Vec<Part> = rule.lhs.iter().map(best).collect();
    let found = parts.iter().map(|p| p.found).sum();
    if found == 0 {
        return Outcome::Absent {
            operation: first_operation(&rule.lhs[0]).map_or_else(|| rule.lhs[0].text.into(), operation_name),
        };
    }
    let miss = parts.iter().find_map(|p| p.miss.clone());
    let (expected, instead) =
        miss.or_else(|| conflict(index.table, &parts)).unwrap_or_else(|| ("one match".into(), "none".into()));
    Outcome::Near { found, of, expected, instead }
}

/// The operation at the root, below projections.
fn first_operation(pattern: &Pattern) -> Option<&Node> {
    let mut at = pattern.root();
    while let Place::Node(Node::Proj([_, node])) = &pattern.nodes[at] {
        at = *node;
    }
    if let Place::Node(node) = &pattern.nodes[at] { Some(node) } else { None }
}

/// What a pattern asks for at a place: an operation, an attribute.
fn asked(pattern: &Pattern, mut at: usize) -> String {
    while let Place::Node(Node::Proj([_, node])) = &pattern.nodes[at] {
        at = *node;
    }
    match &pattern.nodes[at] {
        Place::Node(node @ Node::Op(..)) => operation_name(node),
        _ => format!("`{}`", pattern.describe(at)),
    }
}

/// `softmax`; with the number of operands if there may be more or fewer.
fn operation_name(node: &Node) -> String {
    match node {
        Node::Op(op, _) if op.arity().start() != op.arity().end() => {
            let n = node.operands().len();
            format!("`{}` of {n} operand{}", op.name(), if n == 1 { "" } else { "s" })
        }
        _ => format!("`{}`", node.name()),
    }
}

/// The variable that would stand for two values.
fn conflict(table: &Table, parts: &[Part]) -> Option<(String, String)> {
    let mut seen: IndexMap<&str, usize> = IndexMap::new();
    for (var, class) in parts.iter().flat_map(|p| &p.vars) {
        let first = *seen.entry(var).or_insert(*class);
        if first != *class {
            let two = format!("{} and {}", describe(table, first), describe(table, *class));
            return Some((format!("one `{var}`"), two));
        }
    }
    None
}

fn part(index: &Index<'_>, pattern: &Pattern, at: usize, term: usize) -> Part {
    let missing = || Some((asked(pattern, at), describe(index.table, term)));
    match &pattern.nodes[at] {
        Place::Var(v) => Part { vars: vec![(v.clone(), index.table.find(term))], ..Part::default() },
        Place::Node(Node::Attr(a)) => {
            let same = index.table.facts(term).what == What::Attr(a.clone());
            Part { miss: if same { None } else { missing() }, ..Part::default() }
        }
        Place::Node(node) => {
            let whole = |candidate: &Node| {
                let mut sum = Part { found: 1, ..Part::default() };
                for (place, child) in node.children().iter().zip(candidate.children()) {
                    let below = part(index, pattern, *place, *child);
                    sum.found += below.found;
                    sum.miss = sum.miss.or(below.miss);
                    sum.vars.extend(below.vars);
                }
                sum
            };
            let parts = index.like(node, term).map(whole);
            let best = parts.reduce(|best, next| {
                if (next.found, next.miss.is_none()) > (best.found, best.miss.is_none()) { next } else { best }
            });
            best.unwrap_or_else(|| Part { miss: missing(), ..Part::default() })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::canonicalize;
    use crate::check::pattern::read_rules;
    use crate::fuse::{FuseOptions, fuse};
    use deepfuse_ir::Bucket;

    const MLP: &str = "graph @mlp(%x: bf16[T, 16], weight %gate: bf16[8, 16] @ \"gate\", weight %up: bf16[8, 16] @ \"up\") -> bf16[T, 8] {
        %0 = linear %x, %gate : bf16[T, 8]
        %1 = silu %0 : bf16[T, 8]
        %2 = linear %x, %up : bf16[T, 8]
        %3 = mul %1, %2 : bf16[T, 8]
        return %3
    }";

    /// What became of a rule in a graph of one region.
    fn outcome(text: &str, rule: &str, numerics: Numerics, disabled: &[&str]) -> String {
        let graph = canonicalize(deepfuse_ir::text::parse(text).unwrap()).unwrap();
        let options =
            FuseOptions { disabled: disabled.iter().map(ToString::to_string).collect(), ..FuseOptions::new(numerics) };
        let fused = fuse(&graph, &deepfuse_ir::cost::Roofline::SMALL_SERVER, &[Bucket::decode()], &options).unwrap();
        let rules = read_rules();
        let replay = Replay::of(&fused.certificate.classes[0], 0, numerics, &rules).unwrap();
        why_not(&replay, rules.iter().find(|r| r.rule.name == rule).unwrap(), numerics).to_string()
    }

    #[test]
    fn reasons_are_told() {
        let requantizes = Numerics::Requantizes;
        assert!(outcome(MLP, "swiglu", requantizes, &[]).contains("says nothing new"));
        assert!(outcome(MLP, "swiglu", requantizes, &["swiglu"]).contains("it was disabled"));
        assert!(outcome(MLP, "swiglu", Numerics::Exact, &[]).contains("as `requantizes`, beyond --numerics"));
        assert_eq!(outcome(MLP, "add-norm", requantizes, &[]), "no match: there is no `rms_norm` of 2 operands");
        let wide = MLP.replace("bf16[8, 16] @ \"up\"", "f32[8, 16] @ \"up\"");
        let told = outcome(&wide, "swiglu", requantizes, &[]);
        assert_eq!(told, "it matches, but ill-typed: swiglu: swiglu: gate bf16[8, 16] and up f32[8, 16] differ");
        let other = MLP.replace("silu %0", "sigmoid %0");
        let told = outcome(&other, "swiglu", requantizes, &["all"]);
        let near = "nearest match has 2 of 4 operations: where it asks for `silu` there is `sigmoid` : bf16[T, 8]";
        assert_eq!(told, near);
        let two = MLP
            .replace("linear %x, %up", "linear %y, %up")
            .replace("%x: bf16[T, 16],", "%x: bf16[T, 16], %y: bf16[T, 16],");
        let told = outcome(&two, "swiglu", requantizes, &["all"]);
        assert!(told.contains("4 of 4 operations: where it asks for one `?x` there is an input"), "{told}");
    }
}
