//! Numbers, durations and sizes as people read them.

/// A number with its digits in groups of three: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Units of a duration: the shortest that is given in it, its length in seconds, and its sign.
const UNITS: &[(u64, u64, &str)] = &[(2 * 86_400, 86_400, "d"), (3_600, 3_600, "h"), (60, 60, "min")];

/// A duration in the largest unit that it's a multiple of: `24 h`, `3 d`, `90 s`.
pub fn duration(seconds: u64) -> String {
    let unit = UNITS.iter().find(|(least, unit, _)| seconds >= *least && seconds.is_multiple_of(*unit));
    match unit {
        Some((_, unit, sign)) => format!("{} {sign}", count(seconds / unit)),
        None => format!("{} s", count(seconds)),
    }
}

/// A duration in whole units, rounded down: `17 h`, `12 d`.
pub fn about(seconds: u64) -> String {
    let unit = UNITS.iter().find(|(least, _, _)| seconds >= *least).map_or(1, |(_, unit, _)| *unit);
    duration(seconds / unit * unit)
}

/// A size with one decimal, in units of a thousand: `1.2 MB`.
pub fn bytes(bytes: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, sign)) => format!("{}.{} {sign}", count(bytes / unit), bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// A share in percent, rounded down to two decimals: `99.99 %`.
pub fn share(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn durations_are_exact_or_rounded_down() {
        for (seconds, exact, rounded) in [
            (0, "0 s", "0 s"),
            (59, "59 s", "59 s"),
            (60, "1 min", "1 min"),
            (90, "90 s", "1 min"),
            (3_600, "1 h", "1 h"),
            (5_400, "90 min", "1 h"),
            (86_400, "24 h", "24 h"),
            (129_600, "36 h", "36 h"),
            (172_800, "2 d", "2 d"),
            (200_000, "200,000 s", "2 d"),
            (2_592_000, "30 d", "30 d"),
        ] {
            assert_eq!((duration(seconds).as_str(), about(seconds).as_str()), (exact, rounded), "{seconds}");
        }
    }

    #[test]
    fn sizes_and_shares_are_rounded_down() {
        for (size, text) in
            [(0, "0 B"), (999, "999 B"), (1_999, "1.9 kB"), (8_400_000, "8.4 MB"), (1_000_000_000, "1.0 GB")]
        {
            assert_eq!(bytes(size), text);
        }
        for (part, whole, text) in
            [(0, 0, "0.00 %"), (1, 3, "33.33 %"), (99_999, 100_000, "99.99 %"), (5, 5, "100.00 %")]
        {
            assert_eq!(share(part, whole), text);
        }
    }
}
