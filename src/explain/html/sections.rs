//! The parts of the page.

use super::escape::e;
use super::sheet::{Costs, Form, Fusion, Sheet, step_name};
use super::words::{count, gain, listed, time};
use crate::explain::{BucketStory, Class, Explanation, RuleStory, Subject, memory_lines, outcome};
use deepfuse_passes::fuse::sentence;
use indexmap::IndexMap;
use std::fmt::Write;

/// Writes to a string, which takes all text.
macro_rules! put {
    ($page:expr, $($text:tt)*) => { write!($page, $($text)*).expect("a string takes all text") };
}

/// Title, what it is, and links.
pub fn head(page: &mut String, subject: &Subject, told: &Explanation, sheets: &[Sheet]) {
    put!(
        page,
        "<a class=\"skip\" href=\"#overview\">Skip to the report</a>\n<header>\n<h1>{}</h1>\n",
        e(&subject.title)
    );
    page.push_str("<p class=\"soft\">What fusion made of every layer, which rewrites did it, and what they gained.</p>\n<div class=\"facts\">");
    for (name, value) in &subject.facts {
        put!(page, "<span>{} <b>{}</b></span>", e(name), e(value));
    }
    put!(
        page,
        "<span>target <b>{}</b></span><span>rewrites up to <b>{}</b></span><span>costs by <b>{}</b></span>",
        e(&told.target),
        e(told.numerics),
        e(&told.basis)
    );
    if let Some(proof) = &told.proof {
        put!(page, "<span>forms <b>{}</b></span>", e(proof));
    }
    page.push_str("</div>\n</header>\n");
    page.push_str(
        "<nav class=\"nav\" aria-label=\"Parts of the report\"><ul><li><a href=\"#overview\">Overview</a></li>",
    );
    for s in sheets {
        put!(page, "<li><a href=\"#class-{}\">{}</a></li>", s.number, e(&s.holds));
    }
    page.push_str("<li><a href=\"#rules\">Rules, and why not</a></li></ul></nav>\n");
}

/// Plain and chosen form of a class in a bucket.
struct Pair {
    plain: Option<f64>,
    fused: f64,
    plain_kernels: usize,
    kernels: usize,
    attention: Vec<&'static str>,
}

fn pair(story: &BucketStory) -> Pair {
    let plain = story.forms.iter().find(|f| f.name == "plain");
    let chosen = story.forms.iter().find(|f| f.chosen);
    Pair {
        plain: plain.and_then(|f| f.nanos),
        fused: chosen.and_then(|f| f.nanos).unwrap_or(0.0),
        plain_kernels: plain.map_or(0, |f| f.kernels),
        kernels: chosen.map_or(0, |f| f.kernels),
        attention: chosen.map(|f| f.attention.clone()).unwrap_or_default(),
    }
}

fn bar(page: &mut String, part: f64, class: &str) {
    let width = (part * 100.0).clamp(0.3, 100.0);
    put!(
        page,
        "<svg class=\"bar\" viewBox=\"0 0 100 9\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect{class} width=\"{width:.2}\" height=\"9\"/></svg>"
    );
}

/// A tile for every bucket, and the table of classes.
pub fn overview(page: &mut String, told: &Explanation) {
    page.push_str("<h2 id=\"overview\" class=\"skip\">Overview</h2>\n<div class=\"tiles\">\n");
    let buckets = told.classes.first().map_or(&[][..], |c| c.buckets.as_slice());
    for (at, bucket) in buckets.iter().enumerate() {
        let (mut plain, mut fused, mut kernels) = (Some(0.0), 0.0, [0, 0]);
        for class in &told.classes {
            let (p, n) = (pair(&class.buckets[at]), class.regions.len());
            plain = plain.zip(p.plain).map(|(sum, one)| sum + one * n as f64);
            fused += p.fused * n as f64;
            kernels = [kernels[0] + p.plain_kernels * n, kernels[1] + p.kernels * n];
        }
        let (name, typical) = (e(&bucket.bucket), e(&bucket.typical));
        put!(page, "<div class=\"card\"><h3>{name}</h3><p class=\"soft small\">{typical}</p>");
        if let Some(plain) = plain {
            put!(page, "<div class=\"big\">{}</div>", gain(plain, fused));
            bar(page, 1.0, "");
            bar(page, fused / plain.max(1.0), " class=\"k0\"");
            put!(page, "<p class=\"soft\">{} → {} a step</p>", time(plain), time(fused));
        } else {
            put!(
                page,
                "<div class=\"big\">{}</div><p class=\"soft\">a step; the plain form has no kernels here</p>",
                time(fused)
            );
        }
        put!(page, "<p class=\"soft\">{} → {} launches</p></div>\n", kernels[0], kernels[1]);
    }
    page.push_str("</div>\n");
    if let Some(memory) = &told.memory {
        let lines = memory_lines(memory).join("\n");
        put!(
            page,
            "<div class=\"card\"><h3>What a limit on memory gave up</h3><pre class=\"scroll\">{}</pre></div>\n",
            e(&lines)
        );
    }
    classes(page, told);
}

/// Buckets down, layer classes across: there are more buckets than classes.
fn classes(page: &mut String, told: &Explanation) {
    page.push_str("<div class=\"card scroll\"><table class=\"classes\"><caption class=\"skip\">Layer classes by bucket</caption><thead><tr><th>Bucket</th>");
    for (number, class) in told.classes.iter().enumerate() {
        put!(
            page,
            "<th><a href=\"#class-{number}\">{}</a> <small>{}</small></th>",
            e(&class.holds),
            count(class.regions.len(), "layer")
        );
    }
    page.push_str("</tr></thead><tbody>\n");
    for (at, bucket) in told.classes.first().map_or(&[][..], |c| c.buckets.as_slice()).iter().enumerate() {
        put!(page, "<tr><th scope=\"row\">{}</th>", e(&bucket.bucket));
        for p in told.classes.iter().map(|class| pair(&class.buckets[at])) {
            let before = p.plain.map_or_else(String::new, |t| format!("{} → ", time(t)));
            put!(page, "<td>{before}<b>{}</b>", time(p.fused));
            put!(
                page,
                "<div class=\"soft\">{} → {} kernels{}</div></td>",
                p.plain_kernels,
                p.kernels,
                p.attention.iter().fold(String::new(), |s, a| s + ", " + a)
            );
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

/// A layer class: tabs of buckets, both graphs, fusions, costs.
pub fn class(page: &mut String, sheet: &Sheet, told: &Explanation) {
    let story = &told.classes[sheet.number];
    put!(
        page,
        "<section class=\"class card\" id=\"class-{}\">\n<div class=\"head\"><h2>{}</h2><span class=\"soft\">{}</span></div>\n",
        sheet.number,
        e(&sheet.holds),
        e(&regions(&sheet.regions))
    );
    tabs(page, sheet, story);
    page.push_str(LEGEND);
    put!(
        page,
        "<div class=\"graphs\">\n<div class=\"pane\"><h3>Before: {}</h3>\n{}</div>\n<div class=\"pane\">",
        count(sheet.operations, "operation"),
        sheet.plain
    );
    for (f, form) in sheet.forms.iter().enumerate() {
        put!(
            page,
            "<div class=\"on-f{f}\"><h3>After: {}</h3>\n{}</div>\n",
            count(form.kernels, "kernel"),
            form.picture
        );
    }
    page.push_str("</div>\n<div class=\"side\">");
    for (f, form) in sheet.forms.iter().enumerate() {
        fusions(page, f, form, sheet.number);
    }
    page.push_str("</div>\n</div>\n");
    for (b, costs) in sheet.costs.iter().enumerate() {
        self::costs(page, b, costs, &story.buckets[b]);
    }
    page.push_str("</section>\n");
}

const LEGEND: &str = "<div class=\"legend\" aria-hidden=\"true\"><span><i class=\"key fused\"></i>part of a fusion: one colour, one fusion; click it</span>\
    <span><i class=\"key\"></i>as it was</span><span><i class=\"key view\"></i>a view, no kernel</span><span><i class=\"key weight\"></i>weight</span>\
    <span><i class=\"key state\"></i>state of the cache</span></div>\n";

fn regions(list: &[usize]) -> String {
    match list {
        [one] => format!("region {one}"),
        [first, .., last] => format!("{} regions of one structure, {first} to {last}", list.len()),
        [] => "no region".to_owned(),
    }
}

fn tabs(page: &mut String, sheet: &Sheet, story: &Class) {
    page.push_str("<fieldset><legend>Bucket</legend>");
    for (b, costs) in sheet.costs.iter().enumerate() {
        let (p, checked) = (pair(&story.buckets[b]), if b == 0 { " checked" } else { "" });
        let before = p.plain.map_or_else(String::new, |t| format!("{} → ", time(t)));
        put!(
            page,
            "<label class=\"tab\"><input type=\"radio\" name=\"class-{}\" class=\"b{b} f{}\"{checked}><span>{} <small>{before}{}</small></span></label>",
            sheet.number,
            costs.form,
            e(&costs.bucket),
            time(p.fused)
        );
    }
    page.push_str("</fieldset>\n");
}

fn fusions(page: &mut String, f: usize, form: &Form, class: usize) {
    put!(page, "<div class=\"on-f{f}\"><h3>{}</h3>\n", count(form.fusions.len(), "fusion"));
    if form.fusions.is_empty() {
        page.push_str("<p class=\"soft\">Every operation is a kernel of its own.</p>");
    }
    for fusion in &form.fusions {
        put!(
            page,
            "<details class=\"fusion\" id=\"{}\" name=\"c{class}f{f}\"><summary><i class=\"swatch k{}\"></i><span class=\"mono\">{}</span><span class=\"num\">{}</span></summary><div>",
            fusion.id,
            fusion.color,
            e(&fusion.name),
            count(fusion.steps.len(), "step")
        );
        if !fusion.replaced.is_empty() {
            put!(page, "<p class=\"soft\">in place of {}</p>", e(&listed(fusion.replaced.iter().copied())));
        }
        steps(page, fusion);
        page.push_str("</div></details>\n");
    }
    page.push_str("</div>\n");
}

fn steps(page: &mut String, fusion: &Fusion) {
    page.push_str("<ol class=\"steps\">");
    for ((number, step), bindings) in fusion.steps.iter().zip(&fusion.bindings) {
        put!(
            page,
            "<li><b>{}</b> <span class=\"badge {}\">{}</span><br>{}",
            e(&step_name(step)),
            e(step.class.name()),
            e(step.class.name()),
            e(sentence(&step.rule))
        );
        if !step.premises.is_empty() {
            page.push_str("<ul>");
            step.premises.iter().for_each(|p| put!(page, "<li>holds: <code>{}</code></li>", e(p)));
            page.push_str("</ul>");
        }
        put!(page, "<details><summary class=\"soft\">step {number} of the certificate</summary><ul>");
        for b in bindings {
            put!(page, "<li><code>{}</code></li>", e(b));
        }
        page.push_str("</ul></details></li>");
    }
    page.push_str("</ol>");
}

fn costs(page: &mut String, b: usize, costs: &Costs, story: &BucketStory) {
    let most = costs.rows.iter().map(|r| r.plain.max(r.fused)).fold(1.0, f64::max);
    put!(
        page,
        "<div class=\"costs on-b{b}\">\n<h3>Where the time of {} goes, plain above fused</h3>\n<div class=\"scroll\"><table><thead><tr><th>Kernels</th><th class=\"wide\"></th><th class=\"num\">Plain</th><th class=\"num\">Fused</th><th></th></tr></thead><tbody>\n",
        e(&costs.bucket)
    );
    for row in &costs.rows {
        let swatch = row
            .color
            .map_or_else(|| "<i class=\"swatch\"></i>".to_owned(), |k| format!("<i class=\"swatch k{k}\"></i>"));
        put!(page, "<tr><td>{swatch}<span class=\"mono\">{}</span></td><td class=\"wide\">", e(&row.name));
        bar(page, row.plain / most, "");
        let class = row.color.map_or_else(String::new, |k| format!(" class=\"k{k}\""));
        bar(page, row.fused / most, &class);
        let told = if row.color.is_some() && row.fused > 0.0 && row.plain > 0.0 {
            gain(row.plain, row.fused)
        } else {
            String::new()
        };
        put!(
            page,
            "</td><td class=\"num\">{}</td><td class=\"num\">{}</td><td class=\"gain\">{told}</td></tr>\n",
            time(row.plain),
            time(row.fused)
        );
    }
    page.push_str("</tbody></table></div>\n");
    page.push_str("<details><summary class=\"soft\">Forms that were to be had, and every kernel with its shapes</summary>\n<div class=\"scroll\"><table><thead><tr><th>Form</th><th class=\"num\">Kernels</th><th class=\"num\">Cost</th><th class=\"num\">Weights stored anew</th></tr></thead><tbody>");
    for f in &story.forms {
        let name = match (f.chosen, f.name.as_str()) {
            (true, _) => "<b>chosen</b>".to_owned(),
            (false, "plain") => "plain".to_owned(),
            (false, other) => format!("as in {}", e(other)),
        };
        let cost = f.nanos.map_or_else(|| "an operation has no kernel".to_owned(), time);
        put!(
            page,
            "<tr><td>{name} <span class=\"soft\">{}</span></td><td class=\"num\">{}</td><td class=\"num\">{cost}</td><td class=\"num\">{}</td></tr>",
            e(&f.attention.join(", ")),
            f.kernels,
            time(f.charge_nanos)
        );
    }
    page.push_str("</tbody></table>\n<table><thead><tr><th>Kernel</th><th>Operands</th><th>Results</th><th class=\"num\">Cost</th></tr></thead><tbody>");
    for k in &story.kernels {
        put!(
            page,
            "<tr><td class=\"mono\">{}</td><td class=\"mono\">{}</td><td class=\"mono\">{}</td><td class=\"num\">{}</td></tr>",
            e(k.operation),
            e(&k.operands.join(", ")),
            e(&k.results.join(", ")),
            time(k.nanos)
        );
    }
    page.push_str("</tbody></table></div></details>\n</div>\n");
}

/// Every rule: where it is used, where it lost, and what its nearest match lacked.
pub fn rules(page: &mut String, told: &Explanation) {
    page.push_str("<section class=\"card\" id=\"rules\">\n<h2>Rules, and why not</h2>\n<p class=\"soft\">Where each rewrite is part of the chosen form; where it was legal and cost more; else the match that came nearest, and what it lacked.</p>\n");
    let used = |r: &RuleStory| r.classes.iter().any(|c| !c.used.is_empty());
    let fired = |r: &RuleStory| r.classes.iter().any(|c| c.fired > 0);
    let groups = [("Part of a chosen form", " open"), ("Legal, and not taken", " open"), ("Without a match", "")];
    for (at, (title, open)) in groups.into_iter().enumerate() {
        let of_group = |r: &&RuleStory| at == if used(r) { 0 } else { 2 - usize::from(fired(r)) };
        let of_group: Vec<&RuleStory> = told.rules.iter().filter(of_group).collect();
        if of_group.is_empty() {
            continue;
        }
        put!(
            page,
            "<details class=\"group\"{open}><summary>{title} <span class=\"soft\">{}</span></summary><div class=\"scroll\"><table class=\"rules\"><thead><tr><th>Rule</th><th>What became of it</th></tr></thead><tbody>\n",
            count(of_group.len(), "rule")
        );
        for r in &of_group {
            rule(page, r, told);
        }
        page.push_str("</tbody></table></div></details>\n");
    }
    page.push_str("</section>\n");
}

fn rule(page: &mut String, rule: &RuleStory, told: &Explanation) {
    put!(
        page,
        "<tr><td><b>{}</b> <span class=\"soft\">{}</span></td><td><p>{}</p>",
        e(rule.rule),
        e(rule.direction),
        e(sentence(rule.rule))
    );
    let mut by_outcome: IndexMap<(String, Vec<String>), Vec<&str>> = IndexMap::new();
    for c in &rule.classes {
        by_outcome.entry(outcome(c)).or_default().push(&told.classes[c.class].holds);
    }
    page.push_str("<ul>");
    for ((what, more), classes) in by_outcome {
        put!(page, "<li><span class=\"soft\">{}:</span> {}", e(&classes.join("; ")), e(&what));
        if !more.is_empty() {
            let row = |line: &String| {
                let (bucket, costs) = line.split_once(": ").unwrap_or((line, ""));
                format!("<tr><td>{}</td><td>{}</td></tr>", e(bucket), e(costs))
            };
            let rows: String = more.iter().map(row).collect();
            let title = if what.starts_with("used") { "not taken in " } else { "" };
            put!(
                page,
                "<details><summary class=\"soft\">{title}{}</summary><table class=\"lost\">{rows}</table></details>",
                count(more.len(), "bucket")
            );
        }
        page.push_str("</li>");
    }
    page.push_str("</ul>");
    pattern(page, rule);
    page.push_str("</td></tr>\n");
}

fn pattern(page: &mut String, rule: &RuleStory) {
    page.push_str("<details><summary class=\"soft\">pattern</summary>");
    rule.left.iter().for_each(|l| put!(page, "<p><code>{}</code></p>", e(l)));
    rule.right.iter().for_each(|r| put!(page, "<p>→ <code>{}</code></p>", e(r)));
    if !rule.premises.is_empty() {
        put!(page, "<p>if <code>{}</code></p>", e(&rule.premises.join(", ")));
    }
    page.push_str("</details>");
}
