//! The real server on this machine: three processes on loopback, one of them killed and started again, then all.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Cluster {
    folder: tempfile::TempDir,
    nodes: Vec<Option<Child>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    fn start(count: usize) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        // Ports that are free now; nobody else on this machine is expected to take them meanwhile.
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut nodes = String::from("[nodes]\n");
        for (at, listener) in listeners.iter().enumerate() {
            writeln!(nodes, "{} = \"{}\"", at + 1, listener.local_addr().unwrap()).unwrap();
        }
        drop(listeners);
        for node in 1..=count {
            let config = format!("node = {node}\ndata = \"data{node}\"\n{nodes}[options]\nmemtable_rows = 50\n");
            std::fs::write(folder.path().join(format!("n{node}.toml")), config).unwrap();
        }
        let mut cluster = Cluster { folder, nodes: (0..count).map(|_| None).collect() };
        for node in 1..=count {
            done(&seedbed(&["init", "--config"], &cluster.config(node), &[]));
            cluster.serve(node);
        }
        let again = until("the cluster is formed", || {
            seedbed(&["bootstrap", "--config"], &cluster.config(1), &[]).status.success().then_some(())
        });
        let () = again;
        cluster
    }

    fn config(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("n{node}.toml"))
    }

    fn serve(&mut self, node: usize) {
        let child = Command::new(env!("CARGO_BIN_EXE_seedbed"))
            .args(["serve", "--config"])
            .arg(self.config(node))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.nodes[node - 1] = Some(child);
    }

    /// SIGKILL: nothing of the process gets a chance to tidy up.
    fn kill(&mut self, node: usize) {
        let mut child = self.nodes[node - 1].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn sql(&self, node: usize, sql: &str) -> String {
        until(sql, || {
            let output = seedbed(&["sql", "--config"], &self.config(node), &[sql]);
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        })
    }
}

fn seedbed(command: &[&str], config: &Path, rest: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_seedbed")).args(command).arg(config).args(rest).output().unwrap()
}

fn done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Elections and reconnections take real time; a minute is far beyond any of them.
fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn insert(from: usize, to: usize) -> String {
    let rows: Vec<String> = (from..to).map(|n| format!("('k{n}', {n})")).collect();
    format!("INSERT INTO t VALUES {}", rows.join(", "))
}

#[test]
fn three_nodes_survive_kill_9() {
    let mut cluster = Cluster::start(3);
    cluster.sql(1, "CREATE TABLE t (k STRING PRIMARY KEY, n BIGINT) WITH (regions = '4')");
    cluster.sql(1, &insert(0, 200));
    cluster.kill(2);
    cluster.sql(1, &insert(200, 400));
    cluster.sql(3, "UPDATE t SET n = n + 1000 WHERE n < 100");
    cluster.serve(2);
    let sum: usize = (0..400).sum::<usize>() + 100 * 1000;
    let counted = |out: &str| out.contains("400") && out.contains(&sum.to_string());
    let out = cluster.sql(2, "SELECT count(*), sum(n) FROM t");
    assert!(counted(&out), "{out}");
    for node in 1..=3 {
        cluster.kill(node);
    }
    for node in 1..=3 {
        cluster.serve(node);
    }
    let out = cluster.sql(3, "SELECT count(*), sum(n) FROM t");
    assert!(counted(&out), "{out}");
}

#[test]
fn mistakes_get_a_clear_answer() {
    let cluster = Cluster::start(1);
    let stderr = |sql: &str| {
        let output = seedbed(&["sql", "--config"], &cluster.config(1), &[sql]);
        assert!(!output.status.success(), "{sql}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(stderr("SELEC 1").contains("[syntax]"));
    assert!(stderr("SELECT * FROM nothing").contains("[unknown_table]"));
    let again = seedbed(&["init", "--config"], &cluster.config(1), &[]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("[mismatch]"));
    let other = cluster.folder.path().join("other.toml");
    std::fs::write(&other, "node = 9\ndata = \"data9\"\n[nodes]\n1 = \"127.0.0.1:1\"\n").unwrap();
    let wrong = seedbed(&["serve", "--config"], &other, &[]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("node 9 is not among the nodes"));
}
