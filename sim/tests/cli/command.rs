//! The command line, in a project of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The least that judges everything: one node, one table, three rows.
const SCENARIO: &str = r#"# Goal: try the harness.
title = "one"
seeds = [1, 8123]
[cluster]
nodes = 1
[[step]]
sql = "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)"
[[step]]
sql = "INSERT INTO t VALUES (1, 10), (2, 20), (3, 30)"
[expect]
result = ["SELECT sum(v) AS v FROM t"]
"#;

/// Three nodes that crash and stand still while two clients write.
const STORM: &str = r#"# Goal: try a storm.
title = "two"
[[step]]
sql = "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)"
unknown = "retry"
[[step]]
sleep = "9s"
[[workload]]
kind = "mutate"
table = "t"
clients = 2
ops = 30
mix = { insert = 2, update = 2, read = 1 }
[[storm]]
kinds = ["crash", "pause"]
from = "1s"
until = "9s"
[expect]
holds = ["SELECT k FROM t WHERE k < 0"]
"#;

/// A project with two scenarios.
struct Project {
    root: TempDir,
}

impl Project {
    fn new() -> Project {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("scenarios")).unwrap();
        let project = Project { root };
        project.write("scenarios/one.toml", SCENARIO);
        project.write("scenarios/two.toml", STORM);
        project
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
        command.args(arguments.split_whitespace()).current_dir(self.root.path());
        command
    }

    /// Runs it; the exit code must be `code`.
    fn sim(&self, arguments: &str, code: i32) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "sim {arguments}\n{}", all(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it with `--format json`: the lines of seeds, and the summary.
    fn json(&self, arguments: &str, code: i32) -> (Vec<Value>, Value) {
        let output = self.sim(&format!("{arguments} --format json"), code);
        let lines = output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{line}: {err}")));
        let mut lines: Vec<Value> = lines.collect();
        let summary = lines.pop().unwrap();
        assert_eq!((&summary["v"], &summary["type"]), (&Value::from(1), &Value::from("summary")));
        assert!(lines.iter().all(|line| line["v"] == 1 && line["type"] == "seed"));
        (lines, summary)
    }
}

fn all(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_run_without_arguments_takes_pinned_seeds_and_a_few_fresh_ones() {
    let project = Project::new();
    let (seeds, summary) = project.json("run", 0);
    let of = |name: &str| seeds.iter().filter(|line| line["scenario"] == name).count();
    assert_eq!((of("one"), of("two")), (4, 2));
    assert!([1, 8123].iter().all(|seed| seeds.iter().any(|line| line["seed"] == *seed)));
    assert_eq!(summary["seeds"], 6);
    assert_eq!(summary["outcomes"]["pass"], 6);
    // The command repeats the fresh ones.
    let command = summary["command"].as_str().unwrap();
    let range = command.strip_prefix("cargo sim run --seeds ").unwrap();
    let (again, _) = project.json(&format!("run two --seeds {range}"), 0);
    let fingerprints = |lines: &[Value]| {
        let mut of: Vec<_> =
            lines.iter().filter(|line| line["scenario"] == "two").map(|line| line["fingerprint"].clone()).collect();
        of.sort_by_key(ToString::to_string);
        of
    };
    assert_eq!(fingerprints(&again), fingerprints(&seeds));
}

#[test]
fn a_line_of_json_has_these_keys_and_no_others() {
    let project = Project::new();
    let (seeds, summary) = project.json("run one --seeds 1..2 --jobs 1 --self-test safety@2", 10);
    let common = [
        "cpu_ms",
        "effects",
        "fingerprint",
        "ops",
        "oracles",
        "outcome",
        "scenario",
        "seed",
        "type",
        "v",
        "virtual_ms",
    ];
    assert_eq!(keys(&seeds[0]), common);
    let mut failed: Vec<&str> =
        common.iter().copied().chain(["replay", "run_dir", "signature", "virtual_at_ms"]).collect();
    failed.sort_unstable();
    assert_eq!(keys(&seeds[1]), failed);
    assert_eq!(
        keys(&summary),
        ["build", "command", "cpu_ms", "effects", "marks", "oracles", "outcomes", "seeds", "type", "v", "virtual_ms"]
    );
    // What it says to run does what it says.
    let replay = seeds[1]["replay"].as_str().unwrap().strip_prefix("cargo sim ").unwrap();
    let (again, _) = project.json(replay, 10);
    assert_eq!((&again[0]["signature"], &again[0]["fingerprint"]), (&seeds[1]["signature"], &seeds[1]["fingerprint"]));
    let run_dir = seeds[1]["run_dir"].as_str().unwrap();
    for file in ["repro.json", "plan.toml", "story.txt", "events", "log.txt"] {
        assert!(project.path(run_dir).join(file).is_file(), "{file}");
    }
    assert!(project.path(run_dir).join("../run.json").is_file());
}

#[test]
fn each_outcome_has_its_exit_code_and_the_runner_goes_on() {
    let project = Project::new();
    for (test, code) in [
        ("panic", 12),
        ("caught_panic", 12),
        ("abort", 12),
        ("overflow", 12),
        ("exit", 16),
        ("memory", 16),
        ("safety", 10),
        ("liveness", 11),
        ("vacuous", 14),
        ("flaky", 0),
    ] {
        // A flaky seed fails nowhere by itself: only a doctor sees it.
        let (_, summary) = project.json(&format!("run one --seeds 1..3 --memory-mb 1024 --self-test {test}@2"), code);
        assert_eq!(summary["seeds"], 3, "{test}");
        assert_eq!(summary["outcomes"]["pass"], if code == 0 { 3 } else { 2 }, "{test}");
    }
    project.json("run one --seeds 1..3 --wall 500ms --self-test hang@2", 16);
    project.json("run one --seeds 1..4 --self-test vacuous@1,panic@2,safety@3", 10);
}

#[test]
fn a_failure_that_is_another_one_the_second_time_is_nondeterminism() {
    let project = Project::new();
    project.write("snapshots/one.snap", "---\nsource: x\n---\nanother result\n");
    // Any failure is run twice; this one has another event each time. A flaky seed has no result, hence differs.
    let (seeds, _) = project.json("run one --seeds 5..5 --self-test flaky@5", 13);
    assert_eq!(seeds[0]["outcome"], "nondeterminism");
}

#[test]
fn the_screen_of_a_failure_is_short_and_ends_with_the_command() {
    let project = Project::new();
    let output = project.sim("run one --seeds 1..6 --self-test safety@2,safety@3,panic@5", 10);
    let screen: Vec<&str> = output
        [output.find("FAILED one with seed 2").or(output.find("FAILED one with seed 3")).unwrap()..]
        .lines()
        .collect();
    assert!(screen.len() <= 40, "{output}");
    assert!(screen.iter().any(|line| line.contains("key (JFK, UA, 1)")), "{output}");
    assert!(screen.iter().any(|line| line.contains("ReplicaCreated")), "{output}");
    assert!(screen.iter().any(|line| line.contains("2 failed in this way")), "{output}");
    let last = screen.last().unwrap();
    assert!(last.contains("replay") && last.contains("cargo sim replay one --seed"), "{output}");
    assert!(output.contains("panic: sim/src/run/self_test.rs"), "{output}");
    let shown = project.sim("show", 0);
    assert!(shown.contains("FAILED one with seed"), "{shown}");
    let output = project.sim("run one --seeds 1..2 --format github --self-test panic@2", 12);
    assert!(output.contains("::error file=scenarios/one.toml,title=panic in one with seed 2::FAILED"), "{output}");
}

#[test]
fn a_plan_repeats_the_fingerprint_also_when_it_is_run_elsewhere() {
    let project = Project::new();
    let (first, _) = project.json("replay two --seed 7 --out kept", 0);
    let (again, _) = project.json("replay kept/two@7/plan.toml", 0);
    assert_eq!(first[0]["fingerprint"], again[0]["fingerprint"]);
    let (directory, _) = project.json("replay kept", 0);
    assert_eq!(first[0]["fingerprint"], directory[0]["fingerprint"]);
    // A fault less is another run; what is left of the plan is what it was.
    let text = std::fs::read_to_string(project.path("kept/two@7/plan.toml")).unwrap();
    let cut = text.rfind("[[faults]]").unwrap();
    project.write("edited.toml", &text[..cut]);
    let (edited, _) = project.json("replay edited.toml", 0);
    assert_ne!(first[0]["fingerprint"], edited[0]["fingerprint"]);
    project.write("broken.toml", &text.replace("budget = ", "bugdet = "));
    let output = project.command("replay broken.toml").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(all(&output).contains("broken.toml:"), "{}", all(&output));
    assert!(all(&output).contains("did you mean \"budget\""), "{}", all(&output));
}

#[test]
fn two_runs_are_the_same_or_part_at_an_event() {
    let project = Project::new();
    project.sim("replay two --seed 7 --out a", 0);
    project.sim("replay two --seed 7 --out b", 0);
    project.sim("replay two --seed 8 --out c", 0);
    assert!(project.sim("diff a b", 0).contains("every event is the same"));
    assert!(project.sim("diff a c", 1).contains("is the first that differs"));
    project.sim("replay one --seed 3 --self-test flaky@3 --out d", 0);
    project.sim("replay one --seed 3 --self-test flaky@3 --out e", 0);
    let output = project.sim("diff d e", 1);
    let (before, differs) = output.split_once("is the first that differs").unwrap();
    assert!(!before.contains("flaky") && differs.contains("- ") && differs.contains("+ "), "{output}");
    assert_eq!(differs.matches("flaky").count(), 2, "{output}");
}

#[test]
fn a_doctor_finds_nothing_in_sound_runs_and_the_event_of_a_flaky_one() {
    let project = Project::new();
    let (seeds, _) = project.json("doctor --seeds 1..4", 0);
    let of = |name: &str| seeds.iter().filter(|line| line["scenario"] == name).count();
    assert_eq!((of("one"), of("two")), (2, 2));
    let output = project.sim("doctor one --seeds 1..3 --self-test flaky@2", 13);
    assert!(output.contains("nondeterminism"), "{output}");
    assert!(output.contains("they part after event 0"), "{output}");
    let (_, differs) = output.split_once("is the first that differs").unwrap();
    assert!(differs.matches("flaky").count() >= 2, "{output}");
}

#[test]
fn shards_are_parts_of_the_same_seeds() {
    let project = Project::new();
    let mut seen = Vec::new();
    for part in 1..=3 {
        let (seeds, _) = project.json(&format!("run --seeds 1..5 --shard {part}/3"), 0);
        seen.extend(seeds.iter().map(|line| format!("{}@{}", line["scenario"], line["seed"])));
    }
    seen.sort();
    assert_eq!(seen.len(), 10);
    seen.dedup();
    assert_eq!(seen.len(), 10);
}

#[test]
fn a_time_limit_ends_a_sweep_and_takes_all_scenarios_in_turn() {
    let project = Project::new();
    let started = Instant::now();
    let (seeds, summary) = project.json("run --for 700ms", 0);
    assert!(started.elapsed() < Duration::from_secs(30));
    let of = |name: &str| seeds.iter().filter(|line| line["scenario"] == name).count() as i64;
    assert!(of("one") > 0 && (of("one") - of("two")).abs() <= 8, "{summary}");
}

#[test]
fn ctrl_c_ends_the_run_with_a_report() {
    let project = Project::new();
    let mut command = project.command("run one --seeds 1..9 --jobs 2 --format json --self-test hang@5");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // All but the one that hangs.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..8 {
        lines.next().unwrap().unwrap();
    }
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let started = Instant::now();
    let summary: Value = serde_json::from_str(&lines.last().unwrap().unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(130), "{}", all(&output));
    assert_eq!((&summary["type"], &summary["seeds"]), (&Value::from("summary"), &Value::from(8)));
}

#[test]
fn a_reviewed_snapshot_decides_and_is_never_written() {
    let project = Project::new();
    let run = |code| project.json("run one --seeds 3..3", code);
    run(0);
    assert!(!project.path("snapshots").exists());
    project.write("snapshots/one.snap", "---\nsource: x\n---\nSELECT sum(v) AS v FROM t\n  v\n  --\n  60\n");
    run(0);
    project.write("snapshots/one.snap", "---\nsource: x\n---\nSELECT sum(v) AS v FROM t\n  v\n  --\n  61\n");
    let (seeds, _) = run(15);
    assert_eq!(seeds[0]["signature"], "snapshot: result of one");
    project.write(
        "scenarios/one.toml",
        &SCENARIO.replace("result = [\"SELECT sum(v) AS v FROM t\"]", "outcome = \"safety\""),
    );
    let (seeds, _) = run(14);
    assert_eq!(seeds[0]["outcome"], "vacuous");
    project.json("run one --seeds 3..3 --self-test safety@3", 0);
}

#[test]
fn usage_errors_exit_with_two_and_say_what_would_be_right() {
    let project = Project::new();
    project.write("scenarios/three.toml", "# Goal.\ntitle = \"three\"\n[[step]]\nslepe = \"1s\"\n");
    for (arguments, hint) in [
        ("run ones", "did you mean \"one\""),
        ("run --seeds x", "\"git\""),
        ("run --shard 5/4", "1/4"),
        ("run one --shard 1/4", "--seeds a..b"),
        ("run scenarios/three.toml", "scenarios/three.toml:4:1: expected a key"),
        ("run", "did you mean \"sleep\""),
        ("check", "scenarios/three.toml:4:1"),
        ("run one --profile unbounded", "unbounded"),
        ("run one --seeds git", "--seeds git"),
        ("replay one", "--seed S"),
        ("replay nothing", "no directory, plan or scenario"),
        ("replay one --seed 1 --node n2", "--trace"),
        ("show 99", "no run 99"),
        ("fuzz", "fuzz"),
    ] {
        let output = project.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "sim {arguments}\n{}", all(&output));
        assert!(all(&output).contains(hint), "sim {arguments}\n{}", all(&output));
    }
    let nowhere = tempfile::tempdir().unwrap();
    let output = project.command("run").current_dir(nowhere.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(all(&output).contains("scenarios"));
}

#[test]
fn scenarios_are_found_from_below_and_listed() {
    let project = Project::new();
    assert_eq!(project.sim("list", 0), "one\ntwo\n");
    assert_eq!(project.sim("check", 0), "2 scenarios are well-formed\n");
    let schema: Value = serde_json::from_str(&project.sim("schema", 0)).unwrap();
    assert_eq!(schema["title"], "Seedbed scenario");
    project.write("deep/below/x", "");
    let below = project.path("deep/below");
    let output = project.command("list").current_dir(Path::new(&below)).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\n");
}
