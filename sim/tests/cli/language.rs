//! Scenario files: each wrong one is told where and why, and the right one is taken.

use std::path::{Path, PathBuf};

use sim::plan::Plan;
use sim::scenario::parse;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli")
}

/// Lists of more than twelve words are `(..)`: the events, options and errors of the product grow.
fn shortened(line: &str) -> String {
    let mut short = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('(') {
        let (list, behind) = after.split_once(')').unwrap_or((after, ""));
        short += before;
        short += &if list.matches(", ").count() > 12 { "(..)".to_string() } else { format!("({list})") };
        rest = behind;
    }
    short + rest
}

/// Each file of `scenarios/` ends with what must be said of it, a line `#= LINE:COLUMN: MESSAGE` for each problem. To
/// add a case: add a file without such lines, run with `UPDATE=1`, read what was added.
#[test]
fn every_wrong_scenario_is_told_where_and_why() {
    let mut cases = 0;
    let mut wrong = String::new();
    let mut files: Vec<_> = std::fs::read_dir(here().join("scenarios")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        cases += 1;
        let text = std::fs::read_to_string(&file).unwrap();
        let (body, expected): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| !line.starts_with("#= "));
        let body = body.iter().map(|line| format!("{line}\n")).collect::<String>();
        let found: Vec<String> = match parse(&body, "f", "f", &here()) {
            Ok(_) => vec!["#= it is taken".to_string()],
            Err(problems) => problems
                .0
                .iter()
                .map(|one| format!("#= {}:{}: {}", one.line, one.column, one.message.replace('\n', " ")))
                .map(|line| shortened(&line.replace(&here().display().to_string(), "HERE")))
                .collect(),
        };
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, format!("{body}{}\n", found.join("\n"))).unwrap();
        } else if found != expected {
            wrong += &format!("{}\nexpected\n{}\nfound\n{}\n\n", file.display(), expected.join("\n"), found.join("\n"));
        }
    }
    assert!(cases > 40, "only {cases} cases were found");
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_whole_language_is_taken_and_survives_the_plan() {
    // Where the data is.
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let text = std::fs::read_to_string(here().join("examples.toml")).unwrap();
    let scenario = parse(&text, "examples.toml", "examples", &scenarios).unwrap_or_else(|err| panic!("{err}"));
    assert!(scenario.goal.ends_with("what the handbook promises."), "{}", scenario.goal);
    let plan = Plan::resolve(&scenario, 5);
    assert_eq!(plan.loads().iter().map(|(_, file)| *file).collect::<Vec<_>>(), ["data/flights-2013-01.parquet"]);
    let printed = plan.to_toml().unwrap();
    let again = Plan::read(&printed, "plan.toml").unwrap_or_else(|err| panic!("{err}\n{printed}"));
    assert_eq!(again, plan);
}
