//! Numbers as people read them.

/// `830 ns`, `16.2 us`, `1.73 s`.
pub fn time(nanos: f64) -> String {
    let scaled = |x: f64, unit: &str| {
        let digits = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
        format!("{x:.digits$} {unit}")
    };
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => scaled(n / 1e3, "µs"),
        n if n < 1e9 => scaled(n / 1e6, "ms"),
        n => scaled(n / 1e9, "s"),
    }
}

/// `4.1× faster`, `3 % more` of a cost that became another.
pub fn gain(before: f64, after: f64) -> String {
    match before / after.max(1e-9) {
        f if f >= 1.995 => format!("{f:.1}× faster"),
        f if f > 1.0005 => format!("{:.1} % less", (1.0 - 1.0 / f) * 100.0),
        f if f >= 0.9995 => "the same".to_owned(),
        f => format!("{:.1} % more", (1.0 / f - 1.0) * 100.0),
    }
}

/// `1 kernel`, `2 kernels`.
pub fn count(n: usize, of: &str) -> String {
    if n == 1 { format!("1 {of}") } else { format!("{n} {of}s") }
}

/// `slice, linear x 2`: names in order of first appearance.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut counts: indexmap::IndexMap<&str, usize> = indexmap::IndexMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let one = |(name, n): (&str, usize)| if n == 1 { name.to_owned() } else { format!("{name} × {n}") };
    counts.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [830.0, 16_196.0, 64e6, 1.7318e9, 250e6].map(time),
            ["830 ns", "16.2 µs", "64.0 ms", "1.73 s", "250 ms"]
        );
        assert_eq!((gain(64.0, 16.0), gain(10.0, 9.0)), ("4.0× faster".into(), "10.0 % less".into()));
        assert_eq!((gain(10.0, 11.0), gain(1.0, 1.0)), ("10.0 % more".into(), "the same".into()));
        assert_eq!(listed(["a", "b", "a"].into_iter()), "a × 2, b");
    }
}
