//! `deepfuse explain`: what became of every layer, what decided it, and why other rules did not fire.

use deepfuse::explain::{
    BucketStory, Class, Explanation, Form, RuleInClass, RuleStory, Subject, buckets_text, classes, explain, html,
    memory_lines, outcome,
};
use deepfuse::{Error, Request, tune};
use deepfuse_codegen::x86::targets;
use deepfuse_ir::Bucket;
use indexmap::IndexMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Artifact (NAME.dfz), checkpoint directory or config.json; of a checkpoint no weight is read
    path: PathBuf,
    /// Tell everything about one fusion rule
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// Write one page that needs no network: graphs before and after, the steps of every fusion, costs
    #[arg(long, value_name = "FILE.html", conflicts_with_all = ["rule", "bucket"])]
    html: Option<PathBuf>,
    /// Print a table alone: kernels, bytes a token and time of every layer class in every bucket, before and after fusion
    #[arg(long, conflicts_with_all = ["rule", "html"])]
    table: bool,
    /// Bucket to tell of: such as decode-1 or prefill-512 [default: all]
    #[arg(long, value_name = "B")]
    bucket: Option<String>,
    /// Directory of measurements by `deepfuse tune`: costs come from them where there are any, else from the estimate
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// Of a checkpoint: the target whose costs decide between the forms [default: native]
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Of a checkpoint: how far fusion may change results, see `deepfuse compile --help` [default: requantizes]
    #[arg(long, value_name = "CLASS")]
    numerics: Option<super::compile::NumericsArg>,
    /// Of a checkpoint: type of activations [default: bf16]
    #[arg(long, value_name = "TYPE")]
    activations: Option<super::compile::ActivationsArg>,
    /// Of a checkpoint: type to quantize matrices to [default: none]
    #[arg(long, value_name = "TYPE")]
    quant: Option<super::compile::QuantArg>,
    /// Of a checkpoint: a fusion rule that must not fire (`all`: none may); can be given several times
    #[arg(long = "disable-rule", value_name = "RULE")]
    disabled: Vec<String>,
}

pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    let subject = if args.path.join("manifest.json").exists() {
        let subject = of_artifact(args)?;
        let records = tune::records(args.records.as_deref(), &subject.target)?;
        Subject { records, ..subject }
    } else {
        Subject::of_checkpoint(&request(args)?)?
    };
    if let Some(path) = &args.html {
        return page(&subject, path, json);
    }
    if args.table {
        return table(&classes(&subject)?, args.bucket.as_deref(), json);
    }
    let told = explain(&subject, args.rule.as_deref(), args.bucket.as_deref())?;
    if json {
        super::print_json(&serde_json::to_value(&told).expect("an explanation is plain data"));
        return Ok(());
    }
    match &args.rule {
        Some(_) => told.rules.iter().for_each(|r| rule(&told, r)),
        None => everything(&told),
    }
    Ok(())
}

fn page(subject: &Subject, path: &std::path::Path, json: bool) -> Result<(), Error> {
    let page = html::page(subject)?;
    html::write(&page, path)?;
    if json {
        let (path, bytes) = (path.display().to_string(), page.len());
        super::print_json(&serde_json::json!({"schema": "deepfuse.page/1", "page": path, "bytes": bytes}));
    } else {
        say!("{}", path.display());
    }
    Ok(())
}

/// A line for every layer class and bucket.
fn table(classes: &[Class], bucket: Option<&str>, json: bool) -> Result<(), Error> {
    if bucket.is_some_and(|b| Bucket::named(b).is_none()) {
        return Err(Error::usage("there is no such bucket", format!("buckets: {}", Bucket::names())));
    }
    if json {
        super::print_json(&serde_json::json!({"schema": "deepfuse.table/1", "classes": classes}));
        return Ok(());
    }
    say!(
        "{:<44} {:>6}  {:<14} {:>9} {:>19} {:>22}",
        "layer class",
        "layers",
        "bucket",
        "kernels",
        "MB a token",
        "us a step"
    );
    for c in classes {
        for b in c.buckets.iter().filter(|b| bucket.is_none_or(|name| name == b.bucket)) {
            let form = |is: &dyn Fn(&&Form) -> bool| b.forms.iter().find(|f| is(f));
            let (Some(plain), Some(fused)) = (form(&|f| f.name == "plain"), form(&|f| f.chosen)) else { continue };
            let bytes = |f: &Form| format!("{:.2}", f.bytes_per_token / 1e6);
            let time = |f: &Form| f.nanos.map_or_else(|| "-".to_owned(), |n| format!("{:.0}", n / 1e3));
            say!(
                "{:<44} {:>6}  {:<14} {:>9} {:>19} {:>22}",
                c.holds,
                c.regions.len(),
                b.bucket,
                format!("{} -> {}", plain.kernels, fused.kernels),
                format!("{} -> {}", bytes(plain), bytes(fused)),
                format!("{} -> {}", time(plain), time(fused))
            );
        }
    }
    Ok(())
}

fn of_artifact(args: &Args) -> Result<Subject, Error> {
    let of_checkpoint = args.target.is_some()
        || args.numerics.is_some()
        || args.activations.is_some()
        || args.quant.is_some()
        || !args.disabled.is_empty();
    if of_checkpoint {
        let help = "give the checkpoint or its config.json instead of the artifact";
        return Err(Error::usage(
            "--target, --numerics, --activations, --quant and --disable-rule are fixed in an artifact",
            help,
        ));
    }
    Subject::of_artifact(&args.path)
}

fn request(args: &Args) -> Result<Request, Error> {
    let name = args.target.as_deref().unwrap_or("native");
    let target = targets::named(name).ok_or_else(|| super::compile::unknown_target(name))?;
    let usual = Request::new(args.path.clone(), PathBuf::new(), target); // nothing is written
    Ok(Request {
        activations: args.activations.map_or(usual.activations, Into::into),
        quant: args.quant.and_then(super::compile::QuantArg::types),
        numerics: args.numerics.map_or(usual.numerics, Into::into),
        shapes_only: true,
        disabled_rules: args.disabled.clone(),
        records: tune::records(args.records.as_deref(), &usual.target)?,
        ..usual
    })
}

fn micros(nanos: f64) -> String {
    format!("{:.1} us", nanos / 1e3)
}

fn everything(told: &Explanation) {
    say!(
        "{} layer classes, rewrites up to `{}`, costs for {} by {}",
        told.classes.len(),
        told.numerics,
        told.target,
        told.basis
    );
    if told.basis == "record" {
        say!("kernels with * were measured, the others are estimated");
    }
    if let Some(proof) = &told.proof {
        say!("extraction: {proof} by these costs");
    }
    for line in told.memory.iter().flat_map(memory_lines) {
        say!("{line}");
    }
    for (i, c) in told.classes.iter().enumerate() {
        class(i, c);
    }
    say!("\nrules");
    for r in &told.rules {
        say!("  {:<28} {}", format!("{} {}", r.rule, r.direction), summary(r));
    }
    say!("(one rule in full: --rule NAME)");
}

fn class(number: usize, c: &Class) {
    let (first, last) = (c.regions.first().copied().unwrap_or(0), c.regions.last().copied().unwrap_or(0));
    let regions = match c.regions.len() {
        1 => format!("region {first}"),
        n => format!("{n} regions from {first} to {last}"),
    };
    say!("\nclass {number}: {regions}: {}, {} operations", c.holds, c.operations);
    c.buckets.iter().for_each(bucket);
}

fn bucket(b: &BucketStory) {
    say!("  {} ({})", b.bucket, b.typical);
    b.forms.iter().for_each(|f| say!("    {}", form(f)));
    for k in &b.kernels {
        let rules = if k.rules.is_empty() { String::new() } else { format!("   <- {}", k.rules.join(" <- ")) };
        say!(
            "    {:>13}{} {:<14} {} -> {}{rules}",
            micros(k.nanos),
            if k.basis == "record" { "*" } else { " " },
            k.operation,
            k.operands.join(", "),
            k.results.join(", ")
        );
    }
}

/// `chosen: 9 kernels, 12.3 us + 0.1 us for weights that only it stores (mla_absorbed)`
fn form(f: &Form) -> String {
    let name = match (f.chosen, f.name.as_str()) {
        (true, _) => "chosen".to_owned(),
        (false, "plain") => "plain".to_owned(),
        (false, other) => format!("as in {other}"),
    };
    let cost = f.nanos.map_or_else(|| "an operation has no kernel".to_owned(), micros);
    let charge = if f.charge_nanos > 0.0 {
        format!(" + {} for weights that only it stores", micros(f.charge_nanos))
    } else {
        String::new()
    };
    let attention = if f.attention.is_empty() { String::new() } else { format!(" ({})", f.attention.join(", ")) };
    format!("{name}: {} kernels, {cost}{charge}{attention}", f.kernels)
}

/// One line on a rule: where it is used, else where it lost, else the nearest match.
fn summary(r: &RuleStory) -> String {
    let used = r.classes.iter().filter(|c| !c.used.is_empty());
    let mut by_buckets: IndexMap<String, Vec<String>> = IndexMap::new();
    for c in used {
        by_buckets.entry(buckets_text(&c.used)).or_default().push(c.class.to_string());
    }
    let told = |c: &RuleInClass| format!("class {}: {}", c.class, in_ascii(&outcome(c).0));
    if by_buckets.is_empty() {
        let lost = r.classes.iter().find(|c| c.fired > 0);
        return lost.or_else(|| r.nearest()).map_or_else(|| "there is no layer class".to_owned(), told);
    }
    let classes = |all: &[String]| {
        if all.len() == 1 { format!("class {}", all[0]) } else { format!("classes {}", all.join(", ")) }
    };
    let used: Vec<String> = by_buckets.iter().map(|(buckets, all)| format!("{} ({buckets})", classes(all))).collect();
    let lost = r.classes.iter().find_map(|c| Some(format!("; class {}, {}", c.class, in_ascii(outcome(c).1.first()?))));
    format!("used in {}{}", used.join(", "), lost.unwrap_or_default())
}

fn in_ascii(text: &str) -> String {
    text.replace('µ', "u")
}

fn times(n: usize) -> String {
    if n == 1 { "fired once".to_owned() } else { format!("fired {n} times") }
}

fn rule(told: &Explanation, r: &RuleStory) {
    say!("{} {}", r.rule, r.direction);
    r.left.iter().for_each(|l| say!("  from  {l}"));
    r.right.iter().for_each(|l| say!("  to    {l}"));
    if !r.premises.is_empty() {
        say!("  if    {}", r.premises.join(", "));
    }
    for c in &r.classes {
        let (what, more) = outcome(c);
        let fired = if c.fired > 0 { format!("{}, ", times(c.fired)) } else { String::new() };
        say!("  class {} ({}): {fired}{}", c.class, told.classes[c.class].holds, in_ascii(&what));
        for line in &more {
            say!("    {}", in_ascii(line));
        }
    }
}
