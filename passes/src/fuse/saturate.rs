//! Saturation: all rules over one e-graph until nothing new appears or a limit is reached. Limits count nodes and iterations, never time.

use super::FuseError;
use super::Numerics;
use super::analysis::{EGraph, What, result_of};
use super::certificate::{Step, Term};
use super::language::Enode;
use super::rules::{Class, Rule, copies};
use deepfuse_ir::premise::{Bindings, Bound};
use deepfuse_ir::{DType, Type};
use egg::{ENodeOrVar, Id, Language, MultiPattern, Pattern, PatternAst, Searcher, Subst, Var};
use std::time::Duration;

/// Most e-nodes of a layer class; a V3 layer saturates with a tenth of it.
pub const NODE_LIMIT: usize = 20_000;
/// Most rounds over all rules; a V3 layer takes six, the last one, in which rows are selected, 19.
pub const ITERATION_LIMIT: usize = 32;

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No rule adds anything.
    Saturated,
    NodeLimit,
    IterationLimit,
}

impl Stop {
    pub fn name(self) -> &'static str {
        match self {
            Self::Saturated => "saturated",
            Self::NodeLimit => "node limit reached",
            Self::IterationLimit => "iteration limit reached",
        }
    }
}

/// What one rule did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleStats {
    /// Matches over all iterations, repeated ones included.
    pub matches: usize,
    /// Applications that added or joined something.
    pub applied: usize,
    /// Matches of which a premise failed, or whose right side is ill-typed.
    pub refused: usize,
    /// Matches beyond the numeric limit.
    pub beyond_numerics: usize,
    /// Search and application, by the clock that the caller gave.
    pub time: Duration,
}

/// A rule with its patterns compiled.
pub struct CompiledRule {
    pub rule: Rule,
    searcher: Box<dyn Searcher<Enode, super::analysis::Typing>>,
    pub lhs: Vec<PatternAst<Enode>>,
    pub equations: Vec<(PatternAst<Enode>, PatternAst<Enode>)>,
    /// Variables of the left side, in order of appearance.
    vars: Vec<Var>,
}

/// Parses the patterns of a rule; a rule that does not parse is a bug, found by the tests.
pub fn compiled(rule: Rule) -> CompiledRule {
    let parse = |text: &str| -> PatternAst<Enode> {
        text.parse().unwrap_or_else(|e| panic!("rule {}: `{text}`: {e}", rule.name))
    };
    let lhs: Vec<_> = rule.lhs.iter().map(|t| parse(t)).collect();
    let equations = rule.equations.iter().map(|(l, r)| (parse(l), parse(r))).collect();
    let searcher = searcher_of(&lhs);
    let mut vars: Vec<Var> = vec![];
    for node in lhs.iter().flat_map(|ast| ast.iter()) {
        if let ENodeOrVar::Var(v) = node
            && !vars.contains(v)
        {
            vars.push(*v);
        }
    }
    CompiledRule { rule, searcher, lhs, equations, vars }
}

/// Searches for all patterns at once.
pub fn searcher_of(patterns: &[PatternAst<Enode>]) -> Box<dyn Searcher<Enode, super::analysis::Typing>> {
    match patterns {
        [one] => Box::new(Pattern::new(one.clone())),
        many => {
            let root = |i: usize| format!("?root{i}").parse::<Var>().expect("a variable has a question mark");
            Box::new(MultiPattern::new(many.iter().enumerate().map(|(i, p)| (root(i), p.clone())).collect()))
        }
    }
}

/// A step with what the report and the extraction need of it.
pub struct Fired {
    pub step: Step,
    /// Nodes that the step added, children as they were.
    pub added: Vec<Enode>,
    /// Nodes of the left side, children as they were.
    pub matched: Vec<Enode>,
    /// Classes of all variables, as they were.
    #[cfg(test)]
    pub subst: Subst,
}

/// What happened.
pub struct Saturation {
    pub iterations: usize,
    pub stop: Stop,
    pub fired: Vec<Fired>,
    /// In the order of the rules.
    pub stats: Vec<RuleStats>,
}

/// Applies `rules` to a fixpoint. `clock` is read around each rule; it has no influence.
///
/// Errors: [`FuseError::Bug`] if a rule joins terms of different types.
pub fn saturate(
    egraph: &mut EGraph,
    rules: &[CompiledRule],
    numerics: Numerics,
    clock: &dyn Fn() -> Duration,
) -> Result<Saturation, FuseError> {
    let mut s = Saturation { iterations: 0, stop: Stop::IterationLimit, fired: vec![], stats: vec![] };
    s.stats.resize(rules.len(), RuleStats::default());
    while s.iterations < ITERATION_LIMIT {
        s.iterations += 1;
        let before = (egraph.total_number_of_nodes(), s.fired.len());
        let mut found = vec![];
        for (rule, stats) in rules.iter().zip(&mut s.stats) {
            let start = clock();
            found.push(rule.searcher.search(egraph));
            stats.time += clock().saturating_sub(start);
        }
        for ((rule, stats), matches) in rules.iter().zip(&mut s.stats).zip(found) {
            let start = clock();
            for subst in matches.into_iter().flat_map(|m| m.substs) {
                stats.matches += 1;
                match apply(egraph, rule, subst, numerics, s.fired.len() as u32)? {
                    Applied::New(fired) => {
                        stats.applied += 1;
                        s.fired.push(*fired);
                    }
                    Applied::Known => {}
                    Applied::Refused => stats.refused += 1,
                    Applied::BeyondNumerics => stats.beyond_numerics += 1,
                }
            }
            stats.time += clock().saturating_sub(start);
        }
        egraph.rebuild();
        if let Some(message) = &egraph.analysis.broken {
            return Err(FuseError::bug(message.clone()));
        }
        if before == (egraph.total_number_of_nodes(), s.fired.len()) {
            s.stop = Stop::Saturated;
            break;
        }
        if egraph.total_number_of_nodes() > NODE_LIMIT {
            s.stop = Stop::NodeLimit;
            break;
        }
    }
    Ok(s)
}

enum Applied {
    New(Box<Fired>),
    Known,
    Refused,
    BeyondNumerics,
}

/// The variables of a match as premises see them.
struct Match<'a> {
    egraph: &'a EGraph,
    subst: &'a Subst,
}

impl Match<'_> {
    fn id(&self, var: &str) -> Option<Id> {
        self.subst.get(var.parse().ok()?).map(|id| self.egraph.find(*id))
    }
}

impl Bindings for Match<'_> {
    fn bound(&self, var: &str) -> Option<Bound<'_>> {
        let facts = &self.egraph[self.id(var)?].data;
        Some(match &facts.what {
            What::Attr(a) => Bound::Attr(a),
            What::Values(_) => Bound::Value { ty: facts.ty()?, constant: facts.constant, parameter: facts.parameter },
        })
    }

    fn same(&self, a: &str, b: &str) -> bool {
        self.id(a).is_some_and(|id| Some(id) == self.id(b))
    }
}

fn typed(egraph: &EGraph, ast: &PatternAst<Enode>, subst: &Subst) -> Option<Vec<What>> {
    let mut all: Vec<What> = vec![];
    for node in ast {
        let next = match node {
            ENodeOrVar::Var(v) => egraph[*subst.get(*v)?].data.what.clone(),
            ENodeOrVar::ENode(n) => result_of(n, &egraph.analysis.inputs, |id| all[usize::from(id)].clone()).ok()?,
        };
        all.push(next);
    }
    Some(all)
}

/// Whether some value inside the pattern is rounded to less than f32, a computed weight too; the root is not inside.
fn rounds(ast: &PatternAst<Enode>, types: &[What]) -> bool {
    let narrow = |ty: &Type| ty.tensor().is_some_and(|t| t.dtype.is_float() && t.dtype != DType::F32);
    let inner = ast.iter().zip(types).take(types.len().saturating_sub(1));
    let mut computed = inner.filter(|(n, _)| matches!(n, ENodeOrVar::ENode(Enode::Op(op, _)) if !copies(*op)));
    computed.any(|(_, what)| matches!(what, What::Values(types) if types.iter().any(narrow)))
}

fn apply(
    egraph: &mut EGraph,
    rule: &CompiledRule,
    mut subst: Subst,
    numerics: Numerics,
    step: u32,
) -> Result<Applied, FuseError> {
    let m = Match { egraph, subst: &subst };
    if !rule.rule.premises.iter().all(|p| p.holds(&m)) {
        return Ok(Applied::Refused);
    }
    let Some(built) = rule.rule.lets.iter().map(|(var, b)| Some((*var, b.value(&m)?))).collect::<Option<Vec<_>>>()
    else {
        return Ok(Applied::Refused);
    };
    for (var, attr) in built {
        let id = egraph.add(Enode::Attr(attr));
        subst.insert(var.parse().expect("a variable has a question mark"), id);
    }
    let Some(class) = class_of(egraph, rule, &subst)? else { return Ok(Applied::Refused) };
    if class > numerics {
        return Ok(Applied::BeyondNumerics);
    }
    let bindings = rule.vars.iter().map(|v| (v.to_string(), term_of(egraph, subst[*v]))).collect();
    let mut matched = vec![];
    for ast in &rule.lhs {
        add(egraph, ast, &subst, &mut |_, enode, _| matched.push(enode));
    }
    let (mut added, mut joined, mut offset) = (vec![], false, 0);
    for (left, right) in &rule.equations {
        let l = add(egraph, left, &subst, &mut |_, _, _| {});
        let mut known = true;
        let r = add(egraph, right, &subst, &mut |node, enode, new| {
            known = !new;
            if new && !matches!(enode, Enode::Attr(_)) {
                added.push((enode, Term::Made { step, node: offset + node }));
            }
        });
        offset += right.len() as u32;
        let union = egraph.union(l, r);
        joined |= union;
        // Both had users: what these make of them is equal too, and no later step may claim to have shown it.
        if union && known {
            egraph.rebuild();
        }
    }
    if added.is_empty() && !joined {
        return Ok(Applied::Known);
    }
    for (enode, term) in &added {
        let id = egraph.lookup(enode.clone()).expect("it was added");
        egraph[id].data.term.get_or_insert_with(|| term.clone());
    }
    let added = added.into_iter().map(|(e, _)| e).collect();
    let step = Step {
        rule: rule.rule.name.into(),
        direction: rule.rule.direction,
        class,
        bindings,
        premises: rule.rule.premises.iter().map(ToString::to_string).collect(),
        used: vec![],
    };
    Ok(Applied::New(Box::new(Fired {
        step,
        added,
        matched,
        #[cfg(test)]
        subst,
    })))
}

/// The numeric class of this application; `None` if a right side is ill-typed.
fn class_of(egraph: &EGraph, rule: &CompiledRule, subst: &Subst) -> Result<Option<Numerics>, FuseError> {
    let mut rounding = false;
    for (left, right) in &rule.equations {
        let (Some(l), Some(r)) = (typed(egraph, left, subst), typed(egraph, right, subst)) else { return Ok(None) };
        let (Some(from), Some(to)) = (l.last(), r.last()) else { return Ok(None) };
        if from != to {
            let message = format!("rule {}: {left} is {from:?}, {right} is {to:?}", rule.rule.name);
            return Err(FuseError::bug(message));
        }
        rounding |= rounds(left, &l) || rounds(right, &r);
    }
    Ok(Some(match rule.rule.class {
        Class::InF32(class) if rounding => class.max(Numerics::Requantizes),
        Class::Always(class) | Class::InF32(class) => class,
    }))
}

fn term_of(egraph: &EGraph, id: Id) -> Term {
    egraph[id].data.term.clone().expect("every class has a term from its birth")
}

/// Adds an instance of a pattern; `see` gets every node with its index and whether it is new.
fn add(egraph: &mut EGraph, ast: &PatternAst<Enode>, subst: &Subst, see: &mut dyn FnMut(u32, Enode, bool)) -> Id {
    let mut ids: Vec<Id> = vec![];
    for (i, node) in ast.iter().enumerate() {
        let id = match node {
            ENodeOrVar::Var(v) => subst[*v],
            ENodeOrVar::ENode(n) => {
                let enode = n.clone().map_children(|c| ids[usize::from(c)]);
                let new = egraph.lookup(enode.clone()).is_none();
                let id = egraph.add(enode.clone());
                see(i as u32, enode, new);
                id
            }
        };
        ids.push(id);
    }
    *ids.last().expect("a pattern has a node")
}
