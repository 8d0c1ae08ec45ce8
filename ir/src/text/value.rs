//! Types, dims and attribute values.

use super::error::nearest;
use super::lex::Token;
use super::parse::{MAX_RANK, Parsed, Parser};
use crate::graph::{Attr, Attrs, Float};
use crate::ops::{AttrKind, Op};
use crate::types::{
    Code, DType, Device, Dim, Expressed, Quant, ScaleType, StateKind, StateType, Symbol, TensorType, Type,
};
use std::ops::Range;

/// Longest list of an attribute.
const MAX_LIST: usize = 64;

/// A list element: a dim, or an integer with a minus sign.
enum Element {
    Dim(Dim),
    Negative(i64),
}

impl Parser<'_> {
    pub fn ty(&mut self) -> Parsed<Type> {
        if let Some(kind) = self.state_kind()? {
            let dtype = self.dtype()?;
            self.expect(b'[', "before the width of the state")?;
            let width = self.number("the width of the state, a number")?;
            self.expect(b']', "after the width of the state")?;
            let device = self.device_suffix()?;
            return Ok(Type::State(StateType { kind, dtype, width, device }));
        }
        let dtype = self.dtype()?;
        self.expect(b'[', "before the dims")?;
        let start = self.ahead.span.start;
        let mut shape = vec![];
        while !self.eat(b']') {
            if shape.len() == MAX_RANK {
                return Err(self.error_at(
                    "ir::limit",
                    start..self.ahead.span.end,
                    format!("a tensor has at most {MAX_RANK} axes"),
                    None,
                ));
            }
            shape.push(self.dim()?);
            if !self.eat(b',') && !self.is_punct(b']') {
                return Err(self.expected("`,` or `]` after a dim"));
            }
        }
        let device = self.device_suffix()?;
        Ok(Type::Tensor(TensorType { dtype, shape, device }))
    }

    fn state_kind(&mut self) -> Parsed<Option<StateKind>> {
        let kind = if self.eat_word("paged") {
            if self.eat(b'/') {
                StateKind::PagedEvery { every: self.number("tokens a row")? }
            } else {
                StateKind::Paged
            }
        } else if self.eat_word("window") {
            StateKind::Window { window: self.number("rows of the window")? }
        } else if self.eat_word("fixed") {
            StateKind::Fixed { rows: self.number("rows a sequence")? }
        } else {
            return Ok(None);
        };
        Ok(Some(kind))
    }

    fn dtype(&mut self) -> Parsed<DType> {
        let (name, span) = self.word("a type, as in `bf16[T, 64]`")?;
        if name == "quant" {
            return self.long_quant();
        }
        DType::from_name(name).ok_or_else(|| {
            let known =
                ["f32", "bf16", "f16", "i32", "u32"].into_iter().chain(Quant::ALIASES.iter().map(|(alias, _)| *alias));
            let help = match nearest(name, known.clone()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the types are {}, quant<..>", known.collect::<Vec<_>>().join(", ")),
            };
            let name: String = name.chars().take(80).collect();
            self.error_at("ir::dtype", span, format!("there is no type `{name}`"), Some(help))
        })
    }

    /// `<e4m3, f32, 128x128, zero>`, after `quant`.
    fn long_quant(&mut self) -> Parsed<DType> {
        const FORM: &str = "as in `quant<e4m3, f32, 128x128>`";
        self.expect(b'<', FORM)?;
        let (name, span) = self.word("a code: e4m3, e2m1, i8 or i4")?;
        let Some(elem) = Code::ALL.into_iter().find(|c| c.name() == name) else {
            return Err(self.error_at("ir::dtype", span, "the codes are e4m3, e2m1, i8 and i4".into(), None));
        };
        self.expect(b',', FORM)?;
        let (name, span) = self.word("a scale: f32, f16 or ue8m0")?;
        let Some(scale) = ScaleType::ALL.into_iter().find(|s| s.name() == name) else {
            return Err(self.error_at("ir::dtype", span, "the scales are f32, f16 and ue8m0".into(), None));
        };
        self.expect(b',', FORM)?;
        let rows = self.number("rows of a block")?;
        let (by, span) = self.word("`x` and the columns of a block")?;
        let Some(cols) = by.strip_prefix('x').and_then(|n| n.parse().ok()) else {
            return Err(self.error_at("ir::syntax", span, format!("a block is written 128x128, {FORM}"), None));
        };
        let mut q = Quant::of(elem, scale, [rows, cols]);
        while self.eat(b',') {
            if !q.zero && q.expressed == Expressed::F32 && self.eat_word("zero") {
                q.zero = true;
            } else if q.expressed == Expressed::F32 && self.eat_word("bf16") {
                q.expressed = Expressed::Bf16;
            } else {
                return Err(self.expected("`zero` or `bf16`"));
            }
        }
        self.expect(b'>', FORM)?;
        Ok(DType::Quant(q))
    }

    fn device_suffix(&mut self) -> Parsed<Device> {
        if !self.eat_word("on") {
            return Ok(Device::DEFAULT);
        }
        let (name, span) = self.word("a device, as in `gpu0`")?;
        Device::from_name(name).ok_or_else(|| {
            self.error_at("ir::syntax", span, "devices are cpu0, cpu1, .. and gpu0, gpu1, ..".into(), None)
        })
    }

    /// A number of any unsigned type.
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Parsed<T> {
        if self.ahead.token != Token::Number {
            return Err(self.expected(what));
        }
        let span = self.advance().span;
        let digits = self.slice(&span);
        digits
            .parse()
            .map_err(|_| self.error_at("ir::limit", span, format!("`{}` is not {what} in range", clip(digits)), None))
    }

    /// `64*P+T+1`: each symbol at most once, the number last or alone.
    fn dim(&mut self) -> Parsed<Dim> {
        let mut dim = Dim::fixed(0);
        loop {
            if self.ahead.token == Token::Number {
                let factor: u64 = self.number("a dim")?;
                if self.eat(b'*') {
                    self.dim_term(&mut dim, Some(factor))?;
                } else {
                    let Some(sum) = dim.constant.checked_add(factor) else {
                        return Err(self.expected("a dim below 2^64"));
                    };
                    dim.constant = sum;
                }
            } else {
                self.dim_term(&mut dim, None)?;
            }
            if !self.eat(b'+') {
                return Ok(dim);
            }
        }
    }

    fn dim_term(&mut self, dim: &mut Dim, factor: Option<u64>) -> Parsed<()> {
        let (name, span) = self.word("a dim: a number or one of T, S, P, R, C")?;
        let Some(symbol) = Symbol::from_name(name) else {
            let message = format!("`{}` is not a symbol of a step", clip(name));
            let help = "T tokens, S sequences, P pages, R rows that want logits, C cached tokens".into();
            return Err(self.error_at("ir::dim", span, message, Some(help)));
        };
        let term = &mut dim.terms[symbol as usize];
        let sum = u32::try_from(factor.unwrap_or(1)).ok().and_then(|f| term.checked_add(f));
        match sum {
            Some(sum) => *term = sum,
            None => return Err(self.error_at("ir::limit", span, format!("the factor of {name} is beyond 2^32"), None)),
        }
        Ok(())
    }

    // ---- attributes ------------------------------------------------------------------------------------------------------------

    /// `{k = 8, by = top2}`; `None` if an attribute is wrong (and reported), so that the rule cannot be asked.
    pub fn attrs(&mut self, op: Option<Op>) -> Parsed<Option<Attrs>> {
        let (mut attrs, mut complete) = (Attrs::new(), op.is_some());
        self.expect(b'{', "before attributes")?;
        while !self.eat(b'}') {
            let (name, span) = self.word("the name of an attribute")?;
            self.expect(b'=', "after the name of an attribute")?;
            let spec = spec_of(op, name);
            let value_span = self.ahead.span.clone();
            let value = self.attr_value(spec.map(|(_, kind)| kind))?;
            match spec {
                None => {
                    complete = false;
                    self.unknown_attr(op, name, span);
                }
                Some((key, kind)) => {
                    if !kind.admits(&value) && op.is_some_and(|op| op.attrs().contains(&(key, kind))) {
                        complete = false;
                        self.error_at("ir::attribute", value_span, format!("`{name}` takes {}", wanted(kind)), None);
                    }
                    if attrs.insert(key, value).is_some() {
                        complete = false;
                        self.error_at("ir::attribute", span, format!("`{name}` is given twice"), None);
                    }
                }
            }
            if !self.eat(b',') && !self.is_punct(b'}') {
                return Err(self.expected("`,` or `}` after an attribute"));
            }
        }
        Ok(complete.then_some(attrs))
    }

    fn unknown_attr(&mut self, op: Option<Op>, name: &str, span: Range<usize>) {
        let Some(op) = op else { return }; // the op is unknown and reported
        let names: Vec<&str> = op.attrs().iter().map(|(name, _)| *name).collect();
        let help = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => format!("`{}` has no attributes", op.name()),
            None => format!("`{}` has {}", op.name(), names.join(", ")),
        };
        self.error_at("ir::attribute", span, format!("`{}` has no attribute `{}`", op.name(), clip(name)), Some(help));
    }

    fn attr_value(&mut self, kind: Option<AttrKind>) -> Parsed<Attr> {
        if self.eat(b'[') {
            return self.attr_list(kind);
        }
        if let Token::Text(text) = &self.ahead.token {
            let text = text.clone();
            self.advance();
            return Ok(Attr::Str(text));
        }
        if self.ahead.token == Token::Word {
            return self.attr_word(kind);
        }
        let start = self.ahead.span.start;
        let sign = if self.eat(b'-') { "-" } else { "" };
        if self.ahead.token != Token::Number {
            return Err(self.expected("a number, a word, a \"text\" or a [list]"));
        }
        let span = self.advance().span;
        let text = format!("{sign}{}", self.slice(&span));
        let whole = !text.contains(['.', 'e', 'E']);
        let value = if whole && kind != Some(AttrKind::Float) {
            text.parse().ok().map(Attr::Int)
        } else {
            text.parse().ok().filter(|x: &f64| x.is_finite()).map(|x| Attr::Float(Float(x)))
        };
        value.ok_or_else(|| {
            self.error_at("ir::limit", start..span.end, format!("`{}` is out of range", clip(&text)), None)
        })
    }

    fn attr_word(&mut self, kind: Option<AttrKind>) -> Parsed<Attr> {
        let word = self.slice(&self.ahead.span);
        let is_type = word == "quant" || DType::from_name(word).is_some();
        if kind == Some(AttrKind::DType) || (is_type && kind != Some(AttrKind::Str)) {
            return Ok(Attr::DType(self.dtype()?));
        }
        let word = word.to_owned();
        self.advance();
        Ok(Attr::Str(word))
    }

    /// After `[`.
    fn attr_list(&mut self, kind: Option<AttrKind>) -> Parsed<Attr> {
        let start = self.ahead.span.start;
        let mut elements = vec![];
        while !self.eat(b']') {
            if elements.len() == MAX_LIST {
                return Err(self.error_at(
                    "ir::limit",
                    start..self.ahead.span.end,
                    format!("a list has at most {MAX_LIST} elements"),
                    None,
                ));
            }
            elements.push(self.element()?);
            if !self.eat(b',') && !self.is_punct(b']') {
                return Err(self.expected("`,` or `]` after a list element"));
            }
        }
        let ints = || elements.iter().map(integer).collect::<Option<Vec<_>>>().map(Attr::Ints);
        let dims = || elements.iter().map(dim).collect::<Option<Vec<_>>>().map(Attr::Shape);
        let value = if kind == Some(AttrKind::Shape) { dims().or_else(ints) } else { ints().or_else(dims) };
        value.ok_or_else(|| {
            self.error_at(
                "ir::attribute",
                start..self.ahead.span.start,
                "a list is all integers or all dims".into(),
                None,
            )
        })
    }

    fn element(&mut self) -> Parsed<Element> {
        if !self.eat(b'-') {
            return Ok(Element::Dim(self.dim()?));
        }
        let n: u64 = self.number("an integer")?;
        match 0i64.checked_sub_unsigned(n) {
            Some(n) => Ok(Element::Negative(n)),
            None => Err(self.expected("an integer above -2^63")),
        }
    }
}

fn integer(e: &Element) -> Option<i64> {
    match e {
        Element::Dim(d) => i64::try_from(d.as_fixed()?).ok(),
        Element::Negative(n) => Some(*n),
    }
}

fn dim(e: &Element) -> Option<Dim> {
    match e {
        Element::Dim(d) => Some(*d),
        Element::Negative(_) => None,
    }
}

/// Name and kind as the op has it; of an attribute that the op lacks, as any op has it (the verifier reports it).
fn spec_of(op: Option<Op>, name: &str) -> Option<(&'static str, AttrKind)> {
    op?.attrs().iter().copied().find(|(n, _)| *n == name)
}

fn wanted(kind: AttrKind) -> &'static str {
    match kind {
        AttrKind::Int => "an integer, as in `8`",
        AttrKind::Float => "a number, as in `1e-6`",
        AttrKind::Str => "a word or a text, as in `max` or \"tnd,xnd->tnx\"",
        AttrKind::Ints => "a list of integers, as in `[0, 2, 1]`",
        AttrKind::Shape => "a shape, as in `[T, 16, 192]`",
        AttrKind::DType => "a type, as in `f32`",
    }
}

fn clip(s: &str) -> String {
    s.chars().take(80).collect()
}
