//! Sizes, durations, shares of a processor and `KEY=VALUE` pairs, as people write them in flags and in the config.

use std::{fmt, str::FromStr, time::Duration};

/// Bytes. Written as a whole number with an optional binary unit: `512M` is 512 · 2^20. `K`, `M`, `G`, `T` and `P`, with or without `B`
/// or `iB` after them, in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} isn't a size; write bytes or a binary unit, such as 512M or 10G");
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let count: u64 = digits.parse().map_err(|_| bad())?;
        let unit = unit.to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
        let shift = match unit {
            "" => 0,
            one => UNITS.iter().find(|(letter, _)| one == letter.to_string()).ok_or_else(bad)?.1,
        };
        count.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("{text:?} is more bytes than a machine can count"))
    }
}

/// Exact: the largest unit that divides it, so that parsing gives the same number.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift)) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// For people who read: three digits and a unit, rounded, such as `1.46G`.
pub fn human_size(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().find(|(_, shift)| bytes >= 1 << shift) else { return format!("{bytes}B") };
    let value = bytes as f64 / (1u64 << shift) as f64;
    match value {
        v if v < 10.0 => format!("{v:.2}{letter}"),
        v if v < 100.0 => format!("{v:.1}{letter}"),
        v => format!("{v:.0}{letter}"),
    }
}

/// A length of time: whole numbers with `ms`, `s`, `m`, `h` or `d`, also several after one another (`1h30m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} isn't a duration; write a number with ms, s, m, h or d, such as 30s or 1h30m");
        let mut millis: u64 = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let count: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit = SPANS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(bad)?.1;
            rest = &rest[letters..];
            millis = count.checked_mul(unit).and_then(|more| millis.checked_add(more)).ok_or_else(bad)?;
        }
        if text.is_empty() { Err(bad()) } else { Ok(Self(Duration::from_millis(millis))) }
    }
}

/// Exact to the millisecond, so that parsing gives the same length.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in SPANS {
            if rest >= unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

/// The largest unit alone, for a table: `3m`, `2h`, `5d`.
pub fn human_age(age: Duration) -> String {
    let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    match SPANS[..4].iter().find(|(_, unit)| millis >= *unit) {
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None => "0s".into(),
    }
}

/// Thousandths of a processor, written as processors: `0.5`, `2`, `1.25`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(pub u32);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} isn't a number of processors; write one such as 0.5 or 2, with at most three decimals");
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_| bad())?;
        let millis: u32 = format!("{decimals:0<3}").parse().map_err(|_| bad())?;
        whole.checked_mul(1000).and_then(|w| w.checked_add(millis)).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// `KEY=VALUE`; the value may hold further equals signs and may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            _ => Err(format!("{text:?} isn't of the form KEY=VALUE")),
        }
    }
}

/// `Name: value` of a message, as it is written over the wire; blanks around the value don't count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderLine {
    pub name: String,
    pub value: String,
}

impl FromStr for HeaderLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} isn't a header; write it as \"Name: value\"");
        let (name, value) = text.split_once(':').ok_or_else(bad)?;
        let printable = |c: char| c.is_ascii_graphic();
        if name.is_empty() || !name.chars().all(printable) || value.contains(['\r', '\n']) {
            return Err(bad());
        }
        Ok(Self { name: name.into(), value: value.trim().into() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sizes_round_trip(bytes: u64) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn sizes_of_whole_units_round_trip(count in 0u64..4096, unit in 0usize..5) {
            let size = Size(count << UNITS[unit].1);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn spans_round_trip(millis in 0u64..=u64::MAX) {
            let span = Span(Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn cpus_round_trip(millis: u32) {
            prop_assert_eq!(Cpus(millis).to_string().parse::<Cpus>().map(|c| c.0), Ok(millis));
        }

        #[test]
        fn no_text_makes_them_panic(text in ".{0,24}") {
            let _ = (text.parse::<Size>(), text.parse::<Span>(), text.parse::<Cpus>(), text.parse::<Pair>());
        }
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [("0", 0), ("1024", 1024), ("1k", 1024), ("512M", 512 << 20), ("10GiB", 10 << 30), ("2tb", 2 << 40)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "M", "1.5G", "-1", "1 G", "1X", "1KM", "99999999P", "0x10"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!([human_size(17), human_size(1500), human_size(20 << 30), human_size(1023 << 20)], ["17B", "1.46K", "20.0G", "1023M"]);
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [("0s", 0), ("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("2d", 172_800_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "30", "s", "1.5s", "-1s", "1 s", "1w"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn processors_have_three_decimals() {
        for (text, millis) in [("1", 1000), ("0.5", 500), ("1.25", 1250), ("0.010", 10), ("64", 64_000)] {
            assert_eq!(text.parse(), Ok(Cpus(millis)), "{text}");
        }
        for text in ["", ".", ".5", "1.", "1.2345", "-1", "1e3", "5000000"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_split_at_the_first_equals_sign() {
        assert_eq!("A=b=c".parse(), Ok(Pair { key: "A".into(), value: "b=c".into() }));
        assert_eq!("A=".parse(), Ok(Pair { key: "A".into(), value: String::new() }));
        assert!("A".parse::<Pair>().is_err() && "=b".parse::<Pair>().is_err());
    }

    #[test]
    fn headers_split_at_the_first_colon() {
        for (text, name, value) in [("A: b", "A", "b"), ("A:b:c", "A", "b:c"), ("X-Y:", "X-Y", "")] {
            assert_eq!(text.parse(), Ok(HeaderLine { name: name.into(), value: value.into() }), "{text}");
        }
        for text in ["", "A", ": b", "A b: c", "A: b\nC: d", "Ä: b"] {
            assert!(text.parse::<HeaderLine>().is_err(), "{text}");
        }
    }
}
