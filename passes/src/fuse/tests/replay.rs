//! A certificate is complete: replayed without an e-graph, it leads from the plain region to every fused one.

use super::*;
use crate::fuse::analysis::{InputFacts, What, result_of};
use deepfuse_ir::premise::{Bindings, Bound};
use deepfuse_ir::{Graph, ParamKind};

/// Terms and which of them are equal.
#[derive(Default)]
struct Table {
    inputs: Vec<InputFacts>,
    nodes: Vec<Enode>,
    parent: Vec<usize>,
    named: HashMap<Term, usize>,
}

impl Table {
    fn find(&self, mut i: usize) -> usize {
        while self.parent[i] != i {
            i = self.parent[i];
        }
        i
    }

    fn canonical(&self, e: &Enode) -> Enode {
        e.clone().map_children(|c| Id::from(self.find(usize::from(c))))
    }

    fn lookup(&self, e: &Enode) -> Option<usize> {
        let e = self.canonical(e);
        (0..self.nodes.len()).find(|i| self.canonical(&self.nodes[*i]) == e).map(|i| self.find(i))
    }

    fn add(&mut self, e: Enode) -> usize {
        self.lookup(&e).unwrap_or_else(|| {
            self.nodes.push(e);
            self.parent.push(self.nodes.len() - 1);
            self.nodes.len() - 1
        })
    }

    /// Joins two terms, and all that become equal by it.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[a.max(b)] = a.min(b);
        let mut seen: HashMap<Enode, usize> = HashMap::new();
        for i in 0..self.nodes.len() {
            let first = *seen.entry(self.canonical(&self.nodes[i])).or_insert(i);
            if self.find(first) != self.find(i) {
                return self.join(first, i);
            }
        }
    }

    fn what(&self, i: usize) -> What {
        let i = self.find(i);
        result_of(&self.nodes[i], &self.inputs, |id| self.what(usize::from(id))).unwrap()
    }

    fn constant(&self, i: usize) -> bool {
        match &self.nodes[self.find(i)] {
            Enode::Attr(_) => true,
            Enode::Input(i) => self.inputs[*i as usize].constant,
            e => e.operands().iter().all(|c| self.constant(usize::from(*c))),
        }
    }

    /// Terms of a graph's values.
    fn graph(&mut self, g: &Graph, plain: bool) -> Vec<usize> {
        let mut values = vec![];
        for i in 0..g.params.len() as u32 {
            values.push(self.add(Enode::Input(i)));
        }
        for (at, n) in g.nodes.iter().enumerate() {
            let mut children: Vec<Id> = n.operands.iter().map(|v| Id::from(values[v.index()])).collect();
            children.extend(n.attrs.values().map(|a| Id::from(self.add(Enode::Attr(a.clone())))));
            let enode = Enode::Op(n.op, children.into());
            assert!(plain || self.lookup(&enode).is_some(), "node {at} of the fused region is no known term");
            let node = self.add(enode);
            self.named.entry(Term::Node(at as u32)).or_insert(node);
            if n.results.len() == 1 {
                values.push(node);
                continue;
            }
            for i in 0..n.results.len() {
                let number = self.add(Enode::Attr(Attr::Int(i as i64)));
                values.push(self.add(Enode::Proj([Id::from(number), Id::from(node)])));
            }
        }
        values
    }

    fn instance(&mut self, ast: &PatternAst<Enode>, vars: &HashMap<String, usize>, known: bool) -> Vec<usize> {
        let mut ids: Vec<usize> = vec![];
        for node in ast {
            ids.push(match node {
                ENodeOrVar::Var(v) => vars[&v.to_string()],
                ENodeOrVar::ENode(n) => {
                    let e = n.clone().map_children(|c| Id::from(ids[usize::from(c)]));
                    let attr = matches!(e, Enode::Attr(_));
                    assert!(!known || attr || self.lookup(&e).is_some(), "{ast}: {n} is no known term");
                    self.add(e)
                }
            });
        }
        ids
    }
}

/// Variables of a step.
struct Vars<'a>(&'a Table, HashMap<String, (usize, What)>);

impl Bindings for Vars<'_> {
    fn bound(&self, var: &str) -> Option<Bound<'_>> {
        let (term, what) = self.1.get(var)?;
        Some(match what {
            What::Attr(a) => Bound::Attr(a),
            What::Values(types) => {
                let parameter = matches!(&self.0.nodes[self.0.find(*term)], Enode::Input(i) if self.0.inputs[*i as usize].parameter);
                Bound::Value { ty: types.first()?, constant: self.0.constant(*term), parameter }
            }
        })
    }

    fn same(&self, a: &str, b: &str) -> bool {
        self.0.find(self.1[a].0) == self.0.find(self.1[b].0)
    }
}

fn replay(class: &ClassCertificate) {
    let parse = |text: &str| deepfuse_ir::text::parse(text).unwrap();
    let plain = parse(&class.plain);
    let weight = |k: &ParamKind| matches!(k, ParamKind::Weight { .. });
    let facts = |p: &deepfuse_ir::Param| InputFacts {
        ty: p.ty.clone(),
        constant: weight(&p.kind),
        parameter: weight(&p.kind) && p.name.starts_with('w'),
    };
    let mut table = Table { inputs: plain.params.iter().map(facts).collect(), ..Table::default() };
    let values = table.graph(&plain, true);
    table.named.extend(values.iter().enumerate().map(|(i, t)| (Term::Value(i as u32), *t)));
    let rules: Vec<CompiledRule> = rules::all().into_iter().map(compiled).collect();
    for (at, step) in class.steps.iter().enumerate() {
        let rule = rules.iter().find(|r| r.rule.name == step.rule && r.rule.direction == step.direction).unwrap();
        let mut vars: HashMap<String, usize> = HashMap::new();
        for (var, term) in &step.bindings {
            let id = if let Term::Attr(a) = term { table.add(Enode::Attr(a.clone())) } else { table.named[term] };
            vars.insert(var.clone(), id);
        }
        for text in &rule.rule.lhs {
            table.instance(&text.parse().unwrap(), &vars, true);
        }
        let bound = vars.iter().map(|(v, id)| (v.clone(), (*id, table.what(*id)))).collect();
        let bindings = Vars(&table, bound);
        assert!(rule.rule.premises.iter().all(|p| p.holds(&bindings)), "{step}");
        let built: Vec<_> = rule.rule.lets.iter().map(|(v, b)| (*v, b.value(&bindings).unwrap())).collect();
        for (var, attr) in built {
            vars.insert(var.into(), table.add(Enode::Attr(attr)));
        }
        let mut offset = 0;
        for (left, right) in &rule.equations {
            let l = *table.instance(left, &vars, false).last().unwrap();
            let r = table.instance(right, &vars, false);
            for (node, id) in r.iter().enumerate() {
                table.named.entry(Term::Made { step: at as u32, node: offset + node as u32 }).or_insert(*id);
            }
            offset += right.len() as u32;
            assert_eq!(table.what(l), table.what(r[r.len() - 1]), "{step}");
            table.join(l, r[r.len() - 1]);
        }
    }
    for (bucket, text) in &class.fused {
        let fused = parse(text);
        let terms = table.graph(&fused, false);
        for (a, b) in plain.outputs.iter().zip(&fused.outputs) {
            assert_eq!(table.find(values[a.index()]), table.find(terms[b.index()]), "{bucket}");
        }
    }
}

#[test]
fn certificates_replay() {
    for seed in 0..60 {
        let graph = canonicalize(deepfuse_ir::text::parse(&region(seed)).unwrap()).unwrap();
        let options = FuseOptions { numerics: Numerics::Requantizes, disabled: vec![] };
        let catalog = deepfuse_ir::cost::Roofline::SMALL_SERVER;
        let fused = fuse(&graph, &catalog, &Bucket::all(), &options).unwrap();
        let certificate: Certificate = fused.certificate.to_string().parse().unwrap();
        certificate.classes.iter().for_each(replay);
    }
}
