//! How much searching a rule takes, counted instead of timed.

use super::classes::classes;
use super::language::Enode;
use super::region::plain_region;
use super::saturate::{CompiledRule, saturate, searcher_of};
use super::{FuseError, FuseOptions, enabled_rules};
use deepfuse_ir::Graph;
use egg::{ENodeOrVar, Id, Language, PatternAst, RecExpr};
use indexmap::IndexMap;
use std::time::Duration;

/// The search of one rule, over all layer classes of a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleWork {
    /// Partial matches in the saturated e-graph: those of the first node of the rule's patterns, of the first two, and so on. A search from the
    /// roots down visits as many nodes.
    pub tried: usize,
    /// Matches over all iterations.
    pub matches: usize,
}

/// The work of every rule that is not disabled; the two directions of an identity are counted together.
///
/// Errors: [`FuseError`].
pub fn work(graph: &Graph, options: &FuseOptions) -> Result<IndexMap<String, RuleWork>, FuseError> {
    let rules = enabled_rules(options)?;
    let mut all: IndexMap<String, RuleWork> = IndexMap::new();
    for class in classes(graph) {
        let mut region = plain_region(&class.graph);
        let done = saturate(&mut region.egraph, &rules, options.numerics, &|| Duration::ZERO)?;
        for (rule, stats) in rules.iter().zip(&done.stats) {
            let sum = all.entry(rule.rule.name.to_owned()).or_default();
            sum.matches += stats.matches;
            for patterns in prefixes(rule) {
                let searcher = searcher_of(&patterns);
                sum.tried += searcher.search(&region.egraph).iter().map(|m| m.substs.len()).sum::<usize>();
            }
        }
    }
    Ok(all)
}

/// The left side of a rule up to its first node, its first two nodes, and so on; a variable of its own stands for what comes later.
fn prefixes(rule: &CompiledRule) -> Vec<Vec<PatternAst<Enode>>> {
    let mut all = vec![];
    for (at, ast) in rule.lhs.iter().enumerate() {
        let nodes = preorder(ast);
        for n in 1..=nodes.len() {
            all.push(rule.lhs[..at].iter().cloned().chain([cut(ast, &nodes[..n])]).collect());
        }
    }
    all
}

/// The nodes that are no variables, parents first.
fn preorder(ast: &PatternAst<Enode>) -> Vec<Id> {
    let (mut nodes, mut open) = (vec![], vec![Id::from(ast.len() - 1)]);
    while let Some(id) = open.pop() {
        if let ENodeOrVar::ENode(n) = &ast[id] {
            nodes.push(id);
            open.extend(n.children().iter().rev());
        }
    }
    nodes
}

/// The pattern with variables in place of the nodes that are not kept.
fn cut(ast: &PatternAst<Enode>, kept: &[Id]) -> PatternAst<Enode> {
    fn copy(ast: &PatternAst<Enode>, id: Id, kept: &[Id], out: &mut RecExpr<ENodeOrVar<Enode>>) -> Id {
        let node = match &ast[id] {
            ENodeOrVar::ENode(n) if kept.contains(&id) => {
                ENodeOrVar::ENode(n.clone().map_children(|c| copy(ast, c, kept, out)))
            }
            ENodeOrVar::ENode(_) => {
                let var = format!("?cut{id}").parse().expect("a variable has a question mark");
                ENodeOrVar::Var(var)
            }
            var @ ENodeOrVar::Var(_) => var.clone(),
        };
        out.add(node)
    }
    let mut out = RecExpr::default();
    copy(ast, Id::from(ast.len() - 1), kept, &mut out);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fuse::rules;
    use crate::fuse::saturate::compiled;

    #[test]
    fn prefixes_grow_by_a_node_at_a_time() {
        let swiglu = rules::all().into_iter().find(|r| r.name == "swiglu").unwrap();
        let written: Vec<String> = prefixes(&compiled(swiglu.clone())).iter().map(|p| p[0].to_string()).collect();
        let nodes = swiglu.lhs[0].matches('(').count();
        assert!(written.len() >= nodes && nodes > 2, "{written:?}");
        assert_eq!(written.last().unwrap(), swiglu.lhs[0]);
        for (n, text) in written.iter().take(nodes).enumerate() {
            assert_eq!(text.matches('(').count(), n + 1, "{text}");
        }
    }

    #[test]
    fn partial_matches_are_counted() {
        let text = "graph @g(%a: f32[T, 8], %b: f32[T, 8]) -> f32[T, 8] {\n  %0 = silu %a : f32[T, 8]\n  \
                    %1 = mul %0, %b : f32[T, 8]\n  %2 = mul %1, %b : f32[T, 8]\n  return %2\n}\n";
        let graph = deepfuse_ir::text::parse(text).unwrap();
        let all = work(&graph, &FuseOptions::new(crate::fuse::Numerics::Requantizes)).unwrap();
        // Of the two products one is of a silu, which is of no linear.
        let swiglu = all["swiglu"];
        assert_eq!((swiglu.tried, swiglu.matches), (3, 0));
        assert_eq!(all["add-norm"].tried, 0);
    }
}
