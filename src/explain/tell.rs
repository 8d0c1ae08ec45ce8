//! What is told in words, on a terminal and on a page.

use super::html::words::time;
use super::story::{Lost, RuleInClass, Unused, same_cost};
use deepfuse_artifact::manifest::{FormInfo, MemoryInfo, SlowerInfo};
use deepfuse_ir::Bucket;
use deepfuse_runtime::cli::{human_bytes, human_seconds};

/// What became of a rule in a class: a sentence, and what else there is to say, bucket by bucket.
pub fn outcome(c: &RuleInClass) -> (String, Vec<String>) {
    let costs = |all: &[Lost]| all.iter().map(|l| format!("{}: {}", l.bucket, against(l.nanos))).collect();
    if let Some(why) = &c.why_not {
        return (why.clone(), vec![]);
    }
    if !c.used.is_empty() {
        return (format!("used in {}", buckets(&c.used)), costs(&c.lost));
    }
    match &c.unused {
        None => ("not used: no form was found that needs what it computes".to_owned(), vec![]),
        Some(u) => (format!("not used: {}", together(u)), costs(&u.buckets)),
    }
}

/// `all buckets`, or their names.
pub fn buckets(names: &[String]) -> String {
    if names.len() == Bucket::all().len() { "all buckets".to_owned() } else { names.join(", ") }
}

/// All buckets without and with a rule.
fn together(u: &Unused) -> String {
    let [own, with] = u.total_nanos;
    let weights = match u.stored[1].cmp(&u.stored[0]) {
        std::cmp::Ordering::Equal => "the same weights".to_owned(),
        std::cmp::Ordering::Greater => format!("{} more of weights", human_bytes(u.stored[1] - u.stored[0])),
        std::cmp::Ordering::Less => format!("{} less of weights", human_bytes(u.stored[0] - u.stored[1])),
    };
    if same_cost(own, with) {
        let tie = "and of equals the one with fewer bytes of weights, then with fewer operations is taken";
        return format!("all buckets together cost the same with it, {}, with {weights}; {tie}", time(own));
    }
    format!("all buckets together cost {}, with {weights}", against(u.total_nanos))
}

/// `16.2 ms with it, 15.9 ms without (+1.9 %)`
fn against([own, with]: [f64; 2]) -> String {
    if same_cost(own, with) {
        return format!("the same with it, {}", time(own));
    }
    let part = match with / own {
        times if times >= 2.0 => format!("{times:.1} times"),
        times => {
            let percent = 100.0 * (times - 1.0);
            let digits = if percent.abs() >= 0.1 { 1 } else { 4 };
            format!("{percent:+.digits$} %")
        }
    };
    format!("{} with it, {} without ({part})", time(with), time(own))
}

/// What was given up for `--memory`: forms with what holds their tensors instead, and the time that it costs.
pub fn memory_lines(m: &MemoryInfo) -> Vec<String> {
    let saved = human_bytes(m.wanted - m.stored);
    let mut lines = vec![format!("memory       {saved} less of weights than would be fastest, for --memory")];
    for g in &m.given_up {
        let (layers, saved) = (if g.regions == 1 { "layer" } else { "layers" }, human_bytes(g.saved.unsigned_abs()));
        let sign = if g.saved < 0 { "more" } else { "less" };
        lines.push(format!("  class {}, {} {layers}: {saved} {sign}", g.class, g.regions));
        let form = |what: &str, f: &FormInfo| format!("    {what:<12} {} ({})", f.form, human_bytes(f.bytes));
        lines.extend(g.forms.iter().map(|f| form("not stored", f)));
        lines.extend(g.instead.iter().map(|f| form(if f.new { "in its place" } else { "still stored" }, f)));
        lines.push(format!("    {:<12} {}", "slower", slower(&g.slower)));
    }
    lines.push(format!("  together, by the estimate of a whole step: {}", slower(&m.slower)));
    lines
}

/// `decode-1 +3.1 % (+950 us)` for buckets where it shows.
fn slower(all: &[SlowerInfo]) -> String {
    let told = all.iter().filter(|s| s.percent().abs() >= 0.1);
    let one = |s: &SlowerInfo| {
        let (sign, time) = (if s.picos < 0 { '-' } else { '+' }, human_seconds(s.picos.unsigned_abs() as f64 / 1e12));
        format!("{} {:+.1} % ({sign}{time})", s.bucket, s.percent())
    };
    let told: Vec<String> = told.map(one).collect();
    if told.is_empty() { "no step by 0.1 % or more".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> RuleInClass {
        RuleInClass { class: 0, fired: 1, used: vec![], lost: vec![], unused: None, why_not: None, distance: (0, 0) }
    }

    #[test]
    fn equal_costs_are_told_as_equal() {
        let lost = |bucket: &str, nanos| Lost { bucket: bucket.to_owned(), nanos };
        let buckets =
            vec![lost("decode-1", [2e6, 2e6 + 0.1]), lost("decode-8", [2e6, 2.02e6]), lost("mixed", [1e6, 5e6])];
        let unused = Unused { total_nanos: [5e9, 5e9], stored: [1 << 20, 1 << 20], buckets };
        let (told, more) = outcome(&RuleInClass { unused: Some(unused.clone()), ..class() });
        assert!(
            told.starts_with("not used: all buckets together cost the same with it, 5.00 s, with the same weights;"),
            "{told}"
        );
        let expected = [
            "decode-1: the same with it, 2.00 ms",
            "decode-8: 2.02 ms with it, 2.00 ms without (+1.0 %)",
            "mixed: 5.00 ms with it, 1.00 ms without (5.0 times)",
        ];
        assert_eq!(more, expected);
        let dearer = Unused { total_nanos: [5e9, 5.0001e9], stored: [1 << 20, 3 << 20], ..unused };
        let (told, _) = outcome(&RuleInClass { unused: Some(dearer), ..class() });
        assert_eq!(
            told,
            "not used: all buckets together cost 5.00 s with it, 5.00 s without (+0.0020 %), with 2.0 MiB more of weights"
        );
        assert_eq!(outcome(&class()).0, "not used: no form was found that needs what it computes");
    }

    #[test]
    fn buckets_are_told_short() {
        let all: Vec<String> = Bucket::all().into_iter().map(|b| b.name).collect();
        assert_eq!(buckets(&all), "all buckets");
        assert_eq!(buckets(&all[..2]), format!("{}, {}", all[0], all[1]));
        let lost = vec![Lost { bucket: all[1].clone(), nanos: [1e3, 3e3] }];
        let told = outcome(&RuleInClass { used: vec![all[0].clone()], lost, ..class() });
        assert_eq!(
            told,
            (format!("used in {}", all[0]), vec![format!("{}: 3.00 µs with it, 1.00 µs without (3.0 times)", all[1])])
        );
    }
}
