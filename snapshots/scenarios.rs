//! Every scenario at its pinned seeds: one test each, a new TOML file is a new test. It runs in a process of its own and
//! must pass, and what comes of it must be what was reviewed:
//!
//! - `<scenario>.snap`: the result, the same for every seed;
//! - `<scenario>@seed-N.snap`: the story of a pinned seed, where no random fault strikes.
//!
//! `cargo insta review` shows what changed.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

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
            let (project, scenario) = (project.clone(), scenario.clone());
            let name = format!("{}@seed-{seed}", scenario.name);
            tests.push(Trial::test(name, move || test(&project, &scenario, seed)));
        }
    }
    tests
}

fn test(project: &Project, scenario: &Scenario, seed: u64) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let command = format!("cargo sim replay {} --seed {seed}", scenario.name);
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["replay", &scenario.name, "--seed", &seed.to_string(), "--format", "json", "--out"])
        .arg(out.path())
        .current_dir(&project.root)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let Some(line) = line else {
        return Err(format!("{command} said nothing:\n{}", String::from_utf8_lossy(&output.stderr)).into());
    };
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
