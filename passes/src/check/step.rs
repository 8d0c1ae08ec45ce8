//! One application of a rule to a table of terms.

use super::pattern::{Pattern, Place, ReadRule};
use super::table::{Node, Table, What};
use crate::fuse::rules::{Class, copies};
use crate::fuse::{Numerics, Step, Term};
use deepfuse_ir::premise::{Bindings, Bound, Premise};
use deepfuse_ir::{DType, Type};
use indexmap::IndexMap;
use std::collections::HashMap;

/// Why a step or a region is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("there is no rule `{0}`")]
    NoRule(String),
    #[error("binds `{found}`, the rule has `{expected}`")]
    Variables { found: String, expected: String },
    #[error("{var} is `{term}`, which no step before has made")]
    Term { var: String, term: String },
    #[error("`{0}` of the left side is no known term")]
    Left(String),
    #[error("states the premises `{found}`, the rule has `{expected}`")]
    Premises { found: String, expected: String },
    #[error("the premise {0} does not hold")]
    Premise(Premise),
    #[error("{0} cannot be computed")]
    Let(String),
    #[error("ill-typed: {0}")]
    Type(String),
    #[error("the sides have different types: {0}")]
    Sides(String),
    #[error("stated to be `{}`, it is `{}`", found.name(), expected.name())]
    Class { found: Numerics, expected: Numerics },
    #[error("`{}` is beyond the limit `{}`", class.name(), limit.name())]
    Beyond { class: Numerics, limit: Numerics },
    #[error("the step proves nothing that was not known")]
    NoEffect,
    #[error("the regions of all classes are not 0, 1, ..")]
    Regions,
    #[error("the buckets are not those of the first class, or a step names others")]
    Buckets,
    #[error("the graph is malformed: {0}")]
    Graph(String),
    #[error("parameters or outputs are not those of the plain region")]
    Signature,
    #[error("`{0}` is not proved to be part of the region")]
    Node(String),
    #[error("output {0} is not proved equal to that of the plain region")]
    Output(usize),
}

/// Variables of an application and the terms that they stand for.
pub type Vars = IndexMap<String, usize>;

/// What an application showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    pub class: Numerics,
    /// Terms of the left side, attributes left out.
    pub matched: Vec<usize>,
    /// Operations of the right sides, by place: what a certificate may call them by.
    pub right: Vec<(u32, usize)>,
}

/// The terms that a step's variables stand for.
pub fn vars_of(step: &Step, rule: &ReadRule, table: &mut Table, names: &HashMap<Term, usize>) -> Result<Vars, Reason> {
    if !step.bindings.keys().eq(rule.vars.iter()) {
        let found = step.bindings.keys().cloned().collect::<Vec<_>>().join(" ");
        return Err(Reason::Variables { found, expected: rule.vars.join(" ") });
    }
    let mut vars = Vars::new();
    for (var, term) in &step.bindings {
        let known = match term {
            Term::Attr(a) => Some(table.add(Node::Attr(a.clone())).map_err(Reason::Type)?),
            named => names.get(named).copied(),
        };
        vars.insert(var.clone(), known.ok_or_else(|| Reason::Term { var: var.clone(), term: term.to_string() })?);
    }
    Ok(vars)
}

/// Applies a rule: the left side must be known, the premises must hold. The table is changed only if nothing is wrong but the types.
///
/// Errors: [`Reason`].
pub fn apply(table: &mut Table, rule: &ReadRule, mut vars: Vars) -> Result<Application, Reason> {
    let mut matched = vec![];
    for pattern in &rule.lhs {
        known(table, pattern, &vars, &mut matched)?;
    }
    let bindings = Match { table, vars: &vars };
    if let Some(p) = rule.rule.premises.iter().find(|p| !p.holds(&bindings)) {
        return Err(Reason::Premise(*p));
    }
    let built = |(var, build): &(&str, deepfuse_ir::premise::Build)| {
        let attr = build.value(&bindings).ok_or_else(|| Reason::Let(format!("{var} = {build}")))?;
        Ok(((*var).to_owned(), attr))
    };
    let built = rule.rule.lets.iter().map(built).collect::<Result<Vec<_>, Reason>>()?;
    for (var, attr) in built {
        vars.insert(var, table.add(Node::Attr(attr)).map_err(Reason::Type)?);
    }
    let (mut rounding, mut right, mut offset, mut pairs) = (false, vec![], 0, vec![]);
    for (l, r) in &rule.equations {
        let (left, made) = (instance(table, l, &vars)?, instance(table, r, &vars)?);
        let (a, b) = (left[l.root()], made[r.root()]);
        if table.facts(a).what != table.facts(b).what {
            return Err(Reason::Sides(format!("{:?}, {:?}", table.facts(a).what, table.facts(b).what)));
        }
        rounding |= rounds(table, l, &left) || rounds(table, r, &made);
        let operation = |p: &Place| matches!(p, Place::Node(Node::Op(..) | Node::Proj(_)));
        right.extend((0..).zip(&made).filter(|(i, _)| operation(&r.nodes[*i as usize])).map(|(i, t)| (offset + i, *t)));
        offset += r.nodes.len() as u32;
        pairs.push((a, b));
    }
    for (a, b) in pairs {
        table.join(a, b);
    }
    let class = match rule.rule.class {
        Class::InF32(class) if rounding => class.max(Numerics::Requantizes),
        Class::Always(class) | Class::InF32(class) => class,
    };
    Ok(Application { class, matched, right })
}

/// Finds the terms of a left side.
fn known(table: &Table, pattern: &Pattern, vars: &Vars, found: &mut Vec<usize>) -> Result<(), Reason> {
    let mut terms: Vec<Option<usize>> = vec![];
    for (at, place) in pattern.nodes.iter().enumerate() {
        terms.push(match place {
            Place::Var(v) => Some(vars[v]),
            Place::Node(n) => {
                // An attribute that no term has is told by the operation that has it.
                let children: Option<Vec<usize>> = n.children().iter().map(|c| terms[*c]).collect();
                let term = children.and_then(|_| table.lookup(&n.map(|c| terms[c].unwrap_or_default())));
                if term.is_none() && !matches!(n, Node::Attr(_)) {
                    return Err(Reason::Left(pattern.describe(at)));
                }
                found.extend(term.filter(|_| !matches!(n, Node::Attr(_))));
                term
            }
        });
    }
    Ok(())
}

/// Adds a pattern's instance; the term of every place.
fn instance(table: &mut Table, pattern: &Pattern, vars: &Vars) -> Result<Vec<usize>, Reason> {
    let mut terms: Vec<usize> = vec![];
    for place in &pattern.nodes {
        terms.push(match place {
            Place::Var(v) => vars[v],
            Place::Node(n) => table.add(n.map(|c| terms[c])).map_err(Reason::Type)?,
        });
    }
    Ok(terms)
}

/// Whether some value inside the pattern is rounded to less than f32, a computed weight too; the root is not inside.
fn rounds(table: &Table, pattern: &Pattern, terms: &[usize]) -> bool {
    let narrow = |ty: &Type| ty.tensor().is_some_and(|t| t.dtype.is_float() && t.dtype != DType::F32);
    (0..pattern.root()).any(|i| {
        let computed = matches!(&pattern.nodes[i], Place::Node(Node::Op(op, _)) if !copies(*op));
        computed && matches!(&table.facts(terms[i]).what, What::Values(types) if types.iter().any(narrow))
    })
}

/// Variables as premises see them.
struct Match<'a> {
    table: &'a Table,
    vars: &'a Vars,
}

impl Bindings for Match<'_> {
    fn bound(&self, var: &str) -> Option<Bound<'_>> {
        let facts = self.table.facts(*self.vars.get(var)?);
        Some(match &facts.what {
            What::Attr(a) => Bound::Attr(a),
            What::Values(types) if types.len() == 1 => {
                Bound::Value { ty: &types[0], constant: facts.constant, parameter: facts.parameter }
            }
            What::Values(_) => return None,
        })
    }

    fn same(&self, a: &str, b: &str) -> bool {
        let term = |v: &str| self.vars.get(v).map(|t| self.table.find(*t));
        term(a).is_some() && term(a) == term(b)
    }
}
