//! A replica with damaged files is mended: it asks the other replicas of its group, one after the other, for the state that they
//! have in files, receives it, and puts it in the place of its own (what that means, and in which steps: `region::damage`).
//!
//! It asks as long as it takes, with pauses: whoever could help may come back. A replica that was mended and is damaged again waits
//! longer each time ([`Mended`]).
//!
//! The replica that lends keeps the files while they are asked for; a loan that nobody used for a while is over. It sends them
//! as they are: whoever receives them compares the checksums, and so does who sends, for a file that arrives as another one than
//! it should be is damaged there as well.

use std::cmp::max_by_key;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use super::message::{Request, Response};
use super::store::{State, Store};
use crate::disk::{Open, remove_tree};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::options::{Options, Pauses};
use crate::raft::{Group, Snapshot, Surroundings};
use crate::region::request::Lent;
use crate::region::{Mending, Region, Want};
use crate::types::{LogId, NodeId, RegionId, ReplicaId};

/// What is lent at present.
#[derive(Clone, Default)]
pub(super) struct Loans {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    loans: BTreeMap<u64, Loan>,
}

struct Loan {
    snapshot: Snapshot,
    /// Whose files they are.
    region: Weak<Region>,
    used: Instant,
    /// The file that is being read from its beginning on: which, up to where, and what its checksum is so far.
    sent: (u32, u64, crc32fast::Hasher),
}

impl Loans {
    /// Keeps the files of `snapshot` until the loan is over.
    fn lend(&self, region: &Arc<Region>, snapshot: Snapshot) -> u64 {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        inner.last += 1;
        let number = inner.last;
        let (region, sent) = (Arc::downgrade(region), (0, 0, crc32fast::Hasher::new()));
        inner.loans.insert(number, Loan { snapshot, region, used: Instant::now(), sent });
        number
    }

    fn has(&self, number: u64) -> bool {
        self.inner.lock().expect("no panic holds the lock").loans.contains_key(&number)
    }

    /// Ends the loans that nobody used for so long.
    fn end(&self, patience: Duration) {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        inner.loans.retain(|_, loan| loan.used.elapsed() < patience);
    }

    /// The path and the length of a file.
    fn file(&self, number: u64, file: u32) -> Result<(String, u64)> {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        let over = || Error::Busy { what: format!("loan {number} is over") };
        let loan = inner.loans.get_mut(&number).ok_or_else(over)?;
        loan.used = Instant::now();
        let file = loan.snapshot.files.get(file as usize).ok_or_else(over)?;
        Ok((file.path.clone(), file.len))
    }

    /// A piece of a file was read to be sent. Answers whose file it is, if the file is not what it should be.
    fn read(&self, number: u64, file: u32, offset: u64, bytes: &Bytes) -> Option<Arc<Region>> {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        let loan = inner.loans.get_mut(&number)?;
        let meta = loan.snapshot.files.get(file as usize)?;
        if offset == 0 {
            loan.sent = (file, 0, crc32fast::Hasher::new());
        }
        let (sending, next, hasher) = &mut loan.sent;
        // Whoever asks for pieces in another order is not followed.
        if (*sending, *next) == (file, offset) {
            hasher.update(bytes);
            *next += bytes.len() as u64;
        }
        let is_short = bytes.is_empty() && offset < meta.len;
        let is_other = (*sending, *next) == (file, meta.len) && hasher.clone().finalize() != meta.checksum;
        if is_short || is_other { loan.region.upgrade() } else { None }
    }
}

/// When replicas may be mended again. Known while the node runs.
#[derive(Clone, Default)]
pub(super) struct Mended {
    inner: Arc<Mutex<BTreeMap<ReplicaId, (Pauses, Instant)>>>,
}

impl Mended {
    fn note(&self, replica: ReplicaId, options: &Options) {
        let mut inner = self.inner.lock().expect("no panic holds the lock");
        let (pauses, again) = inner.entry(replica).or_insert_with(|| (options.mend_pauses(), Instant::now()));
        *again = Instant::now() + pauses.next_pause();
    }

    /// Waits until it may be mended.
    async fn wait(&self, replica: ReplicaId) {
        let again = self.inner.lock().expect("no panic holds the lock").get(&replica).map(|(_, again)| *again);
        if let Some(again) = again {
            sleep_until(again).await;
        }
    }
}

/// Why a replica cannot be opened before it is mended.
pub(super) struct Ailment {
    /// What is damaged.
    pub(super) damage: Error,
    /// The state of its group is needed as of this entry or later.
    pub(super) from: Option<LogId>,
}

impl Store {
    /// Lends what the region's replica has in files, as of `from` or later.
    pub async fn lend(&self, region: RegionId, from: Option<LogId>) -> Result<Lent> {
        let replica = self.of_region(region)?;
        let State::Region(region) = &replica.state else { return Err(Error::RegionNotFound { region }) };
        let snapshot = region.lend(from).await?;
        let header = snapshot.header.clone();
        let files = snapshot.files.iter().map(|file| (file.len, file.checksum)).collect();
        let number = self.loans.lend(region, snapshot);
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
        let bytes = read.await.map_err(|err| Error::io(&err, format!("read {path}")))?;
        match self.loans.read(number, file, offset, &bytes) {
            None => Ok(bytes),
            Some(region) => {
                let message = "it was lent and is not as it was written".into();
                Err(region.noticed(Error::Damaged { file: path, message }))
            }
        }
    }

    /// The state of another replica for one that cannot be opened without it; none if it did not come.
    pub(super) async fn help_closed(&self, id: ReplicaId, ailment: Ailment) -> Option<Help> {
        self.mended.wait(id).await;
        match self.ask_for_closed(id, ailment.from).await {
            Ok(help) => Some(help),
            Err(err) => {
                let damage = &ailment.damage;
                tracing::warn!(replica = %id, %damage, %err, "a replica cannot be opened before it is mended");
                None
            }
        }
    }

    async fn ask_for_closed(&self, id: ReplicaId, from: Option<LogId>) -> Result<Help> {
        let spec = self.spec(id);
        let (mut want, folder) = {
            // Nothing is made for one that is gone.
            let _dropped = self.refuse_dropped(id).await?;
            (Want::of(&spec).await?, Want::folder(&spec).await?)
        };
        want.from = max_by_key(want.from, from, |entry| entry.map(|entry| entry.index));
        ask(&self.around, &want, &folder).await
    }

    /// Puts what came from another replica in the place of the files of `id`, which is closed.
    pub(super) async fn put_in_place(&self, id: ReplicaId, help: Help) -> Result<()> {
        let mending = Mending::open(self.spec(id), &help.header).await?;
        let (region, last) = (mending.region(), mending.last());
        mending.install(&help.files).await?;
        self.mended.note(id, &self.around.options);
        self.around.events.emit(|| Event::ReplicaMended { region, replica: id, from: help.from, last });
        Ok(())
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
pub(super) async fn help(around: &Surroundings, mended: &Mended, group: &Group, region: &Region) -> (String, Help) {
    loop {
        let file = region.damaged().await;
        let helped = tokio::select! {
            biased;
            // Who leads must answer what it may be unable to read.
            never = group.keep_handing_over() => match never {},
            helped = ask_until_helped(around, mended, group, region) => helped,
        };
        match helped {
            Some(help) => return (file, help),
            None => group.stand(true),
        }
    }
}

/// None: it is not damaged any more, for the leader has sent a snapshot meanwhile.
async fn ask_until_helped(around: &Surroundings, mended: &Mended, group: &Group, region: &Region) -> Option<Help> {
    mended.wait(group.replica()).await;
    let mut pauses = around.options.pauses();
    while region.is_damaged() {
        // It is about to be closed: somebody else should lead by then.
        group.stand(false);
        group.hand_over().await;
        match ask_for_open(around, region).await {
            Ok(help) => return Some(help),
            Err(err) => {
                tracing::warn!(region = %group.region(), replica = %group.replica(), %err, "a replica is not mended yet");
            }
        }
        // Whoever could lead instead may need its help just as well.
        group.stand(true);
        sleep(pauses.next_pause()).await;
    }
    None
}

async fn ask_for_open(around: &Surroundings, region: &Region) -> Result<Help> {
    let wanted = region.wanted().await?;
    let folder = wanted.folder().await?;
    let helped = ask(around, &wanted.want(), &folder).await;
    match &helped {
        Ok(_) => wanted.seal(),
        // What is left of it goes when the replica is opened the next time.
        Err(_) => drop(remove_tree(around.disk.as_ref(), &folder).await),
    }
    helped
}

/// Asks the others, one after the other, and receives files into `folder`.
async fn ask(around: &Surroundings, want: &Want, folder: &str) -> Result<Help> {
    let mut failed = Error::Busy { what: format!("region {} has no other replica", want.region) };
    for (attempt, (_, node)) in want.others.iter().enumerate() {
        let names = format!("{folder}/{attempt}-");
        match fetch(around, want, *node, &names).await {
            Ok((header, files)) => {
                let disk = around.disk.as_ref();
                disk.sync_dir(folder).await.map_err(|err| Error::io(&err, folder))?;
                return Ok(Help { from: *node, header, files });
            }
            Err(err) => failed = err,
        }
    }
    Err(failed)
}

/// The state of the replica on `node`, in files whose paths begin with `names`.
async fn fetch(around: &Surroundings, want: &Want, node: NodeId, names: &str) -> Result<(Bytes, Vec<String>)> {
    let (disk, router, patience) = (around.disk.as_ref(), &around.router, patience(around));
    let other = || Error::Unknown { message: format!("{node} answers something else than it was asked") };
    let lend = Request::Lend { region: want.region, from: want.from };
    let Response::Lend(lent) = router.call(node, lend, patience).await? else {
        return Err(other());
    };
    let mut files = Vec::with_capacity(lent.files.len());
    for (number, (len, checksum)) in (0..).zip(&lent.files) {
        let path = format!("{names}{number}");
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
    Ok((lent.header, files))
}

fn patience(around: &Surroundings) -> Duration {
    Duration::from_millis(around.options.rpc_timeout_ms) * 10
}
