//! How a seed ends, and what a sweep's process exits with.

use std::fmt;
use std::str::FromStr;

use crate::scenario::period::as_text;

/// How one seed ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// All that was to be checked was checked and held.
    Pass,
    /// An oracle found a wrong state or answer.
    Safety,
    /// The virtual budget ended before the scenario did.
    Liveness,
    /// A panic, an abort, a stack overflow.
    Panic,
    /// The same seed ran differently the second time.
    Nondeterminism,
    /// What was to happen did not, so that nothing was shown.
    Vacuous,
    /// The result or the story is not the reviewed one.
    Snapshot,
    /// The harness failed, or the worker was killed, ran out of memory or past the wall limit.
    Harness,
    /// The user stopped it.
    Interrupted,
}

impl Outcome {
    /// All, with their names and exit codes.
    pub const ALL: &'static [(Outcome, &'static str, u8)] = &[
        (Outcome::Pass, "pass", 0),
        (Outcome::Safety, "safety", 10),
        (Outcome::Liveness, "liveness", 11),
        (Outcome::Panic, "panic", 12),
        (Outcome::Nondeterminism, "nondeterminism", 13),
        (Outcome::Vacuous, "vacuous", 14),
        (Outcome::Snapshot, "snapshot", 15),
        (Outcome::Harness, "harness", 16),
        (Outcome::Interrupted, "interrupted", 130),
    ];

    /// Of several outcomes the first of these names the exit code of the process.
    const PRECEDENCE: &'static [Outcome] = &[
        Outcome::Interrupted,
        Outcome::Nondeterminism,
        Outcome::Safety,
        Outcome::Panic,
        Outcome::Liveness,
        Outcome::Snapshot,
        Outcome::Vacuous,
        Outcome::Harness,
    ];

    /// The exit code.
    pub fn exit_code(self) -> u8 {
        self.entry().2
    }

    /// The worst of several: pass if there is no other.
    pub fn worst(outcomes: impl IntoIterator<Item = Outcome>) -> Outcome {
        let rank = |outcome: &Outcome| Outcome::PRECEDENCE.iter().position(|other| other == outcome);
        outcomes.into_iter().filter(|outcome| *outcome != Outcome::Pass).min_by_key(rank).unwrap_or(Outcome::Pass)
    }

    /// The name, as a static string.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    fn entry(self) -> (Outcome, &'static str, u8) {
        Outcome::ALL.iter().copied().find(|(outcome, ..)| *outcome == self).unwrap_or((self, "unknown", 16))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Outcome, String> {
        let names: Vec<&str> = Outcome::ALL.iter().map(|(_, name, _)| *name).collect();
        let found = Outcome::ALL.iter().find(|(_, name, _)| *name == text);
        found.map(|(outcome, ..)| *outcome).ok_or_else(|| crate::scenario::position::one_of("an outcome", text, &names))
    }
}

as_text!(Outcome);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_outcomes_the_worst_names_the_exit_code() {
        let code = |outcomes: &[Outcome]| Outcome::worst(outcomes.iter().copied()).exit_code();
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[Outcome::Pass, Outcome::Pass]), 0);
        let order = [13, 10, 12, 11, 15, 14, 16];
        for (at, wanted) in order.iter().enumerate() {
            let rest: Vec<Outcome> = Outcome::ALL
                .iter()
                .filter(|(_, _, code)| *code == 0 || order[at..].contains(code))
                .map(|(outcome, ..)| *outcome)
                .collect();
            assert_eq!(code(&rest), *wanted, "{rest:?}");
        }
        assert_eq!(code(&[Outcome::Safety, Outcome::Interrupted, Outcome::Nondeterminism]), 130);
    }

    #[test]
    fn each_outcome_has_a_name_that_is_read_again() {
        for (outcome, name, _) in Outcome::ALL {
            assert_eq!(name.parse(), Ok(*outcome));
            assert_eq!(outcome.to_string(), *name);
        }
    }
}
