//! The parser's hand on the text: the next token, and errors with their places.

use super::error::ParseError;
use super::lex::{Lexeme, Token};
use super::parse::{Failed, MAX_ERRORS, Parsed, Parser};
use std::ops::Range;

impl<'a> Parser<'a> {
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
}
