//! Appends to the node's one log: what one fsync acknowledges for how many groups.

use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use engine::disk::OsDisk;
use engine::event::Events;
use engine::log::{Entry, Log};
use engine::options::Options;
use engine::types::{LogId, NodeId, ReplicaId};
use futures::future::join_all;
use tokio::runtime::Runtime;

/// Each group appends one entry of `BYTES` bytes and waits until it is durable, all groups at the same time.
#[divan::bench(args = [1, 16, 64], consts = [128, 4096])]
fn append<const BYTES: usize>(bencher: Bencher, groups: u64) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(OsDisk::new(folder.path()));
    let log = runtime.block_on(async {
        engine::disk::Disk::create_dir(&*disk, "log").await.unwrap();
        Log::open(disk.clone(), "log", &Options::default(), Events::of(NodeId(1))).await.unwrap()
    });
    let replicas: Vec<_> = (1..=groups).map(|replica| log.replica(ReplicaId(replica))).collect();
    let payload = Bytes::from(vec![7; BYTES]);
    let mut index = 0;
    bencher.counter(ItemsCount::new(groups)).counter(BytesCount::new(groups * BYTES as u64)).bench_local(|| {
        let id = LogId { term: 1, index };
        index += 1;
        let appended = replicas.iter().map(|replica| replica.append(vec![Entry { id, payload: payload.clone() }]));
        let durable = runtime.block_on(join_all(appended));
        durable.into_iter().for_each(|durable| durable.unwrap());
        // What is kept of the log must not grow with the number of samples.
        if index % 256 == 0 {
            runtime.block_on(join_all(replicas.iter().map(|replica| replica.purge(id))));
        }
    });
}
