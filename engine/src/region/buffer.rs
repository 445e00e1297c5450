//! The memory for writes that the regions of a node share: lets writes in, makes them wait, wakes them, asks for flushes.
//! What is to be done is decided by [`Pressure`]; this is its edge.
//!
//! A write that waits ends when it is let in, when its time is over, when its replica does not lead any more, or when the
//! region is closed. What it was counted with is given back when its [`Place`] is dropped, whatever came of it.
//!
//! Not here: applying entries, which waits for nobody and says afterwards what memtables hold.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use super::pressure::{Due, Limits, Pressure, Scope, Share, Ticket, Verdict};
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::options::Options;
use crate::types::{RegionId, ReplicaId};

/// The node's. See the module.
pub struct Buffer {
    inner: Mutex<Inner>,
    events: Events,
}

struct Inner {
    pressure: Pressure,
    owners: BTreeMap<Share, Owner>,
    /// Writes that wait.
    waiting: BTreeMap<Ticket, oneshot::Sender<()>>,
}

#[derive(Clone)]
struct Owner {
    region: RegionId,
    replica: ReplicaId,
    /// Wakes who flushes it.
    full: Arc<Notify>,
}

/// A replica's part of the buffer, until it is closed.
pub(super) struct Part {
    buffer: Arc<Buffer>,
    share: Share,
    owner: Owner,
}

/// A write that was let in, until it is over.
pub(super) struct Place {
    buffer: Arc<Buffer>,
    ticket: Ticket,
}

/// A flush that is under way.
pub(super) struct Flushing<'a>(&'a Part);

impl Buffer {
    /// A buffer of the size that the options say.
    pub fn new(options: &Options, events: Events) -> Arc<Buffer> {
        let pressure = Pressure::new(Limits::of(options));
        let inner = Inner { pressure, owners: BTreeMap::new(), waiting: BTreeMap::new() };
        Arc::new(Buffer { inner: Mutex::new(inner), events })
    }

    /// A replica is opened. `full` is notified when it is to flush.
    pub(super) fn open(self: &Arc<Self>, region: RegionId, replica: ReplicaId, full: Arc<Notify>) -> Part {
        let owner = Owner { region, replica, full };
        let share = self.change(|inner| {
            let share = inner.pressure.open();
            inner.owners.insert(share, owner.clone());
            share
        });
        Part { buffer: self.clone(), share, owner }
    }

    /// Makes a change, and does what follows from it.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (changed, due) = {
            let mut inner = self.inner.lock().expect("no panic holds the lock");
            let changed = change(&mut inner);
            for ticket in inner.pressure.resume() {
                if let Some(waiting) = inner.waiting.remove(&ticket) {
                    // One that has given up meanwhile gives back what it was let in with.
                    let _ = waiting.send(());
                }
            }
            let due = inner.pressure.due();
            let due: Vec<(Due, Owner)> = due.into_iter().map(|due| (due, inner.owners[&due.share].clone())).collect();
            (changed, due)
        };
        for (due, Owner { region, replica, full }) in due {
            full.notify_one();
            let (bytes, reason) = (due.bytes, due.why);
            self.events.emit(|| Event::BufferFlush { region, replica, bytes, reason: reason.to_string() });
        }
        changed
    }
}

impl Part {
    /// What its memtables hold now.
    pub fn holds(&self, mutable: usize, frozen: usize) {
        self.buffer.change(|inner| inner.pressure.holds(self.share, mutable as u64, frozen as u64));
    }

    /// A flush begins.
    pub fn flushing(&self) -> Flushing<'_> {
        self.buffer.change(|inner| inner.pressure.flushing(self.share, true));
        Flushing(self)
    }

    /// A write of `bytes` comes: waits until there is room for it, at most `within`, and not when `ended` says why it must
    /// not.
    pub async fn write(&self, bytes: u64, within: Duration, ended: impl Future<Output = Error>) -> Result<Place> {
        let Owner { region, replica, .. } = self.owner;
        let (woken, waiting) = oneshot::channel();
        let verdict = self.buffer.change(|inner| {
            let verdict = inner.pressure.write(self.share, bytes);
            if let Some(Verdict::Stalled(ticket, _)) = verdict {
                inner.waiting.insert(ticket, woken);
            }
            verdict
        });
        let place = |ticket| Place { buffer: self.buffer.clone(), ticket };
        let (place, scope) = match verdict {
            None => return Err(Error::Stopped),
            Some(Verdict::Admitted(ticket)) => return Ok(place(ticket)),
            Some(Verdict::Rejected(full)) => {
                let what = format!("{full} (region {region})");
                return Err(self.refused(bytes, what));
            }
            Some(Verdict::Stalled(ticket, scope)) => (place(ticket), scope),
        };
        self.buffer.events.emit(|| Event::WriteStalled { region, replica, bytes, scope: scope.to_string() });
        self.wait(waiting, scope, bytes, within, ended).await?;
        Ok(place)
    }

    async fn wait(
        &self,
        waiting: oneshot::Receiver<()>,
        scope: Scope,
        bytes: u64,
        within: Duration,
        ended: impl Future<Output = Error>,
    ) -> Result<()> {
        let Owner { region, replica, .. } = self.owner;
        let since = Instant::now();
        let ended = pin!(ended);
        tokio::select! {
            biased;
            woken = waiting => {
                // It is forgotten, not woken, when the region is closed.
                woken.map_err(|_| Error::Stopped)?;
                let waited_ms = since.elapsed().as_millis() as u64;
                self.buffer.events.emit(|| Event::WriteResumed { region, replica, bytes, waited_ms });
                Ok(())
            }
            why = ended => Err(why),
            () = sleep(within) => {
                let ms = within.as_millis();
                let what = format!("the write buffer of the {scope} is full, a write to region {region} waited {ms} ms");
                Err(self.refused(bytes, what))
            }
        }
    }

    fn refused(&self, bytes: u64, what: String) -> Error {
        let Owner { region, replica, .. } = self.owner;
        let reason = what.clone();
        self.buffer.events.emit(|| Event::WriteRejected { region, replica, bytes, reason });
        Error::Busy { what }
    }

    /// The replica is closed: nothing of it counts any longer, and its writes wait in vain.
    pub fn close(&self) {
        self.buffer.change(|inner| {
            inner.pressure.close(self.share);
            inner.owners.remove(&self.share);
            let Inner { pressure, waiting, .. } = inner;
            waiting.retain(|ticket, _| pressure.is_waiting(*ticket));
        });
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.close();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.buffer.change(|inner| {
            inner.waiting.remove(&self.ticket);
            inner.pressure.over(self.ticket);
        });
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.buffer.change(|inner| inner.pressure.flushing(self.0.share, false));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::JoinHandle;

    use super::*;
    use crate::types::{NodeId, TableId};

    const LONG: Duration = Duration::from_secs(60);

    /// A buffer that lets 100 bytes of a region in, and the parts of two.
    fn parts() -> [Arc<Part>; 2] {
        let options =
            Options { region_buffer_stall_bytes: 100, region_buffer_reject_bytes: 1_000, ..Options::default() };
        let buffer = Buffer::new(&options, Events::of(NodeId(1)));
        [0, 1].map(|number| {
            let (region, replica) = (RegionId::new(TableId(1), number), ReplicaId(u64::from(number)));
            Arc::new(buffer.open(region, replica, Arc::new(Notify::new())))
        })
    }

    /// A write that comes and waits.
    async fn waits(part: &Arc<Part>, bytes: u64) -> JoinHandle<Result<Place>> {
        let waiting = part.clone();
        let waiting = tokio::spawn(async move { waiting.write(bytes, LONG, pending()).await });
        sleep(Duration::from_millis(1)).await;
        assert!(!waiting.is_finished());
        waiting
    }

    #[tokio::test]
    async fn all_who_wait_go_on_when_there_is_room_and_nobody_elses_room_counts() {
        let [part, other] = parts();
        part.holds(90, 0);
        let mut waiting = Vec::new();
        for _ in 0..5 {
            waiting.push(waits(&part, 11).await);
        }
        // The other region is not held up, and its flush is none of theirs.
        drop(other.write(50, LONG, pending()).await.unwrap());
        other.holds(50, 0);
        other.holds(0, 0);
        sleep(Duration::from_millis(1)).await;
        assert!(waiting.iter().all(|write| !write.is_finished()));
        // Entries are applied meanwhile, whatever they take.
        part.holds(500, 90);
        part.holds(0, 0);
        let mut places = Vec::new();
        for write in waiting {
            places.push(write.await.unwrap().unwrap());
        }
        // They count until they are over.
        let last = waits(&part, 46).await;
        places.pop();
        last.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_time_the_leadership_or_the_region() {
        let [part, _] = parts();
        part.holds(90, 0);
        let err = part.write(20, Duration::from_secs(1), pending()).await.map(drop).unwrap_err();
        assert_eq!((err.code(), err.to_string().contains("waited 1000 ms")), ("busy", true), "{err}");
        let region = RegionId::META;
        let err = part.write(20, LONG, ready(Error::NotLeader { region, hint: None })).await.map(drop).unwrap_err();
        assert_eq!(err.code(), "not_leader");
        // Who gave up does not stand in the way of others.
        drop(part.write(10, LONG, pending()).await.unwrap());
        let refused = part.write(1_000, LONG, pending());
        part.holds(990, 0);
        let err = refused.await.map(drop).unwrap_err();
        assert_eq!((err.code(), err.to_string().contains("refuses above 1000")), ("busy", true), "{err}");

        let waiting = [waits(&part, 5).await, waits(&part, 5).await];
        part.close();
        for write in waiting {
            assert_eq!(write.await.unwrap().map(drop).unwrap_err(), Error::Stopped);
        }
        assert_eq!(part.write(1, LONG, pending()).await.map(drop).unwrap_err(), Error::Stopped);
        part.holds(1, 1);
    }
}
