//! Patterns of rules, read from their text.

use super::table::Node;
use crate::fuse::rules::{self, Rule};
use crate::fuse::words::parse_attr;
use deepfuse_ir::Op;

/// A node of a pattern; children are indices of nodes before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// With its question mark.
    Var(String),
    Node(Node),
}

/// A pattern in post-order: the root is the last node. Nodes are not shared, so that an index names one place of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    pub text: &'static str,
    pub nodes: Vec<Place>,
}

impl Pattern {
    /// `None` if the text is malformed.
    pub fn parse(text: &'static str) -> Option<Self> {
        let mut words = Words { rest: text };
        let mut nodes = vec![];
        term(&mut words, &mut nodes)?;
        words.next().is_none().then_some(Self { text, nodes })
    }

    pub fn root(&self) -> usize {
        self.nodes.len() - 1
    }

    /// The text of the pattern below a node.
    pub fn describe(&self, at: usize) -> String {
        match &self.nodes[at] {
            Place::Var(v) => v.clone(),
            Place::Node(Node::Attr(a)) => a.to_string(),
            Place::Node(n) => {
                let children: Vec<String> = n.children().iter().map(|c| self.describe(*c)).collect();
                format!("({} {})", n.name(), children.join(" "))
            }
        }
    }
}

struct Words {
    rest: &'static str,
}

impl Words {
    /// A parenthesis, or what stands between spaces and parentheses.
    fn next(&mut self) -> Option<&'static str> {
        self.rest = self.rest.trim_start();
        let end = if self.rest.starts_with(['(', ')']) {
            1
        } else {
            self.rest.find([' ', '(', ')']).unwrap_or(self.rest.len())
        };
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }
}

fn term(words: &mut Words, nodes: &mut Vec<Place>) -> Option<usize> {
    let place = match words.next()? {
        "(" => {
            let head = words.next()?;
            let mut children = vec![];
            while !words.rest.trim_start().starts_with(')') {
                children.push(term(words, nodes)?);
            }
            words.next()?;
            Place::Node(node(head, children)?)
        }
        ")" => return None,
        word if word.starts_with('?') => Place::Var(word.into()),
        word => Place::Node(Node::Attr(parse_attr(word)?)),
    };
    nodes.push(place);
    Some(nodes.len() - 1)
}

fn node(head: &str, children: Vec<usize>) -> Option<Node> {
    if head == "proj" {
        return children.try_into().map(Node::Proj).ok();
    }
    let op = Op::from_name(head)?;
    let operands = children.len().checked_sub(op.attrs().len())?;
    op.arity().contains(&operands).then(|| Node::Op(op, children.into()))
}

/// A rule with its patterns read.
#[derive(Clone, Debug)]
pub struct ReadRule {
    pub rule: Rule,
    pub lhs: Vec<Pattern>,
    pub equations: Vec<(Pattern, Pattern)>,
    /// Variables of the left side, in order of appearance.
    pub vars: Vec<String>,
}

/// The table of rules.
pub fn read_rules() -> Vec<ReadRule> {
    rules::all().into_iter().map(read_rule).collect()
}

/// Reads the patterns of a rule; one that cannot be read is a bug, found by the tests.
pub fn read_rule(rule: Rule) -> ReadRule {
    let read = |text| Pattern::parse(text).unwrap_or_else(|| panic!("rule {}: `{text}`", rule.name));
    let lhs: Vec<Pattern> = rule.lhs.iter().map(|t| read(t)).collect();
    let equations = rule.equations.iter().map(|(l, r)| (read(l), read(r))).collect();
    let mut vars: Vec<String> = vec![];
    for place in lhs.iter().flat_map(|p| &p.nodes) {
        if let Place::Var(v) = place
            && !vars.contains(v)
        {
            vars.push(v.clone());
        }
    }
    ReadRule { rule, lhs, equations, vars }
}
