//! What the engine does against what else does the same: on the same rows and the same disk, in turns, so that whatever else the
//! machine does meets both.

mod compaction;
mod files;
mod fill;
mod freshness;
mod ingest;
mod scan;
mod steady;

use std::fmt::{Arguments, Display};
use std::io::Write;
use std::time::Duration;

/// Pairs of turns that count.
const PAIRS: usize = 7;

const BENCHES: [(&str, fn()); 7] = [
    ("side_by_side::ingest", ingest::run),
    ("side_by_side::scan", scan::run),
    ("side_by_side::compaction", compaction::run),
    ("side_by_side::fill_filter", fill::filter),
    ("side_by_side::fill_group_by", fill::group_by),
    ("side_by_side::steady_state", steady::run),
    ("side_by_side::freshness", freshness::run),
];

/// Runs those that are asked for, as divan does.
pub fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if !has("--bench") || has("--list") || has("--test") {
        return;
    }
    let asked: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for (name, bench) in BENCHES {
        if asked.is_empty() || asked.iter().any(|asked| name.contains(asked.as_str())) {
            say(format_args!("\n{name}"));
            bench();
        }
    }
}

/// How much a second two sides did, pair by pair.
struct Turns {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Turns {
    /// Each side says how much a second it did. They take turns, and so does who begins; the first pair does not count.
    fn of(mut ours: impl FnMut() -> f64, mut theirs: impl FnMut() -> f64) -> Turns {
        let mut turns = Turns { ours: Vec::new(), theirs: Vec::new() };
        for pair in 0..=PAIRS {
            let (one, other) = match pair % 2 {
                0 => {
                    let one = ours();
                    (one, theirs())
                }
                _ => {
                    let other = theirs();
                    (ours(), other)
                }
            };
            if pair > 0 {
                turns.ours.push(one);
                turns.theirs.push(other);
            }
        }
        turns
    }

    /// Prints the medians, and that of the pairs' ratios.
    fn print(&self, unit: &str, ours: &str, theirs: &str, target: Option<f64>) {
        for (name, rates) in [(ours, &self.ours), (theirs, &self.theirs)] {
            say(format_args!("  {name:<56} {:>12} {unit}/s", grouped(quantile(rates, 0.5))));
        }
        let ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect();
        let [least, median, most] = [0.0, 0.5, 1.0].map(|at| quantile(&ratios, at));
        let target = target.map(|target| format!(", target {target}")).unwrap_or_default();
        say(format_args!("  ratio {median:.2} ({least:.2} to {most:.2} in {PAIRS} pairs){target}"));
    }
}

/// How much a second it was.
fn rate(amount: impl TryInto<u32>, took: Duration) -> f64 {
    let amount = amount.try_into().unwrap_or_else(|_| panic!("no more than u32 is measured"));
    f64::from(amount) / took.as_secs_f64()
}

fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * at).round() as usize]
}

/// With commas; small numbers with two digits.
fn grouped(value: f64) -> String {
    if value < 1_000.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn say(line: Arguments) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn note(text: impl Display) {
    say(format_args!("  ({text})"));
}
