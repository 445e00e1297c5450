//! Golden scripts of SQL: `testscripts/sql/*`, run over a cluster in memory.
//!
//! A line that begins with `>` is a statement, with `c2:` before it one of another session. Commands make faults, move
//! leaders and look at what was asked of whom, see [`Command`]. `UPDATE_GOLDENFILES=1` writes what comes out.

use std::collections::BTreeMap;
use std::error::Error as StdError;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::future::join_all;
use goldenscript::{Context, Runner};

use super::testing::{Cluster, Effect, Fault};
use super::{Output, Session};
use crate::error::Result;
use crate::types::{NodeId, RegionId, TableId};

/// A line of a script.
#[derive(goldenscript::Command, Clone)]
enum Command {
    /// `fault write lost_answer region=1/0 skip=1 times=2`
    Fault {
        kind: String,
        effect: String,
        #[arg(key)]
        region: Option<String>,
        #[arg(key)]
        skip: Option<u64>,
        #[arg(key)]
        times: Option<u64>,
    },
    /// Takes back the faults that are left.
    Heal,
    /// `lead 1/0 3` or `lead meta 3`: moves a leader.
    Lead(String, u64),
    /// The node cannot be reached.
    Down(u64),
    /// It can again.
    Up(u64),
    /// The regions forget all sessions.
    ExpireSessions,
    /// The clock says so many milliseconds since 1970.
    Clock(i64),
    /// What was asked of which node since the last look.
    Calls,
    /// Rows of each region.
    Regions,
    /// Runs statements at the same time, each in a session of its own.
    Race(Vec<String>),
    /// Runs statements at the same time, all in one session.
    Together(Vec<String>),
    /// A statement.
    #[command(other)]
    Sql(goldenscript::Command),
}

/// What a command printed before, in the order of the script: [`Runner`] cannot wait, so the commands are collected, run,
/// and printed in three passes.
struct Replay {
    commands: Vec<(Command, Option<String>)>,
    outputs: Option<std::vec::IntoIter<String>>,
}

impl Runner for Replay {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Box<dyn StdError>> {
        match &mut self.outputs {
            None => {
                self.commands.push((command.clone(), context.prefix.clone()));
                Ok(String::new())
            }
            Some(outputs) => Ok(outputs.next().ok_or("more commands than before")?),
        }
    }
}

/// A script's cluster and sessions.
struct World {
    cluster: Cluster,
    sessions: BTreeMap<String, Session>,
}

impl World {
    async fn run(&mut self, command: &Command, prefix: Option<&str>) -> String {
        match command {
            Command::Fault { kind, effect, region, skip, times } => {
                self.cluster.fault(Fault {
                    kind: kind.clone(),
                    region: region.as_deref().map(region_id),
                    effect: Effect::parse(effect).unwrap_or_else(|| panic!("there is no effect {effect}")),
                    skip: skip.unwrap_or(0),
                    times: times.unwrap_or(1),
                });
                String::new()
            }
            Command::Heal => {
                assert!(!self.cluster.faults_left().is_empty(), "there is nothing to heal");
                String::new()
            }
            Command::Lead(region, node) => {
                self.cluster.lead(region_id(region), NodeId(*node));
                String::new()
            }
            Command::Down(node) => {
                self.cluster.set_down(NodeId(*node), true);
                String::new()
            }
            Command::Up(node) => {
                self.cluster.set_down(NodeId(*node), false);
                String::new()
            }
            Command::ExpireSessions => {
                self.cluster.expire_sessions();
                String::new()
            }
            Command::Clock(now) => {
                self.cluster.set_now(*now);
                String::new()
            }
            Command::Calls => self.cluster.take_calls().join("\n"),
            Command::Regions => {
                let count = |(region, rows): (RegionId, usize)| format!("{region}: {rows} rows");
                self.cluster.counts().into_iter().map(count).collect::<Vec<_>>().join("\n")
            }
            Command::Race(statements) => {
                let sessions: Vec<Session> = statements.iter().map(|_| self.cluster.session()).collect();
                let runs = statements.iter().zip(&sessions).map(|(sql, session)| session.execute(sql));
                join_all(runs).await.into_iter().map(show).collect::<Vec<_>>().join("\n")
            }
            Command::Together(statements) => {
                let session = self.session(prefix.unwrap_or("c1"));
                let runs = statements.iter().map(|sql| session.execute(sql));
                join_all(runs).await.into_iter().map(show).collect::<Vec<_>>().join("\n")
            }
            Command::Sql(command) => show(self.session(prefix.unwrap_or("c1")).execute(&command.name).await),
        }
    }

    fn session(&mut self, name: &str) -> Session {
        let cluster = &self.cluster;
        self.sessions.entry(name.to_string()).or_insert_with(|| cluster.session()).clone()
    }
}

fn region_id(text: &str) -> RegionId {
    if text == "meta" {
        return RegionId::META;
    }
    let (table, number) = text.split_once('/').unwrap_or_else(|| panic!("{text} is no table/number"));
    RegionId::new(TableId(table.parse().unwrap()), number.parse().unwrap())
}

fn show(result: Result<Output>) -> String {
    match result {
        Err(err) => format!("Error: {err}"),
        Ok(Output::Done) => "done".to_string(),
        Ok(Output::Affected(1)) => "1 row".to_string(),
        Ok(Output::Affected(rows)) => format!("{rows} rows"),
        Ok(Output::Rows { schema, batches }) => {
            let mut lines =
                vec![schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(" | ")];
            batches.iter().for_each(|batch| lines.extend(rows(batch)));
            lines.join("\n")
        }
    }
}

fn rows(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<ArrayFormatter> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ");
    (0..batch.num_rows()).map(row).collect()
}

async fn script(name: &str) {
    let path = format!("{}/testscripts/sql/{name}", env!("CARGO_MANIFEST_DIR"));
    #[expect(clippy::disallowed_methods, reason = "a test reads its script")]
    let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    let mut replay = Replay { commands: Vec::new(), outputs: None };
    goldenscript::generate(&mut replay, &text).unwrap();
    let mut world = World { cluster: Cluster::new(), sessions: BTreeMap::new() };
    let mut outputs = Vec::new();
    for (command, prefix) in &replay.commands {
        outputs.push(world.run(command, prefix.as_deref()).await);
    }
    let unused = world.cluster.faults_left();
    assert!(unused.is_empty(), "{name}: nothing ran into {unused:?}");
    replay.outputs = Some(outputs.into_iter());
    goldenscript::run(&mut replay, &path).unwrap();
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            script(stringify!($name)).await;
        })*

        /// A script that no test runs would never fail.
        #[test]
        #[expect(clippy::disallowed_methods, reason = "looks at the sources")]
        fn every_script_has_its_test() {
            let dir = format!("{}/testscripts/sql", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<String> = std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            let mut names = vec![$(stringify!($name)),*];
            names.sort_unstable();
            assert_eq!(files, names);
        }
    };
}

scripts! {
    admin
    alter
    alter_meets_writes
    checksum
    conflicts
    create
    errors
    explain
    explain_views
    indexes
    insert
    merge_modes
    options
    partitions
    queries
    retries
    sessions
    settings
    system
    truncate
    types
    update_delete
}

/// A tree that is too deep for the stack ends the process, so statements near the limit are run, and those beyond refused.
/// (Threads of tests and of the runtime have a stack of 2 MiB.)
#[tokio::test]
async fn deep_statements_are_refused() {
    let cluster = Cluster::new();
    let session = cluster.session();
    session.execute("CREATE TABLE t (a INT PRIMARY KEY, n INT)").await.unwrap();
    session.execute("INSERT INTO t VALUES (1, 1)").await.unwrap();
    let repeat = |first: &str, link: &str, times| format!("{first}{}", link.repeat(times));
    // Parentheses in parentheses, with operators behind each.
    let nested = |link: &str, depth: usize, times: usize| {
        let behind = format!("{})", link.repeat(times));
        format!("SELECT {}1{}", "(".repeat(depth), behind.repeat(depth))
    };
    let chains = [
        ("SELECT n", " + n", 290),
        ("SELECT 1", " + 1", 290),
        ("SELECT 1 WHERE 1 = 1", " OR 1 = 2", 145),
        ("SELECT n FROM t WHERE n = 1", " AND n <> 2", 145),
        ("SELECT n FROM t WHERE n = 1", " OR a = 2", 145),
        ("SELECT n FROM t WHERE n = 1", " OR a IS NOT NULL", 140),
        ("SELECT 'a'", " || 'a'", 290),
        ("SELECT n FROM t WHERE n = 1", " AND NOT n = 2", 115),
        ("SELECT 1", "::int", 36),
        ("SELECT 1", " IS NULL", 36),
        ("SELECT 'a'", " LIKE 'a'", 36),
        ("SELECT 1", " UNION ALL SELECT 2", 32),
        ("SELECT 1", " UNION SELECT 2", 33),
        ("SELECT 1", " EXCEPT SELECT 2", 33),
        ("SELECT 1 FROM t", " CROSS JOIN t", 34),
        ("SELECT 1 FROM t", " LEFT JOIN t USING (a)", 31),
    ];
    let mut pairs: Vec<(String, String)> = chains
        .into_iter()
        .map(|(first, link, times)| (repeat(first, link, times), repeat(first, link, times + times / 5 + 3)))
        .collect();
    for (link, times) in [(" + 1", 5), ("::int", 1), (" IS NULL", 1), (" AND 1 = 1", 4), (" LIKE 'a'", 1)] {
        let cost = if times == 1 { 31 } else { 15 + 2 * times + 8 };
        pairs.push((nested(link, 590 / cost, times), nested(link, 39, times * 3)));
    }
    for (fits, too_long) in pairs {
        // Whether it means anything does not matter here: it comes back.
        if let Err(err) = session.execute(&fits).await {
            assert!(!err.to_string().contains("too many operators"), "{fits}: {err}");
        }
        let err = session.execute(&too_long).await.unwrap_err();
        assert!(err.to_string().contains("too many operators"), "{too_long}: {err}");
    }
    for depth in [30, 60, 5_000] {
        let nested = [
            format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth)),
            format!("SELECT {}1{}", "(SELECT ".repeat(depth), ")".repeat(depth)),
            format!("SELECT {}1{}", "abs(".repeat(depth), ")".repeat(depth)),
            format!("{}SELECT 1{}", "(".repeat(depth), ")".repeat(depth)),
            format!("{}SELECT 1{}", "SELECT * FROM (".repeat(depth), ")".repeat(depth)),
            format!("SELECT {}1", "- ".repeat(depth)),
            format!("SELECT {}true", "NOT ".repeat(depth)),
            format!("EXPLAIN {}SELECT 1", "EXPLAIN ".repeat(depth)),
        ];
        for sql in nested {
            let result = session.execute(&sql).await;
            assert!(depth == 30 || result.is_err(), "{sql}");
        }
    }
    let from = |tables| (0..tables).map(|at| format!("t AS t{at}")).collect::<Vec<_>>().join(", ");
    session.execute(&format!("SELECT 1 FROM {}", from(64))).await.unwrap();
    let err = session.execute(&format!("SELECT 1 FROM {}", from(65))).await.unwrap_err();
    assert!(err.to_string().contains("tables in one FROM"), "{err}");
}

/// Statements are run by tasks.
#[tokio::test]
async fn a_statement_can_be_spawned() {
    let session = Cluster::new().session();
    let task = tokio::spawn(async move { session.execute("SELECT 1 UNION ALL SELECT 2").await });
    assert!(matches!(task.await.unwrap(), Ok(Output::Rows { .. })));
}
