//! Words of the plan text.

use super::PlanError;

/// One word, with the bytes where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub kind: Kind,
    pub start: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A plain word: letters, digits, `_` and `.`, not starting with a digit; `-` before a letter or digit.
    Word(String),
    /// A quoted string, without its quotes and escapes.
    Text(String),
    /// As written: whole or decimal, maybe with a sign and an exponent.
    Number(String),
    /// One of `% $ @ + ( ) [ ] { } ,`, or the pairs `..` and `->`.
    Mark(&'static str),
    End,
}

impl Kind {
    pub fn describe(&self) -> String {
        match self {
            Self::Word(w) => format!("`{w}`"),
            Self::Text(t) => format!("{t:?}"),
            Self::Number(n) => n.clone(),
            Self::Mark(m) => format!("`{m}`"),
            Self::End => "the end of the text".to_owned(),
        }
    }
}

const MARKS: [&str; 13] = ["..", "->", "%", "$", "@", "+", "(", ")", "[", "]", "{", "}", ","];

/// A word needs no quotes.
pub fn is_word(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && word(s.as_bytes()) == s.len()
}

/// Length of the word that `s` starts with. A `-` belongs to it only before a letter or digit: `a->b` has an arrow.
fn word(s: &[u8]) -> usize {
    let inside = |i: usize| match s[i] {
        b'-' => s.get(i + 1).is_some_and(u8::is_ascii_alphanumeric),
        c => c.is_ascii_alphanumeric() || c == b'_' || c == b'.',
    };
    (0..s.len()).find(|i| !inside(*i)).unwrap_or(s.len())
}

/// All words of a text; the last is [`Kind::End`].
pub fn lex(text: &str) -> Result<Vec<Token>, PlanError> {
    let bytes = text.as_bytes();
    let mut tokens = vec![];
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let c = bytes[i];
        if c.is_ascii_whitespace() {
            i += 1;
        } else if text[i..].starts_with("//") {
            i += text[i..].find('\n').unwrap_or(text.len() - i);
        } else if c == b'"' {
            let (value, end) = string(text, i)?;
            i = end;
            tokens.push(Token { kind: Kind::Text(value), start });
        } else if let Some(len) = number(&bytes[i..]) {
            i += len;
            tokens.push(Token { kind: Kind::Number(text[start..i].to_owned()), start });
        } else if let Some(mark) = MARKS.into_iter().find(|m| bytes[i..].starts_with(m.as_bytes())) {
            i += mark.len();
            tokens.push(Token { kind: Kind::Mark(mark), start });
        } else if c.is_ascii_alphabetic() || c == b'_' {
            i += word(&bytes[i..]);
            tokens.push(Token { kind: Kind::Word(text[start..i].to_owned()), start });
        } else {
            let c = text[i..].chars().next().unwrap_or(' ');
            return Err(PlanError::at(text, i, format!("unexpected {c:?}"), "names with other characters are quoted"));
        }
    }
    tokens.push(Token { kind: Kind::End, start: text.len() });
    Ok(tokens)
}

/// Length of the number that `s` starts with. A `.` belongs to it only before a digit: `1..max` is a range.
fn number(s: &[u8]) -> Option<usize> {
    let digits = |from: usize| s[from.min(s.len())..].iter().take_while(|c| c.is_ascii_digit()).count();
    let mut len = usize::from(s.first() == Some(&b'-'));
    let whole = digits(len);
    if whole == 0 {
        return None;
    }
    len += whole;
    if s.get(len) == Some(&b'.') && digits(len + 1) > 0 {
        len += 1 + digits(len + 1);
    }
    if matches!(s.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(s.get(len + 1), Some(b'-' | b'+')));
        let exponent = digits(len + 1 + sign);
        if exponent > 0 {
            len += 1 + sign + exponent;
        }
    }
    Some(len)
}

/// The string that starts at `start`, and where it ends. Escapes: `\" \\ \n \t \r \u{hex}`.
fn string(text: &str, start: usize) -> Result<(String, usize), PlanError> {
    let bad =
        |at: usize, what: &str| Err(PlanError::at(text, at, what, "escapes are \\\" \\\\ \\n \\r \\t and \\u{hex}"));
    let mut value = String::new();
    let mut chars = text[start + 1..].char_indices();
    while let Some((i, c)) = chars.next() {
        let at = start + 1 + i;
        match c {
            '"' => return Ok((value, at + 1)),
            '\n' => return bad(start, "this string has no end on its line"),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some(c @ ('"' | '\\')) => value.push(c),
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some('u') => {
                    let rest = chars.as_str();
                    let Some(hex) = rest.strip_prefix('{').and_then(|r| r.get(..r.find('}')?)) else {
                        return bad(at, "an unfinished escape");
                    };
                    let Some(c) = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32) else {
                        return bad(at, "an escape that is no character");
                    };
                    value.push(c);
                    chars.by_ref().take(hex.len() + 2).for_each(drop);
                }
                _ => return bad(at, "an unknown escape"),
            },
            c => value.push(c),
        }
    }
    bad(start, "this string has no end")
}
