//! What a run must come to.

use toml::Spanned;

use super::super::happened::Happened;
use super::super::position::one_of;
use super::super::raw;
use super::super::{Exempt, Expect, Held};
use super::{Decoder, text_span};
use crate::oracle::NAMES;
use crate::run::outcome::Outcome;

/// How a scenario may be declared to end: all but `pass` are canaries.
pub(in crate::scenario) const EXPECTED_OUTCOMES: &[&str] = &["pass", "safety", "liveness", "panic", "vacuous"];

impl Decoder<'_> {
    pub(super) fn expect(&mut self, raw: Option<Spanned<raw::Expect>>) -> Option<Expect> {
        let Some(raw) = raw else {
            self.source.wrong(0..0, "expected `[expect]`: what must be true");
            return None;
        };
        let span = raw.span();
        let raw = raw.into_inner();
        let outcome = match raw.outcome.as_ref().map(|text| text.get_ref().as_str()) {
            Some(name) if !EXPECTED_OUTCOMES.contains(&name) => {
                self.source.wrong(text_span(&raw.outcome), one_of("an outcome", name, EXPECTED_OUTCOMES));
                Outcome::Pass
            }
            _ => self.parsed(&raw.outcome).unwrap_or(Outcome::Pass),
        };
        if raw.result.is_empty() && raw.holds.is_empty() && raw.happened.is_empty() && outcome == Outcome::Pass {
            self.source.wrong(span.clone(), "expected some of `result`, `holds` and `happened`");
        }
        let mut result = Vec::new();
        for query in raw.result {
            if outcome != Outcome::Pass {
                self.source.wrong(query.span(), "a run that is to fail has no result");
            }
            self.parse_sql(&query, None);
            self.source.take(query.span(), seed_independent(query.get_ref()));
            result.push(query.into_inner());
        }
        let mut happened = Vec::new();
        for sentence in raw.happened {
            happened.extend(self.source.take(sentence.span(), sentence.get_ref().parse::<Happened>()));
        }
        let mut exempt = Vec::new();
        for one in raw.exempt {
            let span = one.span();
            let one = one.into_inner();
            let oracle = self.required(&one.oracle, span.clone(), "`oracle`");
            if let Some(oracle) = &oracle
                && !NAMES.contains(&oracle.as_str())
            {
                self.source.wrong(text_span(&one.oracle), one_of("an oracle", oracle, NAMES));
            }
            if exempt.iter().any(|known: &Exempt| Some(&known.oracle) == oracle.as_ref()) {
                self.source.wrong(text_span(&one.oracle), "the oracle is exempt already: give one reason");
            }
            let reason = self.required(&one.reason, span, "`reason`: for those who read the scenario");
            exempt.extend(oracle.zip(reason).map(|(oracle, reason)| Exempt { oracle, reason }));
        }
        let mut holds = Vec::new();
        for query in raw.holds {
            self.parse_sql(&query, None);
            holds.push(Held { line: self.source.line(query.span().start), sql: query.into_inner() });
        }
        Some(Expect { result, holds, happened, exempt, outcome })
    }
}

/// A reviewed result is one file for every seed: refuses queries whose rows the seed, the time or the plan decides.
fn seed_independent(query: &str) -> Result<(), String> {
    let lower = query.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for word in ["now", "random", "uuid", "current_timestamp", "current_date", "current_time", "today"] {
        if words.contains(&word) {
            return Err(format!("expected a query with the same rows for every seed; `{word}` has others"));
        }
    }
    if words.windows(2).any(|pair| pair == ["sys", "regions"]) {
        return Err("expected a query with the same rows for every seed; leaders and terms differ".to_string());
    }
    let limited = words.contains(&"limit");
    if limited && !words.windows(2).any(|pair| pair == ["order", "by"]) {
        return Err("expected ORDER BY beside LIMIT: else the plan decides which rows there are".to_string());
    }
    Ok(())
}
