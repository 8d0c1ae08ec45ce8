//! `explain --html`: everything in one page that needs nothing else, no network and no font.
//!
//! The page has a content security policy that allows its own style and script by their digests and nothing more. Every name that comes from
//! a checkpoint or an artifact goes through [`escape::e`].

mod draw;
mod escape;
mod groups;
mod layout;
mod sections;
mod sheet;
pub(super) mod words;

use super::{Subject, explain};
use crate::error::Error;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use deepfuse_artifact::report::{Report, exit};
use escape::e;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// How every page begins.
const HEAD: &str = "<!doctype html>\n<!-- deepfuse explain -->\n";
/// Hues of kernels, in degrees.
const HUES: [u16; 12] = [215, 152, 28, 330, 265, 185, 48, 100, 0, 295, 240, 15];

/// The page of a subject. The same subject gives the same bytes.
///
/// Errors: those of [`explain`].
pub fn page(subject: &Subject) -> Result<String, Error> {
    let told = explain(subject, None, None)?;
    let sheets = sheet::sheets(subject, &told)?;
    let forms = sheets.iter().map(|s| s.forms.len()).max().unwrap_or(0);
    let buckets = told.classes.first().map_or(0, |c| c.buckets.len());
    let style = format!("{}{}", include_str!("html/page.css"), generated_style(forms, buckets));
    let script = include_str!("html/page.js");
    let mut page = format!(
        "{HEAD}<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} - deepfuse explain</title>\n<style>{style}</style>\n</head>\n<body>\n",
        digest(&style),
        digest(script),
        e(&subject.title),
    );
    sections::head(&mut page, subject, &told, &sheets);
    page.push_str("<main>\n");
    sections::overview(&mut page, &told);
    for sheet in &sheets {
        sections::class(&mut page, sheet, &told);
    }
    sections::rules(&mut page, &told);
    let _ = write!(
        page,
        "</main>\n<div id=\"tip\" role=\"tooltip\" hidden></div>\n<script>{script}</script>\n</body>\n</html>\n"
    );
    Ok(page)
}

/// Colours of kernels, and what each tab shows.
fn generated_style(forms: usize, buckets: usize) -> String {
    let mut css = String::new();
    for (k, hue) in HUES.iter().enumerate() {
        let (fill, edge) =
            (format!("hsl({hue} var(--fill-s) var(--fill-l))"), format!("hsl({hue} var(--edge-s) var(--edge-l))"));
        let _ = writeln!(
            css,
            ".k{k} {{ background: {fill}; border-color: {edge}; }} svg.bar rect.k{k} {{ fill: {edge}; }}"
        );
        for f in 0..forms {
            let _ = writeln!(
                css,
                "section:has(input.f{f}:checked) .f{f}k{k} > rect:first-child {{ fill: {fill}; stroke: {edge}; stroke-dasharray: none; }}"
            );
        }
    }
    for (letter, count) in [('f', forms), ('b', buckets)] {
        for i in 0..count {
            let _ = writeln!(css, "section:not(:has(input.{letter}{i}:checked)) .on-{letter}{i} {{ display: none; }}");
        }
    }
    css + ".key.fused { background: hsl(215 var(--fill-s) var(--fill-l)); border-color: hsl(215 var(--edge-s) var(--edge-l)); }\n"
}

/// SHA-256 in base64, as a content security policy writes it.
fn digest(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

/// Writes the page; it appears whole or not at all. An earlier page of that name is replaced, anything else is left alone.
///
/// Errors: `explain::taken`; `explain::write` with the path and what the system says.
pub fn write(page: &str, path: &Path) -> Result<(), Error> {
    let failed = |e: std::io::Error| {
        let message = format!("{}: cannot write the page: {e}", path.display());
        Report::new("explain::write", exit::ENVIRONMENT, message).file(path)
    };
    if path.exists() && !is_page(path) {
        let message = format!("{} is there and is no page of deepfuse", path.display());
        let taken = Report::new("explain::taken", exit::ENVIRONMENT, message).file(path);
        return Err(taken.help("give --html another name, or remove what is there").into());
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::File::create_new(&temporary).and_then(|mut file| {
        file.write_all(page.as_bytes())?;
        file.sync_all()
    });
    let done = written.and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(done.map_err(failed)?)
}

/// Whether a file is a page that [`page`] made.
fn is_page(path: &Path) -> bool {
    let mut head = vec![0; HEAD.len()];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut head));
    read.is_ok() && head == HEAD.as_bytes()
}

#[cfg(test)]
mod tests;
