//! Tokens to graph. The grammar has no recursion, so no text can exhaust the stack.

use super::error::ParseError;
use super::lex::{Lexeme, Lexer, Token};
use crate::graph::{Graph, ParamKind, ValueId};
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
pub(super) struct Known {
    pub id: ValueId,
    pub ty: Type,
    /// The definition is complete, so that type rules may be asked about it.
    pub sound: bool,
    /// The name where it was met last.
    pub span: Range<usize>,
}

pub(super) struct Parser<'a> {
    pub source: &'a str,
    pub lexer: Lexer<'a>,
    pub ahead: Lexeme,
    /// End of the last token that was taken.
    pub end: usize,
    /// Brackets open in the current parameter.
    pub brackets: i32,
    pub errors: Vec<ParseError>,
    pub checked: bool,
    pub graph: Graph,
    pub names: HashMap<String, Known>,
    pub returned: bool,
    /// What is being defined.
    pub at: Option<String>,
    /// Uses of names that nothing before them defines.
    pub unknown: Vec<(String, Range<usize>, Option<String>)>,
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
        self.define(key, Known { id, ty, sound: true, span });
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
}
