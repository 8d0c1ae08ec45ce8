//! Text to tokens, one at a time.

use super::names::is_word_byte;
use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A word: `graph`, `linear`, `bf16`.
    Word,
    /// Digits, maybe with a point and an exponent; no sign.
    Number,
    /// `"..."`, escapes resolved.
    Text(String),
    /// `%name`.
    Value(String),
    /// `@name`.
    Global(String),
    /// One of `( ) { } [ ] < > , : = @ + * / -`.
    Punct(u8),
    Arrow,
    /// `----`
    Rule,
    End,
    /// What is wrong with the bytes of the span.
    Bad(&'static str),
}

/// A token with its place.
#[derive(Clone, Debug)]
pub(super) struct Lexeme {
    pub token: Token,
    pub span: Range<usize>,
    pub starts_line: bool,
    /// The comment between the token before and this one that stands on the line of the token before.
    pub comment: Option<Range<usize>>,
}

pub(super) struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(source: &'a str) -> Self {
        Self { source, at: 0 }
    }

    pub fn next(&mut self) -> Lexeme {
        let (starts_line, comment) = self.skip_blank();
        let start = self.at;
        let token = self.token();
        Lexeme { token, span: start..self.at, starts_line, comment }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.source.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Skips white space and comments.
    fn skip_blank(&mut self) -> (bool, Option<Range<usize>>) {
        let (mut new_line, mut comment) = (self.at == 0, None);
        loop {
            match self.peek(0) {
                b'\n' => new_line = true,
                b' ' | b'\t' | b'\r' => {}
                b'/' if self.peek(1) == b'/' => {
                    let length = self.source[self.at..].find('\n').unwrap_or(self.source.len() - self.at);
                    if !new_line {
                        comment = Some(self.at + 2..self.at + length);
                    }
                    self.at += length;
                    continue;
                }
                _ => return (new_line, comment),
            }
            self.at += 1;
        }
    }

    fn token(&mut self) -> Token {
        let c = self.peek(0);
        match c {
            0 if self.at >= self.source.len() => Token::End,
            b'%' => self.sigil(Token::Value),
            b'@' if self.peek(1) == b'"' || is_word_byte(self.peek(1)) => self.sigil(Token::Global),
            b'"' => self.text().map_or_else(Token::Bad, Token::Text),
            b'-' if self.peek(1) == b'>' => self.punct(2, Token::Arrow),
            b'-' if self.source[self.at..].starts_with("----") => self.punct(4, Token::Rule),
            b'(' | b')' | b'{' | b'}' | b'[' | b']' | b'<' | b'>' | b',' | b':' | b'=' | b'@' | b'+' | b'*' | b'/'
            | b'-' => self.punct(1, Token::Punct(c)),
            b'0'..=b'9' => self.number(),
            c if c.is_ascii_alphabetic() || c == b'_' => {
                self.word();
                Token::Word
            }
            _ => {
                self.at += self.source[self.at..].chars().next().map_or(1, char::len_utf8);
                Token::Bad("this character has no meaning here")
            }
        }
    }

    fn punct(&mut self, bytes: usize, token: Token) -> Token {
        self.at += bytes;
        token
    }

    fn word(&mut self) -> &'a str {
        let rest = &self.source[self.at..];
        let length = rest.bytes().position(|b| !is_word_byte(b)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn sigil(&mut self, make: fn(String) -> Token) -> Token {
        self.at += 1;
        if self.peek(0) == b'"' {
            return self.text().map_or_else(Token::Bad, make);
        }
        match self.word() {
            "" => Token::Bad("a name is missing after `%`"),
            name => make(name.to_owned()),
        }
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Token {
        self.digits();
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            self.digits();
        }
        let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
        if matches!(self.peek(0), b'e' | b'E') && self.peek(1 + sign).is_ascii_digit() {
            self.at += 1 + sign;
            self.digits();
        }
        Token::Number
    }

    /// From the opening quote; on an error the rest of the line is skipped.
    fn text(&mut self) -> Result<String, &'static str> {
        let mut text = String::new();
        let mut chars = self.source[self.at..].char_indices().skip(1);
        let fail = |this: &mut Self, why| {
            this.at += this.source[this.at..].find('\n').unwrap_or(this.source.len() - this.at);
            Err(why)
        };
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(text);
                }
                '\n' => break,
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some(c @ ('"' | '\\')) => text.push(c),
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('u') => {
                        let hex: String = chars.by_ref().map(|(_, c)| c).take_while(|c| *c != '}').take(8).collect();
                        let digits = hex.strip_prefix('{').filter(|h| h.len() <= 6);
                        let code = digits.and_then(|h| u32::from_str_radix(h, 16).ok());
                        match code.and_then(char::from_u32) {
                            Some(c) => text.push(c),
                            None => return fail(self, r"a character is written \u{hex}"),
                        }
                    }
                    _ => return fail(self, r#"known escapes are \", \\, \n, \t and \u{hex}"#),
                },
                c => text.push(c),
            }
        }
        fail(self, "the closing quote is missing on this line")
    }
}
