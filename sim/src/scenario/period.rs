//! Spans of virtual time as people write them: `300ms`, `1.5s`, `2m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A span of virtual time, whole milliseconds: no timer of the simulation is finer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// Its length.
    pub ms: u64,
}

/// A span that may point backwards: what a clock is wrong by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offset {
    /// Its length; negative: behind.
    pub ms: i64,
}

impl Period {
    /// `ms` milliseconds.
    pub const fn ms(ms: u64) -> Period {
        Period { ms }
    }

    /// For timers.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.ms)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ms {
            ms if ms % 60_000 == 0 && ms > 0 => write!(f, "{}m", ms / 60_000),
            ms if ms % 1000 == 0 && ms > 0 => write!(f, "{}s", ms / 1000),
            ms if ms % 100 == 0 && ms > 1000 => write!(f, "{}.{}s", ms / 1000, ms % 1000 / 100),
            ms => write!(f, "{ms}ms"),
        }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ms < 0 {
            f.write_str("-")?;
        }
        Period::ms(self.ms.unsigned_abs()).fmt(f)
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Period, String> {
        let expected = || format!("expected a time like \"300ms\", \"1.5s\" or \"2m\", found \"{text}\"");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            _ => return Err(expected()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole_ms = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(unit_ms)).ok_or_else(expected)?;
        if fraction.is_empty() {
            if number.ends_with('.') {
                return Err(expected());
            }
            return Ok(Period { ms: whole_ms });
        }
        let scale = 10u64.checked_pow(fraction.len() as u32).ok_or_else(expected)?;
        let part = fraction.parse::<u64>().ok().and_then(|part| part.checked_mul(unit_ms)).ok_or_else(expected)?;
        if part % scale != 0 {
            return Err(format!("expected a time in whole milliseconds, found \"{text}\""));
        }
        Ok(Period { ms: whole_ms.checked_add(part / scale).ok_or_else(expected)? })
    }
}

impl FromStr for Offset {
    type Err = String;

    fn from_str(text: &str) -> Result<Offset, String> {
        let (sign, rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text),
        };
        let ms = i64::try_from(rest.parse::<Period>()?.ms).map_err(|_| format!("{text} is too long a time"))?;
        Ok(Offset { ms: sign * ms })
    }
}

/// Serde as text, both ways, for a type with `Display` and `FromStr`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use as_text;

as_text!(Period, Offset);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        for text in ["0ms", "300ms", "1s", "1.5s", "59s", "2m", "1234ms"] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
        assert_eq!("1.25s".parse(), Ok(Period::ms(1250)));
        assert_eq!("0.5m".parse(), Ok(Period::ms(30_000)));
        assert_eq!("-2.5s".parse::<Offset>().unwrap().to_string(), "-2.5s");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "s", "1.s", ".5s", "-1s", "1h", "1.2345s", "99999999999999999999s", "1 s", "1.0.0s"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert!(format!("{}m", u64::MAX).parse::<Period>().is_err());
        assert!("--1s".parse::<Offset>().is_err());
    }
}
