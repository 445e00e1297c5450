//! Every scenario at its pinned seeds: one test each, a new TOML file is a new test. It runs in a process of its own and
//! must pass, and what comes of it must be what was reviewed:
//!
//! - `<scenario>.snap`: the result, the same for every seed;
//! - `<scenario>@seed-N.snap`: the story of a pinned seed, where no random fault strikes.
//!
//! `cargo insta review` shows what changed. Three more tests show that the files record the product and not the scheduler:
//! every story again under another schedule, one scenario with 20 seeds and three sets of options against its one result,
//! and one of which every answer to every client is the same under eighteen unusual sets of options (a test each).

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use sim::runner::judge::{result_file, story_file};
use sim::runner::project::Project;
use sim::scenario::Scenario;

fn main() {
    let arguments = Arguments::from_args();
    // A panic is a failed test and says so there; a backtrace through the harness tells nothing.
    std::panic::set_hook(Box::new(|_| {}));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = Project::find(here).and_then(|project| {
        let files = project.files()?;
        let scenarios = project.read(&files).map_err(|problems| problems.to_string())?;
        Ok((project, scenarios))
    });
    let tests = match read {
        Ok((project, scenarios)) => tests(&project, scenarios),
        // A scenario that cannot be read is a test that fails, with its line and column.
        Err(message) => vec![Trial::test("scenarios_can_be_read", move || Err(message.into()))],
    };
    libtest_mimic::run(&arguments, tests).exit();
}

fn tests(project: &Project, scenarios: Vec<Scenario>) -> Vec<Trial> {
    let mut tests = Vec::new();
    for scenario in scenarios {
        // Without a pinned seed the result is still one for every seed.
        let seeds = if scenario.seeds.is_empty() { vec![1] } else { scenario.seeds.clone() };
        for seed in seeds {
            let name = format!("{}@seed-{seed}", scenario.name);
            if story_file(&project.snapshots(), &scenario, seed).is_some() {
                let (project, scenario) = (project.clone(), scenario.clone());
                let name = format!("{name}_scheduled_otherwise");
                tests.push(Trial::test(name, move || stirred(&project, &scenario, seed)));
            }
            let (project, scenario) = (project.clone(), scenario.clone());
            tests.push(Trial::test(name, move || test(&project, &scenario, seed)));
        }
    }
    tests.extend(same_answers(project));
    let project = project.clone();
    let name = "the_result_is_one_for_every_seed_and_every_set_of_options";
    tests.push(Trial::test(name, move || one_result(&project, "leader_power_loss_during_load")));
    tests
}

/// Runs `sim` in `directory`; what it said on the standard output, a JSON object a line.
fn sim(directory: &Path, arguments: &[&str]) -> Result<Vec<serde_json::Value>, Failed> {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(arguments)
        .args(["--format", "json"])
        .current_dir(directory)
        .output()?;
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(serde_json::from_str).collect::<Result<_, _>>();
    let lines: Vec<serde_json::Value> = lines?;
    if lines.is_empty() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("sim {} said nothing:\n{told}", arguments.join(" ")).into());
    }
    Ok(lines)
}

/// The plan of the seed under another schedule: it must pass, and its story must be the reviewed one.
fn stirred(project: &Project, scenario: &Scenario, seed: u64) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let (seed, directory) = (seed.to_string(), out.path().to_string_lossy());
    let lines = sim(&project.root, &["replay", &scenario.name, "--seed", &seed, "--stir", "7", "--out", &directory])?;
    if lines[0]["outcome"] != "pass" {
        return Err(format!("{:#}", lines[0]).into());
    }
    Ok(())
}

/// Sets of options under which the scenario must end the same: as it says, flushing all the time, and never.
const OPTION_SETS: [&[(&str, i64)]; 3] = [
    &[],
    &[("memtable_rows", 60), ("log_segment_bytes", 65_536), ("raft_keep_entries", 4), ("write_batch_rows", 16)],
    &[("memtable_rows", 1_000_000), ("scan_batch_rows", 7), ("raft_batch_entries", 3), ("write_window", 2)],
];

fn one_result(project: &Project, name: &str) -> Result<(), Failed> {
    let text = std::fs::read_to_string(project.root.join(format!("scenarios/{name}.toml")))?;
    for changes in OPTION_SETS {
        let mut scenario: toml::Table = text.parse()?;
        let options = scenario["cluster"]["options"].as_table_mut().ok_or("the scenario has no options")?;
        options.extend(changes.iter().map(|(option, value)| ((*option).to_string(), toml::Value::Integer(*value))));
        let elsewhere = copy(project, name, &scenario)?;
        let lines = sim(elsewhere.path(), &["run", name, "--seeds", "1..20"])?;
        let passed = lines.iter().filter(|line| line["outcome"] == "pass").count();
        if passed != 20 {
            let failed = lines.iter().find(|line| line["type"] == "seed" && line["outcome"] != "pass");
            return Err(format!("with {changes:?}: {passed} of 20 pass; {failed:#?}").into());
        }
    }
    Ok(())
}

/// A project of its own with `scenario` as `name` and the reviewed result of that name.
fn copy(project: &Project, name: &str, scenario: &toml::Table) -> Result<tempfile::TempDir, Failed> {
    let elsewhere = tempfile::tempdir()?;
    let at = |path: &str| elsewhere.path().join(path);
    std::fs::create_dir(at("scenarios"))?;
    std::fs::create_dir(at("snapshots"))?;
    std::os::unix::fs::symlink(project.root.join("scenarios/data"), at("scenarios/data"))?;
    std::fs::write(at(&format!("scenarios/{name}.toml")), format!("# As the original.\n{scenario}"))?;
    let reviewed = project.snapshots().join(format!("{name}.snap"));
    if reviewed.is_file() {
        std::fs::copy(reviewed, at(&format!("snapshots/{name}.snap")))?;
    }
    Ok(elsewhere)
}

/// Options that are unlike the usual ones, and what they are called.
type Unusual = (&'static str, &'static [(&'static str, i64)]);

/// Sets of options that no answer may depend on, each far from what is usual in one respect.
const UNUSUAL: [Unusual; 18] = [
    ("tiny memtable", &[("memtable_rows", 5)]),
    ("memtable of a few bytes", &[("memtable_bytes", 1_024)]),
    ("never flushed", &[("memtable_rows", 1_000_000), ("memtable_bytes", 1 << 30)]),
    (
        "no compaction",
        &[
            ("memtable_rows", 20),
            ("compaction_active_runs", 1_000_000),
            ("compaction_inactive_runs", 1_000_000),
            ("compaction_small_files", 1_000_000),
        ],
    ),
    (
        "aggressive compaction",
        &[("memtable_rows", 10), ("compaction_active_runs", 1), ("compaction_small_files", 2), ("compaction_jobs", 1)],
    ),
    (
        "two inputs, tiny outputs",
        &[("memtable_rows", 10), ("compaction_max_inputs", 2), ("compaction_output_bytes", 1)],
    ),
    ("tiny segments", &[("log_segment_bytes", 4_096)]),
    ("no log cache", &[("log_cache_bytes", 0), ("log_segment_bytes", 65_536)]),
    ("a checkpoint at every edit", &[("manifest_checkpoint_edits", 1), ("memtable_rows", 20)]),
    ("one row a group", &[("sst_row_group_rows", 1), ("memtable_rows", 20)]),
    ("tiny pages", &[("scan_batch_rows", 3), ("memtable_rows", 50)]),
    ("one call at a time", &[("rpc_window", 1), ("rpc_frame_bytes", 65_536)]),
    ("one entry a raft batch", &[("raft_batch_entries", 1)]),
    ("no entry kept", &[("raft_keep_entries", 0), ("memtable_rows", 20), ("snapshot_chunk_bytes", 64)]),
    ("versions kept for ever", &[("version_keep_ms", 3_600_000), ("memtable_rows", 20)]),
    ("versions kept for a moment", &[("version_keep_ms", 1), ("memtable_rows", 20)]),
    ("one write at a time", &[("write_window", 1), ("write_batch_rows", 1)]),
    ("the catalog flushed at every entry", &[("meta_flush_entries", 1)]),
];

/// Of this scenario.
const HISTORY: &str = "one_history_under_all_options";

/// What the clients were told with options as they are, at one seed. Whoever needs it first runs it.
type Usual = Arc<OnceLock<Result<serde_json::Value, String>>>;

/// What every client is told, and what is in the tables at the end, is the same under every set of options: a test for each
/// set. There are two histories, and each set is held against one of them: what a set changes, it changes in both.
fn same_answers(project: &Project) -> Vec<Trial> {
    let usual: [(u64, Usual); 2] = [(1, Usual::default()), (2, Usual::default())];
    let cells = UNUSUAL.iter().zip(usual.iter().cycle());
    let trial = |((what, changes), (seed, usual)): (&Unusual, &(u64, Usual))| {
        let name = format!(
            "every_set_of_options_gives_the_same_answers@seed-{seed}_{}",
            what.replace(", ", "_").replace(' ', "_")
        );
        let (project, seed, usual, changes) = (project.clone(), *seed, usual.clone(), *changes);
        Trial::test(name, move || {
            let usual = usual.get_or_init(|| history(&project, seed, &[]).map_err(|err| format!("as it is: {err}")));
            let other = history(&project, seed, changes)?;
            first_difference(usual.as_ref()?, &other).map_or(Ok(()), |difference| Err(difference.into()))
        })
    };
    cells.map(trial).collect()
}

/// What the clients are told with these options.
fn history(project: &Project, seed: u64, changes: &[(&str, i64)]) -> Result<serde_json::Value, String> {
    let text = |err: &dyn std::fmt::Display| err.to_string();
    let of =
        |path: std::path::PathBuf| std::fs::read_to_string(&path).map_err(|err| format!("{}: {err}", path.display()));
    let mut scenario: toml::Table = of(project.root.join(format!("scenarios/{HISTORY}.toml")))?
        .parse()
        .map_err(|err: toml::de::Error| text(&err))?;
    let options = scenario["cluster"]["options"].as_table_mut().ok_or("the scenario has no options")?;
    options.extend(changes.iter().map(|(option, value)| ((*option).to_string(), toml::Value::Integer(*value))));
    let failed = |failed: Failed| failed.message().unwrap_or("it cannot be run").to_string();
    let elsewhere = copy(project, HISTORY, &scenario).map_err(failed)?;
    let lines = sim(elsewhere.path(), &["replay", HISTORY, "--seed", &seed.to_string(), "--out", "out"]);
    let lines = lines.map_err(failed)?;
    if lines[0]["outcome"] != "pass" {
        return Err(format!("{:#}", lines[0]));
    }
    let repro = of(elsewhere.path().join(format!("out/{HISTORY}@{seed}/repro.json")))?;
    let repro: serde_json::Value = serde_json::from_str(&repro).map_err(|err| text(&err))?;
    let history = repro["report"]["history"].clone();
    let answers: usize =
        history.as_object().into_iter().flatten().filter_map(|(_, of)| Some(of.as_array()?.len())).sum();
    if answers < 360 {
        return Err(format!("only {answers} answers"));
    }
    Ok(history)
}

/// The client, and the number of its answer from 1, where two histories part.
fn first_difference(one: &serde_json::Value, other: &serde_json::Value) -> Option<String> {
    let (one, other) = (one.as_object()?, other.as_object()?);
    if !one.keys().eq(other.keys()) {
        return Some(format!("the clients are {:?}, not {:?}", other.keys(), one.keys()));
    }
    one.iter().find_map(|(client, answers)| {
        let (answers, others) = (answers.as_array()?, other[client].as_array()?);
        let at = answers.iter().zip(others).position(|(a, b)| a != b);
        let at = at.or_else(|| (answers.len() != others.len()).then(|| answers.len().min(others.len())))?;
        Some(format!("answer {} of {} to client {client} is another one", at + 1, answers.len()))
    })
}

fn test(project: &Project, scenario: &Scenario, seed: u64) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let command = format!("cargo sim replay {} --seed {seed}", scenario.name);
    let (at, directory) = (seed.to_string(), out.path().to_string_lossy());
    let lines = sim(&project.root, &["replay", &scenario.name, "--seed", &at, "--out", &directory])?;
    let line = &lines[0];
    // What differs from the reviewed files is insta's to say.
    if line["outcome"] != "pass" && line["outcome"] != "snapshot" {
        let screen =
            Command::new(env!("CARGO_BIN_EXE_sim")).arg("show").arg(out.path()).current_dir(&project.root).output()?;
        return Err(String::from_utf8_lossy(&screen.stdout).into_owned().into());
    }
    let kept = out.path().join(format!("{}@{seed}", scenario.name));
    let snapshots = project.snapshots();
    if let Some(file) = result_file(&snapshots, scenario) {
        assert_snapshot(&file, &kept.join("result.txt"), &format!("cargo sim run {}", scenario.name))?;
    }
    if let Some(file) = story_file(&snapshots, scenario, seed) {
        assert_snapshot(&file, &kept.join("reviewed-story.txt"), &command)?;
    }
    Ok(())
}

/// One at a time: two seeds of a scenario have one result, and would both write the file of a new one.
static WRITING: Mutex<()> = Mutex::new(());

fn assert_snapshot(file: &Path, found: &Path, command: &str) -> Result<(), Failed> {
    let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_string();
    let found = std::fs::read_to_string(found)?;
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(".");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_description(command);
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    // insta says what differs, and how to review it, by a panic.
    let asserted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        settings.bind(|| insta::assert_snapshot!(name, found));
    }));
    asserted.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Failed::from(text.unwrap_or_else(|| "the snapshot is not the reviewed one".to_string()))
    })
}
