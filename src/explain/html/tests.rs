//! The page is whole, small, the same each time, adds up, and holds no markup that is not ours.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::explain::tests::request;
use deepfuse_passes::fuse::Numerics;

fn subject(name: &str) -> Subject {
    Subject::of_checkpoint(&request(name, Numerics::Requantizes, &[])).unwrap()
}

/// All tags as names and attributes; panics where the page is not well-formed.
fn tags(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = vec![];
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix("!--") {
            rest = &after[after.find("-->").unwrap()..];
            continue;
        }
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '!')).collect();
        rest = &rest[name.len()..];
        let mut attributes = vec![];
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix("/>").or_else(|| rest.strip_prefix('>')) {
                rest = after;
                break;
            }
            let word: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            assert!(!word.is_empty(), "in <{name}: {}", rest.chars().take(80).collect::<String>());
            rest = &rest[word.len()..];
            let value = rest.strip_prefix("=\"").map(|after| {
                let (value, after) = after.split_once('"').unwrap();
                rest = after;
                value.to_owned()
            });
            attributes.push((word, value.unwrap_or_default()));
        }
        if let Some(raw) = ["style", "script"].into_iter().find(|raw| *raw == name) {
            rest = &rest[rest.find(&format!("</{raw}>")).unwrap()..];
        }
        found.push((name, attributes));
    }
    found
}

/// Names that try to leave text and attributes, in every place that a checkpoint or a file name reaches.
#[test]
fn hostile_names_stay_text() {
    let honest = subject("tiny-v3");
    let names_of = |page: &str| {
        tags(page).into_iter().map(|(n, a)| (n, a.into_iter().map(|(n, _)| n).collect::<Vec<_>>())).collect::<Vec<_>>()
    };
    let expected = names_of(&page(&honest).unwrap());
    for evil in [
        "<script>alert(1)</script>",
        "\" onload=\"alert(1)",
        "' onfocus='x' autofocus",
        "</svg></style><img src=x>",
        "--><b>",
        "&lt;i&gt;",
    ] {
        let mut hostile = subject("tiny-v3");
        hostile.title = evil.to_owned();
        hostile.facts.iter_mut().for_each(|(_, value)| *value = evil.to_owned());
        hostile.report.inputs.iter_mut().flatten().for_each(|name| *name = evil.to_owned());
        let page = page(&hostile).unwrap();
        let found = names_of(&page);
        // The same tags with the same attributes, in the same order; only a text may be left out or wrapped otherwise.
        assert_eq!(found.iter().filter(|(n, _)| n == "script").count(), 1, "{evil}");
        assert_eq!(found, expected, "{evil}");
        assert!(page.contains(&e(evil).to_string()), "{evil}");
    }
}

#[test]
fn pages_are_self_contained_small_and_the_same() {
    for name in ["deepseek-v3-config", "deepseek-v2-lite-config", "tiny-v2", "tiny-v3", "tiny-v3-mtp"] {
        let subject = subject(name);
        let page = page(&subject).unwrap();
        assert_eq!(page, super::page(&subject).unwrap(), "{name}");
        assert!(page.len() < 1_000_000, "{name}: {} bytes", page.len());
        for outside in ["http://", "https://", "url(", "@import", "src=", "style=", "onclick"] {
            assert!(!page.contains(outside), "{name}: {outside}");
        }
        let tags = tags(&page);
        let count = |name: &str| tags.iter().filter(|t| t.0 == name).count();
        for name in ["svg", "section", "details", "table", "g", "div", "ol", "ul"] {
            assert_eq!(count(name), count(&format!("/{name}")), "{name}");
        }
        let ids: Vec<&str> = tags.iter().flat_map(|t| &t.1).filter(|a| a.0 == "id").map(|a| a.1.as_str()).collect();
        let distinct: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), distinct.len(), "an id is there twice");
        // Every fusion that a node names is there.
        for groups in tags.iter().flat_map(|t| &t.1).filter(|a| a.0 == "data-groups") {
            assert!(groups.1.split(' ').all(|g| distinct.contains(g)), "{groups:?}");
        }
    }
}

/// What the bars show is what was compared: their sums are the costs of the plain and of the chosen form.
#[test]
fn costs_add_up() {
    for name in ["deepseek-v3-config", "tiny-v2", "tiny-v3"] {
        let subject = subject(name);
        let told = explain(&subject, None, None).unwrap();
        for (sheet, class) in sheet::sheets(&subject, &told).unwrap().iter().zip(&told.classes) {
            assert_eq!(sheet.costs.len(), class.buckets.len());
            for (costs, story) in sheet.costs.iter().zip(&class.buckets) {
                let form = |pick: &dyn Fn(&crate::explain::Form) -> bool| {
                    story.forms.iter().find(|f| pick(f)).unwrap().nanos.unwrap()
                };
                let sum = |of: &dyn Fn(&sheet::Row) -> f64| costs.rows.iter().map(of).sum::<f64>();
                let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * b + 1.0;
                assert!(near(sum(&|r| r.plain), form(&|f| f.name == "plain")), "{name}, {}", costs.bucket);
                assert!(near(sum(&|r| r.fused), form(&|f| f.chosen)), "{name}, {}", costs.bucket);
            }
        }
    }
}

/// The absorbed attention of V3 is one group: three kernels in place of everything from the cache to the heads.
#[test]
fn groups_are_what_was_fused() {
    let subject = subject("deepseek-v3-config");
    let rules = deepfuse_passes::check::pattern::read_rules();
    let bucket = deepfuse_ir::Bucket::all().pop().unwrap().name; // the one that takes any batch
    for (number, certificate) in subject.certificate.classes.iter().enumerate().take(3) {
        let class = crate::explain::ReplayedClass::of(certificate, number, &subject, &rules).unwrap();
        let form = class.form(&bucket).unwrap();
        let groups = groups::groups(&class, form).unwrap();
        let of = |op: deepfuse_ir::Op| groups.iter().find(|g| g.fused.iter().any(|n| form.nodes[*n].op == op)).unwrap();
        let plain =
            |g: &groups::Group| g.plain.iter().map(|n| class.replay.plain.nodes[*n].op.name()).collect::<Vec<_>>();
        let attention = of(deepfuse_ir::Op::MlaAbsorbed);
        for op in ["softmax", "causal_mask", "read", "scale", "add"] {
            assert!(plain(attention).contains(&op), "{op}: {attention:?}");
        }
        assert!(!plain(attention).contains(&"write"), "{attention:?}");
        assert!(attention.steps.len() >= 3, "{attention:?}");
        let mut all: Vec<usize> = groups.iter().flat_map(|g| g.plain.iter().copied()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a plain node is in two groups");
        for g in groups.iter().filter(|g| g.steps.is_empty()) {
            assert!(g.fused.len() == 1 && g.plain.len() <= 1, "unchanged: {g:?}");
        }
    }
}

#[test]
fn digests_are_base64_of_sha256() {
    assert_eq!(digest(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    assert_eq!(digest("abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
}

#[test]
fn pages_are_written_whole_and_replace_pages_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.html");
    let page = format!("{HEAD}a");
    write(&page, &path).unwrap();
    write(&page, &path).unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    for taken in ["config.json", "."] {
        let error = write(&page, &dir.path().join(taken)).unwrap_err().report();
        assert_eq!((error.code, error.exit), ("explain::taken", exit::ENVIRONMENT), "{error:?}");
    }
    let error = write(&page, &dir.path().join("missing/r.html")).unwrap_err().report();
    assert_eq!(error.code, "explain::write");
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["config.json", "r.html"]);
}
