//! Attributes as words, in patterns and certificates.

use deepfuse_ir::{Attr, DType, Dim, Float, Symbol};

/// The inverse of the `Display` of [`Attr`].
pub fn parse_attr(word: &str) -> Option<Attr> {
    let list = |open: char, close: char| word.strip_prefix(open)?.strip_suffix(close);
    if let Some(inner) = list('<', '>') {
        return inner.split(',').map(|n| n.parse().ok()).collect::<Option<_>>().map(Attr::Ints);
    }
    if let Some(inner) = list('[', ']') {
        let dims = inner.split(',').filter(|d| !d.is_empty());
        return dims.map(parse_dim).collect::<Option<_>>().map(Attr::Shape);
    }
    if word.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        let float = || word.parse().ok().map(|x| Attr::Float(Float(x)));
        return word.parse().ok().map(Attr::Int).or_else(float);
    }
    DType::from_name(word).map(Attr::DType).or_else(|| (!word.is_empty()).then(|| Attr::Str(word.into())))
}

fn parse_dim(text: &str) -> Option<Dim> {
    let mut dim = Dim::fixed(0);
    for part in text.split('+') {
        let (factor, symbol) = match part.split_once('*') {
            Some((factor, symbol)) => (factor.parse().ok()?, symbol),
            None => (1, part),
        };
        match Symbol::from_name(symbol) {
            Some(s) => dim.terms[s as usize] = factor,
            None => dim.constant = part.parse().ok()?,
        }
    }
    Some(dim)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn attributes_are_words() {
        for word in ["3", "-1", "1.0", "1e-20", "tnd,xnd->tnx", "bf16", "fp8b128", "[T,2]", "[]", "<1,0>", "max"] {
            let attr = parse_attr(word).unwrap();
            assert_eq!(attr.to_string(), word);
        }
    }
}
