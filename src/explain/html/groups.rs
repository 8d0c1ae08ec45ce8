//! Which operations of a plain region became which kernels of a fused one.

use super::super::ReplayedClass;
use deepfuse_ir::{Graph, ValueId};
use indexmap::{IndexMap, IndexSet};

/// Nodes of a fused region that together compute values of the plain one, and the nodes of the plain region that did.
///
/// Two fused nodes belong together if a value goes from one to the other that the plain region does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Indices of fused nodes; those that depend on weights alone are left out.
    pub fused: Vec<usize>,
    /// Indices of plain nodes.
    pub plain: Vec<usize>,
    /// Steps that built the fused nodes, the first one first; none: the nodes are as they were.
    pub steps: Vec<usize>,
}

/// The groups of a form, in the order of its nodes. `None` if the certificate does not know one of its nodes.
pub fn groups(class: &ReplayedClass<'_>, fused: &Graph) -> Option<Vec<Group>> {
    let (plain, table) = (&class.replay.plain, &class.replay.table);
    let terms = class.replay.terms(fused).ok()?;
    let class_of = |v: ValueId| table.find(terms.values[v.index()]);
    let mut in_plain: IndexMap<usize, Vec<ValueId>> = IndexMap::new();
    for (v, term) in class.replay.values.iter().enumerate() {
        in_plain.entry(table.find(*term)).or_default().push(ValueId(v as u32));
    }
    let mut groups = joined(fused, &|v| in_plain.contains_key(&class_of(v)));
    let in_fused: IndexSet<usize> = (0..fused.value_count() as u32).map(|v| class_of(ValueId(v))).collect();
    let constant = plain.constant_values();
    let mut taken: IndexSet<usize> = IndexSet::new();
    for group in &mut groups {
        let results = group.fused.iter().flat_map(|n| fused.nodes[*n].results.iter().map(|v| class_of(*v)));
        let mut open: Vec<ValueId> = results.filter_map(|c| in_plain.get(&c)).flatten().copied().collect();
        while let Some(v) = open.pop() {
            let Some((at, _)) = plain.definition(v).filter(|_| !constant[v.index()]) else { continue };
            if !taken.insert(at) {
                continue;
            }
            group.plain.push(at);
            let known = |v: &ValueId| in_fused.contains(&table.find(class.replay.values[v.index()]));
            open.extend(plain.nodes[at].operands.iter().copied().filter(|v| !known(v)));
        }
        group.plain.sort_unstable();
        let steps: IndexSet<usize> = group.fused.iter().flat_map(|n| class.steps(terms.nodes[*n])).collect();
        group.steps = steps.into_iter().collect();
        group.steps.sort_unstable();
    }
    Some(groups)
}

/// Nodes joined over values that are not `known` outside.
fn joined(fused: &Graph, known: &dyn Fn(ValueId) -> bool) -> Vec<Group> {
    let constant = fused.constant_values();
    let mut parent: Vec<usize> = (0..fused.nodes.len()).collect();
    let find = |parent: &[usize], mut n: usize| {
        while parent[n] != n {
            n = parent[n];
        }
        n
    };
    for (at, node) in fused.nodes.iter().enumerate() {
        for v in node.operands.iter().filter(|v| !constant[v.index()] && !known(**v)) {
            if let Some((from, _)) = fused.definition(*v) {
                let (a, b) = (find(&parent, from), find(&parent, at));
                parent[a.max(b)] = a.min(b);
            }
        }
    }
    let mut groups: IndexMap<usize, Group> = IndexMap::new();
    for (at, node) in fused.nodes.iter().enumerate() {
        if node.results.iter().any(|v| !constant[v.index()]) {
            groups.entry(find(&parent, at)).or_default().fused.push(at);
        }
    }
    groups.into_values().collect()
}
