//! A replica with damaged files is mended: it asks the other replicas of its group, one after the other, for the state that they
//! have in files, receives it, and puts it in the place of its own (what that means, and in which steps: `region::damage`).
//!
//! The replica that lends keeps the files while they are asked for; a loan that nobody used for a while is over. It sends them
//! as they are: whoever receives them compares the checksums.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::message::{Request, Response};
use super::store::{State, Store};
use crate::disk::{Open, remove_tree};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::raft::{Group, Snapshot, Surroundings};
use crate::region::request::Lent;
use crate::region::{Mending, Region};
use crate::types::{LogId, NodeId, RegionId, ReplicaId};

/// What is lent at present.
#[derive(Clone, Default)]
pub(super) struct Loans {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    loans: BTreeMap<u64, (Snapshot, Instant)>,
}

impl Loans {
    /// Keeps the files of `snapshot` until the loan is over.
    fn lend(&self, snapshot: Snapshot) -> u64 {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        inner.last += 1;
        let number = inner.last;
        inner.loans.insert(number, (snapshot, Instant::now()));
        number
    }

    fn has(&self, number: u64) -> bool {
        self.inner.lock().expect("no panic holds the lock").loans.contains_key(&number)
    }

    /// Ends the loans that nobody used for so long.
    fn end(&self, patience: Duration) {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        inner.loans.retain(|_, (_, used)| used.elapsed() < patience);
    }

    /// The path and the length of a file.
    fn file(&self, number: u64, file: u32) -> Result<(String, u64)> {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        let over = || Error::Busy { what: format!("loan {number} is over") };
        let (snapshot, used) = inner.loans.get_mut(&number).ok_or_else(over)?;
        *used = Instant::now();
        let file = snapshot.files.get(file as usize).ok_or_else(over)?;
        Ok((file.path.clone(), file.len))
    }
}

impl Store {
    /// Lends what the region's replica has in files, as of `from` or later.
    pub async fn lend(&self, region: RegionId, from: Option<LogId>) -> Result<Lent> {
        let replica = self.of_region(region)?;
        let State::Region(region) = &replica.state else { return Err(Error::RegionNotFound { region }) };
        let snapshot = region.lend(from).await?;
        let header = snapshot.header.clone();
        let files = snapshot.files.iter().map(|file| (file.len, file.checksum)).collect();
        let number = self.loans.lend(snapshot);
        // Files that were lent are not deleted: a loan that is not used must end by itself.
        let (loans, patience) = (self.loans.clone(), self.patience());
        tokio::spawn(async move {
            while loans.has(number) {
                sleep(patience).await;
                loans.end(patience);
            }
        });
        Ok(Lent { number, header, files })
    }

    /// A piece of a file that was lent.
    pub async fn lent_piece(&self, number: u64, file: u32, offset: u64) -> Result<Bytes> {
        let (path, len) = self.loans.file(number, file)?;
        let piece = len.saturating_sub(offset).min(self.around.options.snapshot_chunk_bytes);
        let read = async {
            let file = self.around.disk.open(&path, Open::Read).await?;
            file.read_at(offset, usize::try_from(piece).unwrap_or(usize::MAX)).await
        };
        read.await.map_err(|err| Error::io(&err, format!("read {path}")))
    }

    /// Puts what came from another replica in the place of the files of `id`, which is closed.
    pub(super) async fn put_in_place(&self, id: ReplicaId, help: Help) -> Result<()> {
        let mending = Mending::open(self.spec(id), &help.header).await?;
        let (region, last) = (mending.region(), mending.last());
        self.cut_off(id, last).await?;
        mending.install(&help.files).await?;
        self.around.events.emit(|| Event::ReplicaMended { region, replica: id, from: help.from, last });
        Ok(())
    }

    /// Another entry than `last`, which is committed, may stand in the log at its index: what a leader of an older term sent and
    /// never committed. It goes with all that follows it, before the files do not go with it any more: after a crash in between
    /// the old files stand before a shorter log, and what was cut off was of no use. What stands before `last` is in the files.
    async fn cut_off(&self, id: ReplicaId, last: LogId) -> Result<()> {
        let log = self.log.replica(id);
        let is_behind_purged = log.state().purged.is_none_or(|purged| purged.index < last.index);
        let stands = log.log_id(last.index).filter(|_| is_behind_purged);
        match (stands, last.index.checked_sub(1)) {
            (Some(stands), Some(index)) if stands != last => {
                log.truncate_after(Some(LogId { term: last.term, index })).await
            }
            _ => Ok(()),
        }
    }

    /// How long the other side of a loan is waited for.
    fn patience(&self) -> Duration {
        patience(&self.around)
    }
}

/// The state of another replica, in files here.
pub(super) struct Help {
    /// Who helps.
    pub(super) from: NodeId,
    /// See `Lent::header`.
    pub(super) header: Bytes,
    /// Durable.
    pub(super) files: Vec<String>,
}

/// Waits until a file of the replica is found damaged, and then until another one has helped. Nothing changes the replica's
/// files afterwards.
pub(super) async fn help(around: &Surroundings, group: &Group, region: &Region) -> (String, Help) {
    loop {
        let file = region.damaged().await;
        let mut pauses = around.options.pauses();
        // The leader may have sent a snapshot meanwhile.
        while region.is_damaged() {
            // Who leads must answer what it may be unable to read.
            group.hand_over().await;
            match ask(around, region).await {
                Ok(help) => return (file, help),
                Err(err) => {
                    tracing::warn!(region = %group.region(), replica = %group.replica(), %err, "a replica is not mended yet");
                }
            }
            sleep(pauses.next_pause()).await;
        }
    }
}

/// Asks the others, one after the other.
async fn ask(around: &Surroundings, region: &Region) -> Result<Help> {
    let wanted = region.want().await?;
    let mut failed = Error::Busy { what: format!("region {} has no other replica", region.region()) };
    for (_, node) in wanted.others() {
        let folder = wanted.folder().await?;
        match fetch(around, region.region(), node, wanted.from(), &folder).await {
            Ok((header, files)) => {
                wanted.seal();
                return Ok(Help { from: node, header, files });
            }
            Err(err) => failed = err,
        }
        // What is left of it goes when the replica is opened the next time.
        let _ = remove_tree(around.disk.as_ref(), &folder).await;
    }
    Err(failed)
}

/// The state of the replica on `node`, in files in `folder`.
async fn fetch(
    around: &Surroundings,
    region: RegionId,
    node: NodeId,
    from: Option<LogId>,
    folder: &str,
) -> Result<(Bytes, Vec<String>)> {
    let (disk, router, patience) = (around.disk.as_ref(), &around.router, patience(around));
    let other = || Error::Unknown { message: format!("{node} answers something else than it was asked") };
    let Response::Lend(lent) = router.call(node, Request::Lend { region, from }, patience).await? else {
        return Err(other());
    };
    let mut files = Vec::with_capacity(lent.files.len());
    for (number, (len, checksum)) in (0..).zip(&lent.files) {
        let path = format!("{folder}/{number}");
        let file = disk.open(&path, Open::Create).await.map_err(|err| Error::io(&err, &path))?;
        let (mut offset, mut hasher) = (0, crc32fast::Hasher::new());
        while offset < *len {
            let ask = Request::LentPiece { number: lent.number, file: number, offset };
            let Response::LentPiece(bytes) = router.call(node, ask, patience).await? else {
                return Err(other());
            };
            if bytes.is_empty() || offset + bytes.len() as u64 > *len {
                return Err(other());
            }
            hasher.update(&bytes);
            let length = bytes.len() as u64;
            file.write_at(offset, bytes).await.map_err(|err| Error::io(&err, &path))?;
            offset += length;
        }
        if hasher.finalize() != *checksum {
            return Err(Error::Unknown { message: format!("file {number} of {node} arrived as another one") });
        }
        file.sync().await.map_err(|err| Error::io(&err, &path))?;
        files.push(path);
    }
    disk.sync_dir(folder).await.map_err(|err| Error::io(&err, folder))?;
    Ok((lent.header, files))
}

fn patience(around: &Surroundings) -> Duration {
    Duration::from_millis(around.options.rpc_timeout_ms) * 10
}
