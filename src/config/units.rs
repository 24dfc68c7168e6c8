//! Durations and sizes: always with a unit, so that no reader has to know whether `500` were seconds.
//!
//! Must not know: YAML, positions, which key a value belongs to (its name is passed in for messages).

use super::diagnostics::{Fault, quote};
use std::time::Duration;

const SECOND: u128 = 1_000_000_000;
/// Smallest first; a duration of several parts names them largest first.
const TIME_UNITS: [(&str, u128); 4] = [("ms", SECOND / 1000), ("s", SECOND), ("m", 60 * SECOND), ("h", 3600 * SECOND)];
const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
/// Digits of one number; what is longer overflows anyway.
const DIGITS: usize = 18;

/// `250ms`, `1.5s`, `1m30s`; `0` alone.
pub(super) fn duration(key: &str, text: &str) -> Result<Duration, Fault> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if is_number(text) && text.len() > DIGITS {
        return Err(too_large(key, text));
    }
    if is_number(text) {
        let help = if text.contains('.') { format!("\"{text}s\"") } else { format!("\"{text}ms\" or \"{text}s\"") };
        return Err(Fault::new(format!("{key} needs a unit: write {help}")));
    }
    let example = "a number and a unit, such as \"250ms\", \"5s\" or \"1m30s\"";
    let not_one = || Fault::new(format!("{key} is not a duration: {}", quote(text))).help(format!("write {example}"));

    let mut rest = text;
    let mut below = u128::MAX;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (number, unit, after) = part(rest).ok_or_else(not_one)?;
        let Some(&(_, size)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(
                Fault::new(format!("{key} has an unknown unit {}", quote(unit))).help("the units are ms, s, m, h")
            );
        };
        if size >= below {
            return Err(not_one());
        }
        below = size;
        let nanoseconds = scaled(number, size).ok_or_else(|| too_large(key, text))?;
        total = total.checked_add(nanoseconds).ok_or_else(|| too_large(key, text))?;
        rest = after;
    }
    let nanoseconds = u64::try_from(total).map_err(|_| too_large(key, text))?;
    if text.is_empty() { Err(not_one()) } else { Ok(Duration::from_nanos(nanoseconds)) }
}

/// `64KiB`, `1MiB`, `512B`; `0` alone.
pub(super) fn size(key: &str, text: &str) -> Result<u64, Fault> {
    if text == "0" {
        return Ok(0);
    }
    if is_number(text) && !text.contains('.') {
        let readings = match text.parse::<u64>() {
            Ok(bytes) if bytes < 1024 => format!("\"{bytes}B\" or \"{bytes}KiB\""),
            Ok(bytes) => format!("\"{}\"", show_size(bytes)),
            Err(_) => return Err(too_large(key, text)),
        };
        return Err(Fault::new(format!("{key} needs a unit: write {readings}")));
    }
    let not_one = || {
        Fault::new(format!("{key} is not a size: {}", quote(text)))
            .help("write a whole number and a unit, such as \"512B\", \"64KiB\" or \"1MiB\"")
    };
    let Some((number, unit, "")) = part(text) else { return Err(not_one()) };
    if number.contains('.') {
        return Err(not_one());
    }
    let Some(&(_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        let proposal = meant(unit).map(|name| format!("write \"{number}{name}\""));
        let help = proposal.unwrap_or_else(|| "the units are B, KiB, MiB, GiB".to_owned());
        return Err(Fault::new(format!("{key} has an unknown unit {}", quote(unit))).help(help));
    };
    let count = number.parse::<u64>().map_err(|_| too_large(key, text))?;
    count.checked_mul(factor).ok_or_else(|| too_large(key, text))
}

/// `20%` or `0.2`, at most all; in hundredths of a percent.
pub(super) fn percent(key: &str, text: &str) -> Result<u32, Fault> {
    let share = match text.strip_suffix('%') {
        Some(number) => hundredths(number),
        // Four digits behind the point are hundredths of a percent.
        None => scale(text, 4).filter(|share| *share <= 10_000),
    };
    match share {
        Some(share) if share <= 10_000 => Ok(share),
        Some(_) => Err(Fault::new(format!("{key} must be from 0% to 100%, not {}", quote(text)))),
        None if is_number(text) && scale(text, 4).is_some() => {
            Err(Fault::new(format!("{key} needs a percent sign: write \"{text}%\"")))
        }
        None => Err(Fault::new(format!("{key} is not a share: {}", quote(text))).help("write \"20%\" or \"0.2\"")),
    }
}

/// A number with at most two digits behind the point, in hundredths.
pub(super) fn hundredths(text: &str) -> Option<u32> {
    scale(text, 2)
}

/// A number with at most `digits` digits behind the point, times ten to the power of them.
fn scale(text: &str, digits: usize) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_number(text) || whole.len() > DIGITS || fraction.trim_end_matches('0').len() > digits {
        return None;
    }
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(digits).collect();
    format!("{whole}{fraction}").parse().ok()
}

/// A duration as the file would write it.
pub(super) fn show_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    if nanoseconds == 0 {
        return "0".to_owned();
    }
    let exact = TIME_UNITS.iter().rev().find(|(_, unit)| nanoseconds.is_multiple_of(*unit));
    let (name, unit) = exact.copied().unwrap_or(TIME_UNITS[0]);
    let fraction = format!("{:06}", nanoseconds % unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{}{point}{fraction}{name}", nanoseconds / unit)
}

/// Hundredths as a number: `1.5`.
pub(super) fn show_hundredths(value: u32) -> String {
    let number = format!("{}.{:02}", value / 100, value % 100);
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A size as the file would write it.
pub(super) fn show_size(bytes: u64) -> String {
    let exact = SIZE_UNITS.iter().rev().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    exact.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", bytes / unit))
}

fn too_large(key: &str, text: &str) -> Fault {
    Fault::new(format!("{key} is too large: {}", quote(text)))
}

fn is_number(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    [whole, fraction].iter().all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Splits the first number and its unit from the rest.
fn part(text: &str) -> Option<(&str, &str, &str)> {
    let letters = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, behind) = text.split_at(letters);
    let digits = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
    let (unit, rest) = behind.split_at(digits);
    (is_number(number) && unit.chars().all(char::is_alphabetic)).then_some((number, unit, rest))
}

/// The unit that a decimal or careless spelling most likely means.
fn meant(unit: &str) -> Option<&'static str> {
    match unit.to_ascii_lowercase().as_str() {
        "b" => Some("B"),
        "k" | "kb" | "ki" | "kib" => Some("KiB"),
        "m" | "mb" | "mi" | "mib" => Some("MiB"),
        "g" | "gb" | "gi" | "gib" => Some("GiB"),
        _ => None,
    }
}

/// `number` times `unit`, in whole nanoseconds.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = &fraction[..fraction.len().min(DIGITS)];
    if whole.len() > DIGITS {
        return None;
    }
    let tenths = fraction.bytes().fold((0, unit), |(sum, unit), digit| {
        let unit = unit / 10;
        (sum + u128::from(digit - b'0') * unit, unit)
    });
    Some(whole.parse::<u128>().ok()? * unit + tenths.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> Option<u128> {
        duration("timeout", text).ok().map(|d| d.as_millis())
    }

    fn message<T>(result: Result<T, Fault>) -> String {
        let Err(fault) = result else { panic!("was accepted") };
        format!("{} | {}", fault.message, fault.help.unwrap_or_default())
    }

    #[test]
    fn durations() {
        assert_eq!((ms("250ms"), ms("5s"), ms("1m"), ms("2h")), (Some(250), Some(5000), Some(60_000), Some(7_200_000)));
        assert_eq!(
            (ms("1m30s"), ms("1.5s"), ms("0.5h"), ms("1h0.5m")),
            (Some(90_000), Some(1500), Some(1_800_000), Some(3_630_000))
        );
        assert_eq!((ms("0"), ms("0s"), ms("00005s"), ms("1h1m1s1ms")), (Some(0), Some(0), Some(5000), Some(3_661_001)));
        assert_eq!(duration("t", "0.001ms").unwrap(), Duration::from_nanos(1000));
        assert_eq!(duration("t", "1.000000000000000000000000001s").unwrap(), Duration::from_secs(1));
    }

    #[test]
    fn what_is_no_duration() {
        for text in [
            "", " ", "s", "5 s", " 5s", "-5s", "+5s", "1s1s", "30s1m", "1..5s", ".5s", "5.s", "1e3s", "5s ", "٥s",
            "5s3",
        ] {
            assert!(ms(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn messages_about_durations() {
        assert_eq!(message(duration("timeout", "500")), "timeout needs a unit: write \"500ms\" or \"500s\" | ");
        assert_eq!(message(duration("timeout", "1.5")), "timeout needs a unit: write \"1.5s\" | ");
        assert_eq!(message(duration("idle", &"9".repeat(19))), "idle is too large: \"9999999999999999999\" | ");
        assert_eq!(message(duration("idle", "5d")), "idle has an unknown unit \"d\" | the units are ms, s, m, h");
        assert_eq!(message(duration("idle", "9999999999h")), "idle is too large: \"9999999999h\" | ");
        assert_eq!(
            message(duration("idle", &format!("{}s", "9".repeat(400)))).len(),
            "idle is too large:  | ".len() + 64 + 5
        );
    }

    #[test]
    fn sizes() {
        let bytes = |text| size("buffer", text).ok();
        assert_eq!(
            (bytes("64KiB"), bytes("1MiB"), bytes("512B"), bytes("2GiB")),
            (Some(65536), Some(1 << 20), Some(512), Some(2 << 30))
        );
        assert_eq!(bytes("0"), Some(0));
        for text in ["", "KiB", "1.5KiB", "64 KiB", "-1B", "1KiB1B", "99999999999GiB", "99999999999999999999B"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn messages_about_sizes() {
        assert_eq!(message(size("buffer", "64k")), "buffer has an unknown unit \"k\" | write \"64KiB\"");
        assert_eq!(message(size("buffer", "64kB")), "buffer has an unknown unit \"kB\" | write \"64KiB\"");
        assert_eq!(message(size("buffer", "1mib")), "buffer has an unknown unit \"mib\" | write \"1MiB\"");
        assert_eq!(message(size("buffer", "1x")), "buffer has an unknown unit \"x\" | the units are B, KiB, MiB, GiB");
        assert_eq!(message(size("buffer", "65536")), "buffer needs a unit: write \"64KiB\" | ");
        assert_eq!(message(size("buffer", "64")), "buffer needs a unit: write \"64B\" or \"64KiB\" | ");
        assert_eq!(message(size("buffer", "1500")), "buffer needs a unit: write \"1500B\" | ");
    }

    #[test]
    fn shares() {
        let share = |text| percent("budget", text).ok();
        assert_eq!(
            (share("20%"), share("0.2"), share("100%"), share("1")),
            (Some(2000), Some(2000), Some(10_000), Some(10_000))
        );
        assert_eq!(
            (share("12.5%"), share("0"), share("0.0025"), share("0%")),
            (Some(1250), Some(0), Some(25), Some(0))
        );
        for text in ["", "%", "-1%", "101%", "20 %", "abc", "0.00001", "1e2", "20%%", "12.345%"] {
            assert_eq!(share(text), None, "{text:?}");
        }
        assert_eq!(message(percent("budget", "20")), "budget needs a percent sign: write \"20%\" | ");
        assert_eq!(message(percent("budget", "150%")), "budget must be from 0% to 100%, not \"150%\" | ");
        assert_eq!(
            (hundredths("1.5"), hundredths("2"), hundredths("1.555"), hundredths("x")),
            (Some(150), Some(200), None, None)
        );
    }

    #[test]
    fn values_print_as_they_are_written() {
        assert_eq!(show_duration(Duration::from_secs(86_400)), "24h");
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::ZERO), "0");
        assert_eq!(
            (show_duration(Duration::from_micros(1050)), show_duration(Duration::from_nanos(1))),
            ("1.05ms".into(), "0.000001ms".into())
        );
        assert_eq!(
            (show_hundredths(100), show_hundredths(1250), show_hundredths(5)),
            ("1".into(), "12.5".into(), "0.05".into())
        );
        assert_eq!((show_size(40 << 10), show_size(1000), show_size(0)), ("40KiB".into(), "1000B".into(), "0".into()));
    }
}
