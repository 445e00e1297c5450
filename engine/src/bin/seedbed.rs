//! The server and its command line.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use engine::clock::OsClock;
use engine::disk::OsDisk;
use engine::error::{Error, Invalid, Result};
use engine::event::Events;
use engine::net::OsNet;
use engine::options::Options;
use engine::server::message::{Request, Response};
use engine::server::rpc::Peers;
use engine::server::{Node, NodeConfig, Seams};
use engine::types::{NodeId, RegionId};
use serde::Deserialize;

/// A region engine: tables in regions, each region a raft group.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an empty folder the store of a node. Once in the life of the node.
    Init {
        /// The node's configuration (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Run a node until it is interrupted.
    Serve {
        /// The node's configuration (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Form the cluster: once, when all its nodes run.
    Bootstrap {
        /// The configuration of any of the nodes (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Print what a running node counts, in the text format of Prometheus.
    Metrics {
        /// The node's configuration (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Run statements, one an argument, and print what they give.
    Sql {
        /// The configuration of any of the nodes (TOML).
        #[arg(long)]
        config: PathBuf,
        /// How long each statement may take, in seconds.
        #[arg(long, default_value_t = 30)]
        timeout: u64,
        /// The statements.
        #[arg(required = true)]
        statements: Vec<String>,
    },
    /// Write the rows of Parquet files to a table, those of each region at once. A file of a name that was written before is
    /// left alone.
    Ingest {
        /// The configuration of any of the nodes (TOML).
        #[arg(long)]
        config: PathBuf,
        /// The table.
        #[arg(long)]
        table: String,
        /// How long each file may take, in seconds.
        #[arg(long, default_value_t = 30)]
        timeout: u64,
        /// The files; each is known again by its path as it is given here.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// The file that `--config` names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Number of the node, from 1.
    node: u64,
    /// The folder of its store, relative to the configuration.
    data: PathBuf,
    /// `host:port` to listen at; default: its own entry of `nodes`.
    listen: Option<String>,
    /// `host:port` of every node, by number.
    nodes: BTreeMap<String, String>,
    /// Tunables that differ from the defaults.
    #[serde(default)]
    options: Options,
}

fn main() -> ExitCode {
    // (Of openraft's warnings nearly all are of elections and restarts, which are everyday events; `RUST_LOG` shows them.)
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,openraft=error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            let _ = writeln!(std::io::stderr(), "seedbed: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|err| Error::io(&err, "start the runtime"))?;
    runtime.block_on(async {
        match args.command {
            Command::Init { config } => {
                let (config, data) = load(&config)?;
                make_folder(&data)?;
                Node::init(&config, &OsDisk::new(data)).await
            }
            Command::Serve { config } => serve(&config).await,
            Command::Bootstrap { config } => {
                let (config, _) = load(&config)?;
                let members = Node::meta_members(&config);
                let request = Request::InitGroup { region: RegionId::META, members };
                call(&config, config.node, request, Duration::from_secs(10)).await.map(drop)
            }
            Command::Metrics { config } => {
                let (config, _) = load(&config)?;
                metrics(&config).await
            }
            Command::Sql { config, timeout, statements } => {
                let (config, _) = load(&config)?;
                sql(&config, Duration::from_secs(timeout), statements).await
            }
            Command::Ingest { config, table, timeout, files } => {
                let (config, _) = load(&config)?;
                ingest(&config, &table, Duration::from_secs(timeout), files).await
            }
        }
    })
}

async fn serve(path: &Path) -> Result<()> {
    let (config, data) = load(path)?;
    let seams = Seams {
        disk: Arc::new(OsDisk::new(data)),
        net: Arc::new(OsNet),
        clock: Arc::new(OsClock),
        events: Events::of(config.node),
    };
    let (started, handle) = tokio::sync::oneshot::channel();
    let running = Node::run(config, seams, |node| {
        let _ = started.send(node);
    });
    let interrupted = async {
        if let Ok(node) = handle.await {
            let _ = tokio::signal::ctrl_c().await;
            node.stop();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        ended = running => ended.map_err(|stop| stop.0),
        () = interrupted => unreachable!("it only asks the node to stop"),
    }
}

async fn metrics(config: &NodeConfig) -> Result<()> {
    let answer = call(config, config.node, Request::Metrics, Duration::from_secs(10)).await?;
    let Response::Metrics(samples) = answer else {
        return Err(Error::Unknown { message: "the answer is of another kind than the request".into() });
    };
    let text = engine::metrics::prometheus(config.node, &samples);
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(|err| Error::io(&err, "print"))
}

async fn sql(config: &NodeConfig, within: Duration, statements: Vec<String>) -> Result<()> {
    let mut session = 0;
    for sql in statements {
        let Response::Sql(answer) = call(config, config.node, Request::Sql { session, sql }, within).await? else {
            return Err(Error::Unknown { message: "the answer is of another kind than the request".into() });
        };
        session = answer.session;
        let mut out = std::io::stdout().lock();
        let written = match (&answer.rows, answer.affected) {
            (Some(rows), _) => writeln!(out, "{}", engine::server::print_rows(rows)?),
            (None, Some(affected)) => writeln!(out, "{affected} rows"),
            (None, None) => writeln!(out, "done"),
        };
        written.map_err(|err| Error::io(&err, "print"))?;
    }
    Ok(())
}

async fn ingest(config: &NodeConfig, table: &str, within: Duration, files: Vec<PathBuf>) -> Result<()> {
    for path in files {
        let file = path.display().to_string();
        let content = bytes_of(&path)?.into();
        let request = Request::Ingest { table: table.to_string(), file: file.clone(), content };
        let Response::Ingest(rows) = call(config, config.node, request, within).await? else {
            return Err(Error::Unknown { message: "the answer is of another kind than the request".into() });
        };
        writeln!(std::io::stdout().lock(), "{file}: {rows} rows").map_err(|err| Error::io(&err, "print"))?;
    }
    Ok(())
}

async fn call(config: &NodeConfig, node: NodeId, request: Request, within: Duration) -> Result<Response> {
    let options = Arc::new(config.options.clone());
    let peers = Peers::new(NodeId(0), Arc::new(OsNet), config.nodes.clone(), options, Events::of(NodeId(0)));
    peers.call(node, request, within).await
}

fn load(path: &Path) -> Result<(NodeConfig, PathBuf)> {
    let wrong = |message: String| Error::invalid(Invalid::Option, format!("{}: {message}", path.display()));
    let text = read(path)?;
    let config: Config = toml::from_str(&text).map_err(|err| wrong(err.to_string()))?;
    config.options.validate().map_err(|err| wrong(err.to_string()))?;
    let mut nodes = BTreeMap::new();
    for (name, addr) in config.nodes {
        let node = name.parse().ok().filter(|node| *node > 0);
        nodes.insert(NodeId(node.ok_or_else(|| wrong(format!("nodes.{name}: a node is a number from 1")))?), addr);
    }
    let node = NodeId(config.node);
    let Some(addr) = nodes.get(&node) else {
        return Err(wrong(format!("node {} is not among the nodes", config.node)));
    };
    let listen = config.listen.unwrap_or_else(|| addr.clone());
    let data = path.parent().unwrap_or(Path::new(".")).join(config.data);
    Ok((NodeConfig { node, listen, nodes, options: config.options }, data))
}

fn read(path: &Path) -> Result<String> {
    String::from_utf8(bytes_of(path)?)
        .map_err(|_| Error::invalid(Invalid::Option, format!("{} is not UTF-8", path.display())))
}

#[expect(clippy::disallowed_methods, reason = "what a person names is not in a store")]
fn bytes_of(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|err| Error::io(&err, path.display()))
}

#[expect(clippy::disallowed_methods, reason = "the store's folder is made before there is a store")]
fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|err| Error::io(&err, path.display()))
}
