//! The language of the e-graph: operations with their attributes as leaf children, so that patterns can bind them.
//!
//! ```text
//! (rms_norm ?x ?gain ?eps)                      attributes follow the operands in alphabetical order
//! (slice ?x 2 ?len 0)                           axis, len, start
//! (einsum ?q ?c tnl,xl->tnx)                    words, (permute ?w <0,2,1>) integers, (reshape ?x [T,16,192]) shapes, bf16, 1e-6
//! (proj 1 (top_k ?scores ?k))                   an operation with several results is one node and projections
//! value.3                                       a value that enters the region
//! ```

use super::words::parse_attr;
use deepfuse_ir::{Attr, Op};
use egg::{FromOp, Id, Language};
use std::fmt;

/// One node of the e-graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Enode {
    Attr(Attr),
    /// A parameter of the region, by its value id.
    Input(u32),
    /// Operands, then attributes.
    Op(Op, Box<[Id]>),
    /// Number of a result, and the operation that has several.
    Proj([Id; 2]),
}

/// What two nodes must share to match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Attr(Attr),
    Input(u32),
    /// With the number of children: `route` has two or three operands.
    Op(Op, usize),
    Proj,
}

impl Enode {
    /// Operands of an operation: its children without the attributes.
    pub fn operands(&self) -> &[Id] {
        match self {
            Self::Op(op, children) => &children[..children.len() - op.attrs().len()],
            Self::Proj(children) => &children[1..],
            Self::Attr(_) | Self::Input(_) => &[],
        }
    }

    /// Attributes of an operation, in the order of `Op::attrs`.
    pub fn attributes(&self) -> &[Id] {
        &self.children()[self.children().len() - self.attribute_count()..]
    }

    fn attribute_count(&self) -> usize {
        if let Self::Op(op, _) = self { op.attrs().len() } else { 0 }
    }
}

impl Language for Enode {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        match self {
            Self::Attr(a) => Kind::Attr(a.clone()),
            Self::Input(i) => Kind::Input(*i),
            Self::Op(op, children) => Kind::Op(*op, children.len()),
            Self::Proj(_) => Kind::Proj,
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Attr(a), Self::Attr(b)) => a == b,
            (Self::Input(a), Self::Input(b)) => a == b,
            (Self::Op(a, c), Self::Op(b, d)) => a == b && c.len() == d.len(),
            (Self::Proj(_), Self::Proj(_)) => true,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Self::Attr(_) | Self::Input(_) => &[],
            Self::Op(_, children) => children,
            Self::Proj(children) => children,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Self::Attr(_) | Self::Input(_) => &mut [],
            Self::Op(_, children) => children,
            Self::Proj(children) => children,
        }
    }
}

impl fmt::Display for Enode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attr(a) => write!(f, "{a}"),
            Self::Input(i) => write!(f, "value.{i}"),
            Self::Op(op, _) => f.write_str(op.name()),
            Self::Proj(_) => f.write_str("proj"),
        }
    }
}

/// Why a word is no node of the language.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNode {
    #[error("there is no operation `{0}`")]
    Unknown(String),
    #[error("`{op}` has {found} children, it takes {wanted}")]
    Children { op: String, wanted: String, found: usize },
    #[error("`{0}` is no attribute")]
    Attr(String),
}

impl FromOp for Enode {
    type Error = BadNode;

    fn from_op(word: &str, children: Vec<Id>) -> Result<Self, BadNode> {
        let count = children.len();
        let wrong = |wanted: String| BadNode::Children { op: word.into(), wanted, found: count };
        if word == "proj" {
            return children.try_into().map(Self::Proj).map_err(|_| wrong("a number and an operation".into()));
        }
        if let (Some(op), true) = (Op::from_name(word), count > 0) {
            let (arity, attrs) = (op.arity(), op.attrs().len());
            if !(arity.start() + attrs..=arity.end() + attrs).contains(&count) {
                return Err(wrong(format!("{arity:?} operands and {attrs} attributes")));
            }
            return Ok(Self::Op(op, children.into()));
        }
        if count > 0 {
            return Err(BadNode::Unknown(word.into()));
        }
        if let Some(number) = word.strip_prefix("value.") {
            return number.parse().map(Self::Input).map_err(|_| BadNode::Attr(word.into()));
        }
        parse_attr(word).map(Self::Attr).ok_or_else(|| BadNode::Attr(word.into()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use egg::Pattern;

    #[test]
    fn patterns_print_as_they_parse() {
        for text in [
            "(rms_norm ?x ?gain 1e-6)",
            "(mul (silu (linear ?x ?g)) (linear ?x ?u))",
            "(einsum ?q (slice ?kv 2 8 0) tnd,xnd->tnx)",
            "(permute ?w <0,2,1>)",
            "(reshape ?x [T,64*P,S+1,192])",
            "(convert ?x f32)",
            "(proj 1 (top_k value.3 8))",
            "(scale ?x -0.5)",
            "(group_limit ?s top2 neg_inf 8 4)",
        ] {
            assert_eq!(text.parse::<Pattern<Enode>>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_nodes_are_refused() {
        for (text, message) in [
            ("(linear ?x)", "takes 2..=2 operands"),
            ("(frobnicate ?x)", "no operation"),
            ("(add_norm ?x ?g)", "2 children"),
            ("(proj ?x)", "a number and an operation"),
            ("value.x", "no attribute"),
        ] {
            let error = text.parse::<Pattern<Enode>>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
