//! A cluster of one node: what a statement's whole way costs, without a network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use engine::clock::OsClock;
use engine::disk::OsDisk;
use engine::event::Events;
use engine::frontend::{Output, Session};
use engine::meta::catalog::TableDef;
use engine::meta::request::{MetaAnswer, MetaRequest};
use engine::net::OsNet;
use engine::options::Options;
use engine::server::message::{Request, Response};
use engine::server::{Node, NodeConfig, Seams};
use engine::types::{NodeId, RegionId};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Its number.
pub const NODE: NodeId = NodeId(1);
/// A statement that takes longer than that fails the bench.
const WITHIN: Duration = Duration::from_secs(120);

/// Options under which what is loaded becomes one file for each region when it is flushed, and not before.
pub fn one_file() -> Options {
    Options { memtable_bytes: 200 << 20, ..Options::default() }
}

/// The node, its disk, and a session.
pub struct One {
    pub node: Node,
    pub session: Session,
    // (It ends before its folder goes.)
    runtime: Runtime,
    folder: TempDir,
}

impl One {
    /// Starts it on an empty disk.
    pub fn start(options: Options, events: Events) -> One {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let node = runtime.block_on(node(&folder, options, events));
        let session = node.frontend().session();
        One { node, session, runtime, folder }
    }

    /// Runs `work` to its end.
    pub fn wait<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    /// Runs a statement; the rows that it gives.
    pub fn sql(&self, sql: &str) -> Vec<RecordBatch> {
        match self.wait(self.session.execute_within(sql, WITHIN)) {
            Ok(Output::Rows { batches, .. }) => batches,
            Ok(_) => Vec::new(),
            Err(err) => panic!("{sql}: {err}"),
        }
    }

    /// Inserts `rows` by one call.
    pub fn load(&self, table: &str, rows: &RecordBatch) {
        let written = self.wait(self.session.insert_within(table, rows.clone(), WITHIN)).unwrap();
        assert_eq!(written, rows.num_rows() as u64);
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All files of rows.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.folder().to_path_buf()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "parquet") {
                    files.push(path);
                }
            }
        }
        files.sort_unstable();
        files
    }

    /// The table or view of that name.
    pub fn table(&self, name: &str) -> TableDef {
        let tables = self.wait(self.node.frontend().ask_meta(MetaRequest::Tables, WITHIN)).unwrap();
        let MetaAnswer::Tables(tables) = tables else { panic!("another answer than to the request: {tables:?}") };
        tables.into_iter().find(|table| table.name == name).unwrap()
    }

    /// Makes a view; how long it takes until it may be read.
    pub fn fill(&self, create: &str, view: &str) -> Duration {
        let begun = Instant::now();
        self.sql(create);
        // As WAIT does, which asks ever less often.
        self.wait(async {
            loop {
                let answer = self.node.frontend().ask_meta(MetaRequest::Views, WITHIN).await.unwrap();
                let MetaAnswer::Views(views) = answer else { panic!("another answer than to the request: {answer:?}") };
                let status = views.into_iter().find(|status| status.view.name == view).unwrap();
                if status.state == "ready" {
                    break;
                }
                assert!(status.state == "filling" && begun.elapsed() < WITHIN, "{status:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        begun.elapsed()
    }

    /// Waits until all that is in `feeder` now is in its `views`. Each must get something of the last rows.
    pub fn follow(&self, feeder: RegionId, views: &[RegionId]) {
        let begun = Instant::now();
        self.wait(async {
            let status = self.node.handle(NodeId(0), Request::Status { region: Some(feeder) }, WITHIN).await.unwrap();
            let Response::Status(status) = status else { panic!("another answer than to the request: {status:?}") };
            let newest = status[0].sequence;
            for view in views {
                loop {
                    let asked =
                        self.node.handle(NodeId(0), Request::Positions { region: *view }, WITHIN).await.unwrap();
                    let Response::Positions(found) = asked else {
                        panic!("another answer than to the request: {asked:?}")
                    };
                    if found.iter().any(|one| one.source.feeder == feeder && one.position.done >= Some(newest)) {
                        break;
                    }
                    assert!(begun.elapsed() < WITHIN, "region {view} does not get to {newest}: {found:?}");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.node.stop();
    }
}

async fn node(folder: &TempDir, options: Options, events: Events) -> Node {
    let disk = Arc::new(OsDisk::new(folder.path()));
    let config = NodeConfig {
        node: NODE,
        listen: "127.0.0.1:0".into(),
        // It calls nobody but itself.
        nodes: BTreeMap::from([(NODE, "127.0.0.1:1".to_string())]),
        options,
    };
    Node::init(&config, &*disk).await.unwrap();
    let seams = Seams { disk, net: Arc::new(OsNet), clock: Arc::new(OsClock), events };
    let (started, node) = tokio::sync::oneshot::channel();
    let members = Node::meta_members(&config);
    tokio::spawn(Node::run(config, seams, |node| {
        let _ = started.send(node);
    }));
    let node: Node = node.await.unwrap();
    let within = Duration::from_secs(10);
    while node
        .handle(NodeId(0), Request::InitGroup { region: RegionId::META, members: members.clone() }, within)
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node
}
