//! Nodes, cuts and `return`.

use super::error::{list, nearest, rule_message};
use super::lex::Token;
use super::parse::{Known, MAX_ERRORS, Parsed, Parser};
use crate::graph::ValueId;
use crate::ops::Op;
use crate::types::Type;
use std::ops::Range;

impl Parser<'_> {
    /// One node, cut or `return`; false at the end.
    pub fn item(&mut self, header: &[(Type, Range<usize>)]) -> bool {
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
            self.define(key, Known { id, ty, sound, span });
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
        let known = self.names.get(&key).map(|k| Known { span: span.clone(), ..k.clone() });
        if known.is_none() && self.unknown.len() < MAX_ERRORS {
            self.unknown.push((key, span, self.at.clone()));
        }
        Ok(known)
    }

    pub fn define(&mut self, key: String, known: Known) {
        if self.names.contains_key(&key) {
            let help = Some("every name is defined once".into());
            let message = format!("`{}` is defined a second time", self.slice(&known.span));
            self.error_at("ir::name", known.span.clone(), message, help);
        }
        self.names.insert(key, known);
    }

    pub fn report_unknown(&mut self) {
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
                let span = e.operand.and_then(|i| operands.get(i)).map_or(call, |k| k.span.clone());
                self.error_at(e.code, span, message, Some(help));
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
