//! Tokens to graph. The grammar has no recursion, so no text can exhaust the stack.

use super::error::{ParseError, list, nearest, rule_message};
use super::lex::{Lexeme, Lexer, Token};
use crate::graph::{Graph, ParamKind, ValueId};
use crate::ops::Op;
use crate::types::Type;
use std::collections::HashMap;
use std::ops::Range;

/// Longest text that is read; the 61-layer graph has about 1 MB.
pub const MAX_TEXT_BYTES: usize = 64 << 20;
/// Most axes of a tensor.
pub const MAX_RANK: usize = 8;
/// Errors are collected up to this many.
pub const MAX_ERRORS: usize = 64;

/// Reads a graph; every type must be the one that the op's type rule gives.
pub fn parse(text: &str) -> Result<Graph, Vec<ParseError>> {
    Parser::run(text, true)
}

/// Reads a graph with the types as they are written. [`crate::verify::verify`] finds what `parse` would have found, and more.
pub fn parse_unchecked(text: &str) -> Result<Graph, Vec<ParseError>> {
    Parser::run(text, false)
}

/// The error is recorded; the caller skips to where it can go on.
pub(super) struct Failed;
pub(super) type Parsed<T> = Result<T, Failed>;

/// A value that has a name.
#[derive(Clone)]
struct Known {
    id: ValueId,
    ty: Type,
    /// The definition is complete, so that type rules may be asked about it.
    sound: bool,
}

pub(super) struct Parser<'a> {
    source: &'a str,
    lexer: Lexer<'a>,
    pub ahead: Lexeme,
    /// End of the last token that was taken.
    pub end: usize,
    /// Brackets open in the current parameter.
    brackets: i32,
    pub errors: Vec<ParseError>,
    checked: bool,
    graph: Graph,
    names: HashMap<String, Known>,
    returned: bool,
    /// What is being defined.
    at: Option<String>,
    /// Uses of names that nothing before them defines.
    unknown: Vec<(String, Range<usize>, Option<String>)>,
}

impl<'a> Parser<'a> {
    fn run(source: &'a str, checked: bool) -> Result<Graph, Vec<ParseError>> {
        let usable = if source.len() > MAX_TEXT_BYTES { "" } else { source };
        let mut lexer = Lexer::new(usable);
        let ahead = lexer.next();
        let mut p = Parser {
            source: usable,
            lexer,
            ahead,
            end: 0,
            brackets: 0,
            errors: vec![],
            checked,
            graph: Graph::default(),
            names: HashMap::new(),
            returned: false,
            at: None,
            unknown: vec![],
        };
        if source.len() > MAX_TEXT_BYTES {
            p.error_at(
                "ir::limit",
                0..0,
                format!("the text has {} bytes, the limit is {MAX_TEXT_BYTES}", source.len()),
                None,
            );
        } else if p.graph().is_ok() && p.ahead.token != Token::End {
            p.expected("the end of the text after `}`; one text holds one graph");
        }
        p.report_unknown();
        p.errors.sort_by_key(|e| e.span.start);
        if p.errors.is_empty() { Ok(p.graph) } else { Err(p.errors) }
    }

    // ---- tokens ----------------------------------------------------------------------------------------------------------------

    pub fn advance(&mut self) -> Lexeme {
        let next = self.lexer.next();
        self.end = self.ahead.span.end;
        let opens = self.is_punct(b'[') || self.is_punct(b'<');
        let closes = self.is_punct(b']') || self.is_punct(b'>');
        self.brackets += i32::from(opens) - i32::from(closes);
        std::mem::replace(&mut self.ahead, next)
    }

    pub fn slice(&self, span: &Range<usize>) -> &'a str {
        &self.source[span.clone()]
    }

    pub fn is_punct(&self, c: u8) -> bool {
        self.ahead.token == Token::Punct(c)
    }

    pub fn is_word(&self, word: &str) -> bool {
        self.ahead.token == Token::Word && self.slice(&self.ahead.span) == word
    }

    /// Takes the character if it comes next.
    pub fn eat(&mut self, c: u8) -> bool {
        let found = self.is_punct(c);
        if found {
            self.advance();
        }
        found
    }

    pub fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    pub fn expect(&mut self, c: u8, place: &str) -> Parsed<()> {
        if self.eat(c) { Ok(()) } else { Err(self.expected(&format!("`{}` {place}", char::from(c)))) }
    }

    pub fn word(&mut self, what: &str) -> Parsed<(&'a str, Range<usize>)> {
        if self.ahead.token != Token::Word {
            return Err(self.expected(what));
        }
        let span = self.advance().span;
        Ok((self.slice(&span), span))
    }

    pub fn error_at(
        &mut self,
        code: &'static str,
        span: Range<usize>,
        message: String,
        help: Option<String>,
    ) -> Failed {
        if self.errors.len() < MAX_ERRORS {
            let before = &self.source[..span.start];
            let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |s| s.chars().count()) + 1;
            self.errors.push(ParseError { code, message, help, span, line, column, at: self.at.clone() });
        }
        Failed
    }

    pub fn expected(&mut self, what: &str) -> Failed {
        let span = self.ahead.span.clone();
        let found = match &self.ahead.token {
            Token::Bad(why) => {
                return self.error_at("ir::syntax", span, (*why).to_owned(), Some(format!("expected {what}")));
            }
            Token::End => "the end of the text".to_owned(),
            _ => format!("`{}`", self.slice(&span).chars().take(40).collect::<String>()),
        };
        self.error_at("ir::syntax", span, format!("expected {what}, found {found}"), None)
    }

    // ---- graph -----------------------------------------------------------------------------------------------------------------

    fn graph(&mut self) -> Parsed<()> {
        if !self.eat_word("graph") {
            return Err(self.expected("`graph @name(..)`"));
        }
        self.graph.name = match self.advance_if_global() {
            Some(name) => name,
            None => return Err(self.expected("the graph's name, as in `@decode`")),
        };
        self.expect(b'(', "before the parameters")?;
        self.params()?;
        let header = self.header_results()?;
        self.expect(b'{', "before the nodes")?;
        while self.item(&header) {}
        self.at = None;
        if !self.returned && self.errors.is_empty() {
            return Err(self.expected("`return` before `}`"));
        }
        self.expect(b'}', "after `return`")
    }

    fn advance_if_global(&mut self) -> Option<String> {
        if !matches!(self.ahead.token, Token::Global(_)) {
            return None;
        }
        let Token::Global(name) = self.advance().token else { return None };
        Some(name)
    }

    fn params(&mut self) -> Parsed<()> {
        while !self.eat(b')') {
            self.brackets = 0;
            if self.param().is_err() {
                self.skip_param();
            }
            self.at = None;
            if !self.eat(b',') && !self.is_punct(b')') && !self.starts_param() {
                return Err(self.expected("`,` or `)` after a parameter"));
            }
        }
        Ok(())
    }

    /// Skips to the end of a parameter.
    fn skip_param(&mut self) {
        while !matches!(self.ahead.token, Token::End | Token::Punct(b'{')) && !self.starts_param() {
            if self.brackets <= 0 && (self.is_punct(b',') || self.is_punct(b')')) {
                return;
            }
            self.advance();
        }
    }

    /// After an error: whether the next token begins a parameter on a line of its own.
    fn starts_param(&self) -> bool {
        let head = matches!(self.ahead.token, Token::Value(_)) || self.is_word("weight") || self.is_word("state");
        self.ahead.starts_line && head && !self.errors.is_empty()
    }

    fn param(&mut self) -> Parsed<()> {
        let weight = self.eat_word("weight");
        let state = !weight && self.eat_word("state");
        let span = self.ahead.span.clone();
        let name = match (&self.ahead.token, state) {
            (Token::Value(name), false) | (Token::Global(name), true) => name.clone(),
            (_, false) => return Err(self.expected("a parameter, as in `%x: bf16[T, 64]`")),
            (_, true) => return Err(self.expected("a state, as in `@kv: paged bf16[576]`")),
        };
        self.advance();
        let key = format!("{}{name}", if state { '@' } else { '%' });
        self.at = Some(key.clone());
        self.expect(b':', "before the type")?;
        let type_start = self.ahead.span.start;
        let ty = self.ty()?;
        let type_span = type_start..self.end;
        match (&ty, state) {
            (Type::Tensor(_), true) => {
                self.error_at(
                    "ir::dtype",
                    type_span,
                    format!("a state cannot have the tensor type {ty}"),
                    Some("write `paged bf16[576]`".into()),
                );
            }
            (Type::State(_), false) => {
                self.error_at(
                    "ir::dtype",
                    type_span,
                    format!("only a state can have the type {ty}"),
                    Some(format!("write `state @{name}: {ty}`")),
                );
            }
            _ => {}
        }
        let kind = match (weight, state) {
            (true, _) => ParamKind::Weight { source: self.source_name()? },
            (_, true) => ParamKind::State,
            _ => ParamKind::Input,
        };
        let id = self.graph.param(name, kind, ty.clone());
        self.define(key, Known { id, ty, sound: true }, &span);
        Ok(())
    }

    fn source_name(&mut self) -> Parsed<String> {
        let at = self.eat(b'@');
        let source = match &self.ahead.token {
            Token::Text(s) if at => s.clone(),
            Token::Global(s) if !at => s.clone(), // `@"..."` without the space
            _ => return Err(self.expected("the source of the weight, as in `@ \"model.norm.weight\"`")),
        };
        self.advance();
        Ok(source)
    }

    fn header_results(&mut self) -> Parsed<Vec<(Type, Range<usize>)>> {
        let mut types = vec![];
        if self.ahead.token == Token::Arrow {
            self.advance();
            loop {
                let start = self.ahead.span.start;
                let ty = self.ty()?;
                types.push((ty, start..self.end));
                if !self.eat(b',') {
                    break;
                }
            }
        }
        Ok(types)
    }

    // ---- nodes -----------------------------------------------------------------------------------------------------------------

    /// One node, cut or `return`; false at the end.
    fn item(&mut self, header: &[(Type, Range<usize>)]) -> bool {
        self.at = None;
        let start = self.ahead.span.start;
        let result = match &self.ahead.token {
            Token::End | Token::Punct(b'}') => return false,
            Token::Rule => {
                self.advance();
                if self.eat_word("cut") {
                    self.graph.cut();
                    return true;
                }
                Err(self.expected("`cut` after `----`"))
            }
            Token::Value(_) => self.node(),
            _ if self.is_word("return") => {
                let done = self.returned(header);
                if done.is_ok() && (self.is_punct(b'}') || self.ahead.token == Token::End) {
                    return false;
                }
                done.and_then(|()| Err(self.expected("`}` after `return`")))
            }
            _ => Err(self.expected("a node (`%0 = op ..`), `---- cut` or `return`")),
        };
        if result.is_err() {
            self.skip_to_item(start);
        }
        self.errors.len() < MAX_ERRORS
    }

    /// Skips to a line that may begin an item, past the one that begins at `start`.
    fn skip_to_item(&mut self, start: usize) {
        loop {
            let begins = matches!(self.ahead.token, Token::Value(_) | Token::Rule | Token::Punct(b'}'))
                || self.is_word("return");
            let here = self.ahead.starts_line && begins && self.ahead.span.start > start;
            if here || self.ahead.token == Token::End {
                return;
            }
            self.advance();
        }
    }

    fn node(&mut self) -> Parsed<()> {
        let mut results = vec![];
        loop {
            let span = self.ahead.span.clone();
            let Token::Value(name) = &self.ahead.token else {
                return Err(self.expected("the name of a result, as in `%0`"));
            };
            results.push((format!("%{name}"), span));
            self.advance();
            if !self.eat(b',') {
                break;
            }
        }
        self.at = Some(results[0].0.clone());
        self.expect(b'=', "after the results")?;
        let (name, op_span) = self.word("an op, as in `linear`")?;
        let op = Op::from_name(name);
        if op.is_none() {
            let help = match nearest(name, Op::ALL.iter().map(|op| op.name())) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "the ops are listed in ir/src/ops/mod.rs".into(),
            };
            let name: String = name.chars().take(80).collect();
            self.error_at("ir::op", op_span.clone(), format!("there is no op `{name}`"), Some(help));
        }
        let (operands, mut sound) = self.operands()?;
        let attrs = if self.is_punct(b'{') { self.attrs(op)? } else { Some(crate::Attrs::new()) };
        let call_span = op_span.start..self.end;
        self.expect(b':', "before the types of the results")?;
        let type_start = self.ahead.span.start;
        let mut types = vec![self.ty()?];
        while self.eat(b',') {
            types.push(self.ty()?);
        }
        let type_span = type_start..self.end;
        sound &= op.is_some() && attrs.is_some();
        if types.len() != results.len() {
            sound = false;
            let message = format!("{} results are named and {} types are written", results.len(), types.len());
            self.error_at("ir::arity", type_span.clone(), message, None);
        }
        let attrs = attrs.unwrap_or_default();
        if let (true, true, Some(op)) = (self.checked, sound, op) {
            self.check_rule(op, &operands, &attrs, &types, [call_span, type_span]);
        }
        self.push(op, &operands, attrs, types, results, sound);
        Ok(())
    }

    fn push(
        &mut self,
        op: Option<Op>,
        operands: &[Known],
        attrs: crate::Attrs,
        types: Vec<Type>,
        results: Vec<(String, Range<usize>)>,
        sound: bool,
    ) {
        let ids: Vec<ValueId> = operands.iter().map(|k| k.id).collect();
        // After an error the graph is lost, but its names and types still serve to find more errors.
        let op = op.unwrap_or(Op::Silu);
        let defined = self.graph.push_typed(op, ids, attrs, types.clone());
        if let (Some(comment), Some(node)) = (&self.ahead.comment, self.graph.nodes.last_mut()) {
            let text = self.source[comment.clone()].trim();
            node.comment = (!text.is_empty()).then(|| text.to_owned());
        }
        for (((key, span), id), ty) in results.into_iter().zip(defined).zip(types) {
            self.define(key, Known { id, ty, sound }, &span);
        }
    }

    /// Known operands, and whether all were found and are sound.
    fn operands(&mut self) -> Parsed<(Vec<Known>, bool)> {
        let (mut operands, mut sound) = (vec![], true);
        while matches!(self.ahead.token, Token::Value(_) | Token::Global(_)) {
            match self.operand()? {
                Some(k) => {
                    sound &= k.sound;
                    operands.push(k);
                }
                None => sound = false,
            }
            if !self.eat(b',') {
                return Ok((operands, sound));
            }
            if !matches!(self.ahead.token, Token::Value(_) | Token::Global(_)) {
                return Err(self.expected("an operand after `,`"));
            }
        }
        Ok((operands, sound))
    }

    fn operand(&mut self) -> Parsed<Option<Known>> {
        let key = match &self.ahead.token {
            Token::Value(name) => format!("%{name}"),
            Token::Global(name) => format!("@{name}"),
            _ => return Err(self.expected("a value, as in `%0`")),
        };
        let span = self.advance().span;
        let known = self.names.get(&key).cloned();
        if known.is_none() && self.unknown.len() < MAX_ERRORS {
            self.unknown.push((key, span, self.at.clone()));
        }
        Ok(known)
    }

    fn define(&mut self, key: String, known: Known, span: &Range<usize>) {
        if self.names.contains_key(&key) {
            let help = Some("every name is defined once".into());
            self.error_at("ir::name", span.clone(), format!("`{}` is defined a second time", self.slice(span)), help);
        }
        self.names.insert(key, known);
    }

    fn report_unknown(&mut self) {
        for (key, span, at) in std::mem::take(&mut self.unknown) {
            self.at = at;
            let other = if key.starts_with('%') { '@' } else { '%' };
            let twin = format!("{other}{}", &key[1..]);
            let help = if self.names.contains_key(&key) {
                "it is defined further down; a value is defined before it is used".to_owned()
            } else if self.names.contains_key(&twin) {
                format!("did you mean `{twin}`? `@` is for states, `%` for all other values")
            } else {
                let mut known: Vec<&str> = self.names.keys().map(String::as_str).collect();
                known.sort_unstable();
                match nearest(&key, known.into_iter()) {
                    Some(near) if key.len() > 2 => format!("did you mean `{near}`?"),
                    _ => "no parameter and no node before this one has the name".to_owned(),
                }
            };
            let message = format!("`{}` is not defined", self.slice(&span).chars().take(80).collect::<String>());
            self.error_at("ir::name", span, message, Some(help));
        }
    }

    fn check_rule(
        &mut self,
        op: Op,
        operands: &[Known],
        attrs: &crate::Attrs,
        written: &[Type],
        [call, place]: [Range<usize>; 2],
    ) {
        let types: Vec<&Type> = operands.iter().map(|k| &k.ty).collect();
        match op.infer(&types, attrs) {
            Err(e) => {
                let (message, help) = rule_message(op, &types, &e);
                self.error_at(e.code, call, message, Some(help));
            }
            Ok(inferred) if inferred != written => {
                let message =
                    format!("`{}` gives {}, written is {}", op.name(), list(inferred.iter()), list(written.iter()));
                self.error_at("ir::contract", place, message, None);
            }
            Ok(_) => {}
        }
    }

    fn returned(&mut self, header: &[(Type, Range<usize>)]) -> Parsed<()> {
        let start = self.advance().span;
        self.returned = true;
        self.at = Some("return".into());
        let (values, _) = self.operands()?;
        if values.len() != header.len() && self.errors.is_empty() && self.unknown.is_empty() {
            let message = format!("{} values are returned, the header says {}", values.len(), header.len());
            self.error_at("ir::contract", start, message, None);
        } else if self.unknown.is_empty() {
            for (known, (ty, span)) in values.iter().zip(header) {
                if known.ty != *ty {
                    self.error_at(
                        "ir::contract",
                        span.clone(),
                        format!("the header says {ty}, returned is {}", known.ty),
                        None,
                    );
                }
            }
        }
        self.graph.outputs = values.iter().map(|k| k.id).collect();
        Ok(())
    }
}
