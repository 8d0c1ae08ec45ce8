//! What passes did, in numbers and time.

use deepfuse_passes::fuse::{FuseReport, RuleStats};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

/// What one pass did.
pub struct PassStats {
    pub name: String,
    /// Operations of the graph before and after.
    pub operations: (usize, usize),
    pub time: Duration,
    /// If it was fusion.
    pub fused: Option<FuseReport>,
}

impl PassStats {
    pub fn object(&self) -> Value {
        let (before, after) = self.operations;
        json!({"pass": self.name, "operations": {"before": before, "after": after}, "nanos": nanos(self.time)})
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn all_rules(passes: &[PassStats]) -> Vec<(String, RuleStats)> {
    passes.iter().filter_map(|p| p.fused.as_ref()).flat_map(FuseReport::rules).collect()
}

/// What every rule did, over all layer classes; those without a match too.
pub fn rules(passes: &[PassStats]) -> Vec<Value> {
    let object = |(name, s): (String, RuleStats)| {
        json!({
            "rule": name, "matches": s.matches, "applied": s.applied, "refused": s.refused,
            "beyond_numerics": s.beyond_numerics, "nanos": nanos(s.time),
        })
    };
    all_rules(passes).into_iter().map(object).collect()
}

/// Passes in their order, and rules, the one that took longest first.
pub fn table(passes: &[PassStats]) -> String {
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    let mut text = format!("{:<24} {:>18} {:>10}\n", "pass", "operations", "ms");
    for p in passes {
        let operations = format!("{} -> {}", p.operations.0, p.operations.1);
        let _ = writeln!(text, "{:<24} {operations:>18} {:>10.2}", p.name, ms(p.time));
    }
    let mut rules = all_rules(passes);
    if !rules.is_empty() {
        let _ = writeln!(text, "{:<24} {:>8} {:>8} {:>8} {:>10}", "rule", "matches", "applied", "refused", "ms");
    }
    rules.sort_by_key(|(_, s)| std::cmp::Reverse(s.time));
    for (name, s) in rules {
        let refused = s.refused + s.beyond_numerics;
        let _ = writeln!(text, "{name:<24} {:>8} {:>8} {refused:>8} {:>10.2}", s.matches, s.applied, ms(s.time));
    }
    text.trim_end().to_owned()
}
