//! What was proved: the rewrites that made a fused graph out of the plain one, step by step.
//!
//! A checker without an e-graph replays it: it holds a table of terms (those of the plain region at first), and for every step
//! instantiates the rule's left side with the step's bindings, which must be terms that are known to it, evaluates the premises,
//! adds the right side and joins both sides. At the end every result of a fused region must be joined with that of the plain one.

use super::Numerics;
use super::words::parse_attr;
use deepfuse_ir::Attr;
use indexmap::IndexMap;
use std::fmt;
use std::str::FromStr;

/// Version of the text form.
const VERSION: u32 = 1;

/// A term of a layer class, in the order in which terms came to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Term {
    /// A value of the plain region, by id.
    Value(u32),
    /// A node of the plain region with several results, by index.
    Node(u32),
    Attr(Attr),
    /// What step `step` added for node `node` of its right side.
    Made {
        step: u32,
        node: u32,
    },
}

/// In which direction an equation was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Forward,
    Backward,
}

impl Direction {
    pub fn arrow(self) -> &'static str {
        match self {
            Self::Forward => "=>",
            Self::Backward => "<=",
        }
    }
}

/// One rewrite that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub rule: String,
    pub direction: Direction,
    /// Class of this application: a rule that moves a rounding is harmless where nothing is rounded.
    pub class: Numerics,
    /// Variables of the left side, in order of appearance.
    pub bindings: IndexMap<String, Term>,
    /// Premises that held, as text.
    pub premises: Vec<String>,
    /// Names of the buckets whose extraction rests on this step; empty: the step led to forms that cost more.
    pub used: Vec<String>,
}

/// The proof for one layer class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassCertificate {
    /// Indices of the regions of this class.
    pub regions: Vec<usize>,
    /// The plain region as a graph of its own; its results are its outputs.
    pub plain: String,
    pub steps: Vec<Step>,
    /// The extracted region of each bucket, with the same parameters and outputs.
    pub fused: IndexMap<String, String>,
}

/// Proof of all fusions of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Limit that the rewrites obeyed.
    pub numerics: Numerics,
    pub classes: Vec<ClassCertificate>,
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(i) => write!(f, "value.{i}"),
            Self::Node(i) => write!(f, "node.{i}"),
            Self::Attr(a) => write!(f, "={a}"),
            Self::Made { step, node } => write!(f, "step.{step}.{node}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.rule, self.direction.arrow(), self.class.name())?;
        for (var, term) in &self.bindings {
            write!(f, " {var}:{term}")?;
        }
        if !self.premises.is_empty() {
            write!(f, " if {}", self.premises.join("; "))?;
        }
        if !self.used.is_empty() {
            write!(f, " // {}", self.used.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "certificate {VERSION} {}", self.numerics.name())?;
        for (i, class) in self.classes.iter().enumerate() {
            let regions: Vec<String> = class.regions.iter().map(ToString::to_string).collect();
            writeln!(f, "class {i} regions {}", regions.join(" "))?;
            writeln!(f, "plain\n{}", class.plain)?;
            for (n, step) in class.steps.iter().enumerate() {
                writeln!(f, "step {n}: {step}")?;
            }
            for (at, (bucket, graph)) in class.fused.iter().enumerate() {
                match class.fused.iter().take(at).find(|(_, earlier)| *earlier == graph) {
                    Some((earlier, _)) => writeln!(f, "fused {bucket} as {earlier}")?,
                    None => writeln!(f, "fused {bucket}\n{graph}")?,
                }
            }
        }
        f.write_str("end\n")
    }
}

/// Where a certificate's text is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("certificate line {line}: expected {expected}, found `{found}`")]
pub struct CertificateError {
    /// From 1.
    pub line: usize,
    pub expected: &'static str,
    pub found: String,
}

impl FromStr for Certificate {
    type Err = CertificateError;

    fn from_str(text: &str) -> Result<Self, CertificateError> {
        Reader { lines: text.lines().collect(), at: 0 }.certificate()
    }
}

struct Reader<'a> {
    lines: Vec<&'a str>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn error<T>(&self, expected: &'static str) -> Result<T, CertificateError> {
        let found: String = self.lines.get(self.at).unwrap_or(&"").chars().take(120).collect();
        Err(CertificateError { line: self.at + 1, expected, found })
    }

    fn after(&mut self, prefix: &str) -> Option<&'a str> {
        let rest = self.lines.get(self.at)?.strip_prefix(prefix)?;
        self.at += 1;
        Some(rest)
    }

    fn certificate(&mut self) -> Result<Certificate, CertificateError> {
        let numerics = self.lines.first().and_then(|l| l.strip_prefix(&format!("certificate {VERSION} ")));
        let Some(numerics) = numerics.and_then(|n| n.parse().ok()) else {
            return self.error("`certificate 1 CLASS`");
        };
        self.at = 1;
        let mut classes = vec![];
        while let Some(header) = self.after(&format!("class {} regions ", classes.len())) {
            let regions = header.split(' ').map(|n| n.parse().ok()).collect::<Option<Vec<usize>>>();
            let Some(regions) = regions else {
                self.at -= 1;
                return self.error("`class N regions I..`");
            };
            classes.push(self.class(regions)?);
        }
        if self.lines.get(self.at..) != Some(&["end"]) {
            return self.error("`end`");
        }
        Ok(Certificate { numerics, classes })
    }

    fn class(&mut self, regions: Vec<usize>) -> Result<ClassCertificate, CertificateError> {
        if self.after("plain").is_none() {
            return self.error("`plain`");
        }
        let plain = self.graph()?;
        let mut steps = vec![];
        while let Some(text) = self.after(&format!("step {}: ", steps.len())) {
            let Some(step) = parse_step(text) else {
                self.at -= 1;
                return self.error("`step N: RULE => CLASS ?x:value.0 .. if PREMISE; .. // BUCKET, ..`");
            };
            steps.push(step);
        }
        let mut fused: IndexMap<String, String> = IndexMap::new();
        while let Some(line) = self.after("fused ") {
            let (bucket, graph) = match line.split_once(" as ") {
                None => (line, self.graph()?),
                Some((bucket, earlier)) => {
                    let Some(graph) = fused.get(earlier) else {
                        self.at -= 1;
                        return self.error("`fused BUCKET as EARLIER`, an earlier bucket of this class");
                    };
                    (bucket, graph.clone())
                }
            };
            fused.insert(bucket.to_owned(), graph);
        }
        Ok(ClassCertificate { regions, plain, steps, fused })
    }

    /// Lines up to and with the closing brace.
    fn graph(&mut self) -> Result<String, CertificateError> {
        let start = self.at;
        let Some(len) = self.lines[start..].iter().position(|l| *l == "}") else { return self.error("a graph") };
        self.at = start + len + 1;
        Ok(self.lines[start..self.at].join("\n"))
    }
}

fn parse_step(text: &str) -> Option<Step> {
    let list = |text: &str, separator: &str| text.split(separator).map(str::to_owned).collect::<Vec<_>>();
    let (text, used) = text.split_once(" // ").map_or((text, vec![]), |(t, u)| (t, list(u, ", ")));
    let (text, premises) = text.split_once(" if ").map_or((text, vec![]), |(t, p)| (t, list(p, "; ")));
    let mut words = text.split(' ');
    let rule = words.next()?.to_owned();
    let direction = match words.next()? {
        "=>" => Direction::Forward,
        "<=" => Direction::Backward,
        _ => return None,
    };
    let class = words.next()?.parse().ok()?;
    let binding = |word: &str| {
        let (var, term) = word.split_once(':')?;
        Some((var.to_owned(), parse_term(term)?))
    };
    let bindings = words.map(binding).collect::<Option<_>>()?;
    Some(Step { rule, direction, class, bindings, premises, used })
}

fn parse_term(text: &str) -> Option<Term> {
    if let Some(attr) = text.strip_prefix('=') {
        return parse_attr(attr).map(Term::Attr);
    }
    let mut parts = text.split('.');
    let kind = parts.next()?;
    let numbers = parts.map(|n| n.parse().ok()).collect::<Option<Vec<u32>>>()?;
    Some(match (kind, numbers.as_slice()) {
        ("value", [i]) => Term::Value(*i),
        ("node", [i]) => Term::Node(*i),
        ("step", [step, node]) => Term::Made { step: *step, node: *node },
        _ => return None,
    })
}
