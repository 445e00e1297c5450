//! The last word about a seed: what the scenario expected of it, and what the reviewed snapshots say.

use std::path::{Path, PathBuf};

use crate::report::text::{first_difference, result_text, story_text};
use crate::run::outcome::Outcome;
use crate::run::report::SeedReport;
use crate::scenario::Scenario;

/// Judges what the worker reported. A scenario that must fail passes if it failed as declared; a result or a story that
/// is not the reviewed one is a failure. What nobody reviewed yet is not compared.
pub fn judge(report: SeedReport, scenario: &Scenario, seed: u64, snapshots: &Path) -> SeedReport {
    let expected = scenario.expect.outcome;
    if expected != Outcome::Pass {
        return canary(report, expected);
    }
    if report.outcome != Outcome::Pass {
        return report;
    }
    let result = (result_file(snapshots, scenario), result_text(&report.result), "result");
    let story = (story_file(snapshots, scenario, seed), story_text(&report.story), "story");
    for (file, found, what) in [result, story] {
        let Some(reviewed) = file.as_deref().and_then(reviewed) else { continue };
        if let Some(difference) = first_difference(&reviewed, &found) {
            let signature = format!("snapshot: {what} of {}", scenario.name);
            let mut report = report.turned(Outcome::Snapshot, signature, format!("the {what} is not the reviewed one"));
            if let Some(failure) = &mut report.failure {
                failure.evidence = difference;
            }
            return report;
        }
    }
    report
}

/// Judges a run that no reviewed snapshot is about, by how it was to end.
pub fn judge_alone(report: SeedReport, expected: Outcome) -> SeedReport {
    if expected == Outcome::Pass { report } else { canary(report, expected) }
}

fn canary(report: SeedReport, expected: Outcome) -> SeedReport {
    match report.outcome {
        outcome if outcome == expected => SeedReport { outcome: Outcome::Pass, signature: String::new(), ..report },
        Outcome::Pass => {
            let what = format!("it was to fail with {expected} and passed: what should have seen the failure is blind");
            report.turned(Outcome::Vacuous, "vacuous: the canary lives", what)
        }
        _ => report,
    }
}

/// The file of the reviewed result: one for all seeds.
pub fn result_file(snapshots: &Path, scenario: &Scenario) -> Option<PathBuf> {
    (!scenario.expect.result.is_empty()).then(|| snapshots.join(format!("{}.snap", scenario.name)))
}

/// The file of the reviewed story: of a pinned seed, where no random fault strikes.
pub fn story_file(snapshots: &Path, scenario: &Scenario, seed: u64) -> Option<PathBuf> {
    let has_story = scenario.storms.is_empty() && scenario.seeds.contains(&seed);
    (has_story && scenario.expect.outcome == Outcome::Pass)
        .then(|| snapshots.join(format!("{}@seed-{seed}.snap", scenario.name)))
}

/// What a snapshot file of insta holds, if there is one: behind the second line of dashes.
fn reviewed(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let body = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")).map(|(_, body)| body.to_string());
    body.or(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::ResultRows;

    fn scenario(outcome: &str) -> Scenario {
        let expect = match outcome {
            "pass" => "result = [\"SELECT 1\"]".to_string(),
            _ => format!("outcome = \"{outcome}\""),
        };
        let text = format!("# Goal.\ntitle = \"x\"\nseeds = [1]\n[expect]\n{expect}\n");
        crate::scenario::parse(&text, "x.toml", "x", Path::new(".")).unwrap_or_else(|err| panic!("{err}"))
    }

    fn passed() -> SeedReport {
        let rows = ResultRows { query: "SELECT 1".into(), columns: vec!["1".into()], rows: vec![vec!["1".into()]] };
        SeedReport { result: vec![rows], story: vec!["a".into()], ..SeedReport::new(Outcome::Pass) }
    }

    #[test]
    fn a_canary_passes_when_it_fails_as_declared() {
        let nowhere = Path::new("/nowhere");
        let judged = |outcome| judge(SeedReport::failed(outcome, "s", "w"), &scenario("safety"), 1, nowhere).outcome;
        assert_eq!(judged(Outcome::Safety), Outcome::Pass);
        assert_eq!(judged(Outcome::Pass), Outcome::Vacuous);
        assert_eq!(judged(Outcome::Panic), Outcome::Panic);
    }

    #[test]
    fn a_reviewed_snapshot_must_be_met_and_a_missing_one_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let judged = |seed| judge(passed(), &scenario("pass"), seed, directory.path());
        assert_eq!(judged(1).outcome, Outcome::Pass);
        file("x.snap", "---\nsource: a\n---\nSELECT 1\n  1\n  -\n  1\n");
        assert_eq!(judged(1).outcome, Outcome::Pass, "{:?}", judged(1));
        file("x@seed-1.snap", "---\nsource: a\n---\nb\n");
        assert_eq!(judged(1).signature, "snapshot: story of x");
        assert_eq!(judged(2).outcome, Outcome::Pass);
        file("x.snap", "---\nsource: a\n---\nSELECT 1\n  1\n  -\n  2\n");
        let differs = judged(2);
        assert_eq!(differs.signature, "snapshot: result of x");
        assert_eq!(differs.failure.unwrap().evidence, ["line 4", "- 2", "+ 1"]);
    }
}
