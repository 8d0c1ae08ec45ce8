//! Terms, and which of them are equal: a table with congruence closure.

use deepfuse_ir::{Attr, Attrs, Graph, Op, ParamKind, Type};
use std::collections::HashMap;

/// One term; children are indices of terms before it (of a pattern: of places before it).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    Attr(Attr),
    /// A parameter of the region, by its value id.
    Input(u32),
    /// Operands, then attributes in the order of `Op::attrs`.
    Op(Op, Box<[usize]>),
    /// Number of a result, and the operation that has several.
    Proj([usize; 2]),
}

impl Node {
    pub fn children(&self) -> &[usize] {
        match self {
            Self::Attr(_) | Self::Input(_) => &[],
            Self::Op(_, children) => children,
            Self::Proj(children) => children,
        }
    }

    /// Operands of an operation: its children without the attributes.
    pub fn operands(&self) -> &[usize] {
        match self {
            Self::Op(op, children) => &children[..children.len().saturating_sub(op.attrs().len())],
            Self::Proj(children) => &children[1..],
            Self::Attr(_) | Self::Input(_) => &[],
        }
    }

    #[must_use]
    pub fn map(&self, f: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Attr(_) | Self::Input(_) => self.clone(),
            Self::Op(op, children) => Self::Op(*op, children.iter().map(|c| f(*c)).collect()),
            Self::Proj([number, node]) => Self::Proj([f(*number), f(*node)]),
        }
    }

    /// Whether a pattern's node could stand for a term: the same operation and number of children, the same attribute.
    pub fn like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Attr(a), Self::Attr(b)) => a == b,
            (Self::Input(a), Self::Input(b)) => a == b,
            (Self::Op(a, c), Self::Op(b, d)) => a == b && c.len() == d.len(),
            (Self::Proj(_), Self::Proj(_)) => true,
            _ => false,
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Attr(a) => a.to_string(),
            Self::Input(i) => format!("value.{i}"),
            Self::Op(op, _) => op.name().to_owned(),
            Self::Proj(_) => "proj".to_owned(),
        }
    }
}

/// What a term stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Attr(Attr),
    /// One type a result; one for all that is not an operation with several results.
    Values(Vec<Type>),
}

/// Facts of a term; those of equal terms are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub what: What,
    /// Depends on weights alone.
    pub constant: bool,
    /// A weight as the checkpoint holds it.
    pub parameter: bool,
}

/// Terms by index. Two terms are equal if [`Table::find`] gives them one representative.
#[derive(Clone, Debug, Default)]
pub struct Table {
    inputs: Vec<Facts>,
    pub nodes: Vec<Node>,
    parent: Vec<usize>,
    facts: Vec<Facts>,
    /// Canonical terms; of equal ones the first.
    known: HashMap<Node, usize>,
}

impl Table {
    /// A table over the parameters of a region. Parameters named `w..` are weights as the checkpoint holds them.
    pub fn over(plain: &Graph) -> Self {
        let weight = |kind: &ParamKind| matches!(kind, ParamKind::Weight { .. });
        let facts = |p: &deepfuse_ir::Param| Facts {
            what: What::Values(vec![p.ty.clone()]),
            constant: weight(&p.kind),
            parameter: weight(&p.kind) && p.name.starts_with('w'),
        };
        Self { inputs: plain.params.iter().map(facts).collect(), ..Self::default() }
    }

    pub fn find(&self, mut term: usize) -> usize {
        while self.parent[term] != term {
            term = self.parent[term];
        }
        term
    }

    fn canonical(&self, node: &Node) -> Node {
        node.map(|c| self.find(c))
    }

    /// The first term that is this node up to equality of its children.
    pub fn lookup(&self, node: &Node) -> Option<usize> {
        self.known.get(&self.canonical(node)).copied()
    }

    pub fn facts(&self, term: usize) -> &Facts {
        &self.facts[self.find(term)]
    }

    /// Number of classes of equal terms.
    pub fn classes(&self) -> usize {
        self.parent.iter().enumerate().filter(|(i, p)| i == *p).count()
    }

    /// The term of a node, a new one if it is not known. Errors: why it is ill-typed.
    pub fn add(&mut self, node: Node) -> Result<usize, String> {
        if let Some(known) = self.lookup(&node) {
            return Ok(known);
        }
        let facts = self.infer(&node)?;
        let term = self.nodes.len();
        self.known.insert(self.canonical(&node), term);
        self.nodes.push(node);
        self.parent.push(term);
        self.facts.push(facts);
        Ok(term)
    }

    fn infer(&self, node: &Node) -> Result<Facts, String> {
        let value = |what| Facts { what, constant: false, parameter: false };
        let facts = match node {
            Node::Attr(a) => return Ok(Facts { what: What::Attr(a.clone()), constant: true, parameter: false }),
            Node::Input(i) => {
                return self.inputs.get(*i as usize).cloned().ok_or_else(|| format!("there is no parameter {i}"));
            }
            Node::Proj([number, node]) => match (&self.facts(*number).what, &self.facts(*node).what) {
                (What::Attr(Attr::Int(i)), What::Values(types)) if types.len() > 1 => {
                    let ty = usize::try_from(*i).ok().and_then(|i| types.get(i));
                    value(What::Values(vec![ty.ok_or("a projection beyond the results")?.clone()]))
                }
                _ => return Err("a projection takes a number and an operation with several results".into()),
            },
            Node::Op(op, _) => {
                let attrs = self.attrs(node).ok_or_else(|| format!("an attribute of {} is no attribute", op.name()))?;
                let types = node.operands().iter().map(|c| self.ty(*c)).collect::<Option<Vec<&Type>>>();
                let types = types.ok_or_else(|| format!("an operand of {} is no single value", op.name()))?;
                value(What::Values(op.infer(&types, &attrs).map_err(|e| format!("{}: {e}", op.name()))?))
            }
        };
        let quantized = matches!(node, Node::Op(Op::Quantize, _));
        Ok(Facts {
            constant: node.children().iter().all(|c| self.facts(*c).constant),
            parameter: quantized && node.operands().iter().all(|c| self.facts(*c).parameter),
            ..facts
        })
    }

    /// Type of a single value.
    pub fn ty(&self, term: usize) -> Option<&Type> {
        match &self.facts(term).what {
            What::Values(types) if types.len() == 1 => types.first(),
            What::Values(_) | What::Attr(_) => None,
        }
    }

    /// Attributes of an operation by name.
    pub fn attrs(&self, node: &Node) -> Option<Attrs> {
        let Node::Op(op, children) = node else { return None };
        let values = &children[node.operands().len()..];
        let value = |c: &usize| if let What::Attr(a) = &self.facts(*c).what { Some(a.clone()) } else { None };
        op.attrs().iter().zip(values).map(|((name, _), c)| Some((*name, value(c)?))).collect()
    }

    /// Makes two terms of one type equal, and all that become equal by it.
    pub fn join(&mut self, a: usize, b: usize) {
        if self.union(a, b) {
            while self.close() {}
        }
    }

    fn union(&mut self, a: usize, b: usize) -> bool {
        let (a, b) = (self.find(a), self.find(b));
        let (first, second) = (a.min(b), a.max(b));
        if first == second {
            return false;
        }
        let Facts { constant, parameter, .. } = self.facts[second];
        self.facts[first].constant |= constant;
        self.facts[first].parameter |= parameter;
        self.parent[second] = first;
        true
    }

    /// One pass over all terms; whether it found anything new.
    fn close(&mut self) -> bool {
        let mut changed = false;
        self.known.clear();
        for term in 0..self.nodes.len() {
            let canonical = self.canonical(&self.nodes[term]);
            let children = canonical.children();
            let constant = !children.is_empty() && children.iter().all(|c| self.facts[*c].constant);
            let first = *self.known.entry(canonical).or_insert(term);
            changed |= self.union(first, term);
            let class = self.find(term);
            let facts = &mut self.facts[class];
            changed |= constant && !facts.constant;
            facts.constant |= constant;
        }
        changed
    }
}
