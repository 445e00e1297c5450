//! The disk as one incarnation of a node sees it: waiting, failing, dying at the edge; everything else is `Store`'s.

use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::disk::{Disk, File, Open};
use madsim::time::TimeHandle;

use super::fault::{Failure, Fate, Moment, Op, Site};
use super::store::{Id, os_error};
use super::{Class, Shared, Stall, State};
use crate::hash::Hash128;

/// Offsets end where the operating system's do.
const OFFSET_MAX: u64 = i64::MAX as u64;

const PAGE: usize = 4096;

#[derive(Clone)]
pub(super) struct Mounted {
    shared: Arc<Shared>,
    incarnation: u64,
}

struct SimFile {
    mounted: Mounted,
    id: Id,
    /// The path it was opened by.
    path: String,
    writable: bool,
}

/// One operation that has begun.
struct Call<'a> {
    class: Class,
    op: Op,
    path: &'a str,
    nth: u64,
    failure: Option<Failure>,
    rot: bool,
}

impl Mounted {
    pub(super) fn new(shared: Arc<Shared>, incarnation: u64) -> Mounted {
        Mounted { shared, incarnation }
    }

    /// Does something at this moment, or never returns if the incarnation is dead.
    async fn alive<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        match self.try_alive(work) {
            Some(result) => result,
            None => pending().await,
        }
    }

    fn try_alive<T>(&self, work: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.shared.state();
        if state.incarnation != self.incarnation || state.frozen {
            return None;
        }
        state.now = TimeHandle::current().elapsed();
        Some(work(&mut state))
    }

    /// Counts the operation, asks hook and rules about it, waits while the disk stalls.
    async fn begin<'a>(&self, op: Op, path: &'a str) -> Call<'a> {
        let class = Class::of(path);
        let nth = self
            .alive(|state| {
                let count = &mut state.counts[class as usize][op as usize];
                *count += 1;
                *count
            })
            .await;
        let mut call = Call { class, op, path, nth, failure: None, rot: false };
        self.ask(&call, Moment::Before).await;
        let met = self.alive(|state| state.rules.meet(class, op)).await;
        call.failure = met.failure;
        call.rot = met.rot;
        let own = match met.stall {
            Some(within) => self.alive(|state| Some(Stall { until: within.map(|within| state.now + within) })).await,
            None => None,
        };
        self.wait_out(own).await;
        call
    }

    /// The hook may end the process here.
    async fn ask(&self, call: &Call<'_>, moment: Moment) {
        let Some(hook) = self.alive(|state| state.hook.clone()).await else { return };
        let Call { class, op, path, nth, .. } = *call;
        let fate = hook(&Site { node: self.shared.node, class, op, nth, path, moment });
        if fate == Fate::Die {
            // The hook may have ended the incarnation already, and a new one must not be frozen.
            self.try_alive(|state| state.frozen = true);
            pending::<()>().await;
        }
    }

    /// Waits until neither the disk stalls nor `own`, the stall of this operation.
    async fn wait_out(&self, own: Option<Stall>) {
        let lifts = self.alive(|state| state.lifts).await;
        let mut counted = false;
        loop {
            let stall = self
                .alive(|state| {
                    let now = state.now;
                    let is_on = |stall: &Stall| stall.until.is_none_or(|until| until > now);
                    let stall = own.filter(|_| state.lifts == lifts).filter(is_on).or(state.stall.filter(is_on));
                    if stall.is_some() && !counted {
                        counted = true;
                        state.effects.stalls += 1;
                    }
                    stall
                })
                .await;
            match stall {
                Some(stall) => self.lifted_or(stall.until).await,
                None => return,
            }
        }
    }

    /// Waits for the next lift, at most until `until`.
    async fn lifted_or(&self, until: Option<Duration>) {
        let (lifts, now) = self.alive(|state| (state.lifts, state.now)).await;
        let mut timer = pin!(async {
            match until {
                Some(until) => TimeHandle::current().sleep(until.saturating_sub(now)).await,
                None => pending().await,
            }
        });
        poll_fn(|cx| {
            let mut state = self.shared.state();
            if state.incarnation == self.incarnation && state.lifts != lifts {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            drop(state);
            timer.as_mut().poll(cx)
        })
        .await;
    }

    /// Lets a sync of `bytes` to `path` take its time.
    async fn take_time(&self, path: &str, op: Op, bytes: u64) {
        let Shared { node, draws, .. } = &*self.shared;
        let delay = self
            .alive(|state| {
                let nth = state.nth_sync(path);
                let (least, most) = (state.options.sync_min, state.options.sync_max);
                let own = if most.max(least).is_zero() {
                    Duration::ZERO
                } else {
                    draws.duration(format_args!("disk/n{node}/{path}/{op}/{nth}"), least, most).mul_f64(state.slow)
                };
                let now = state.now;
                state.transfer(now, bytes) + own
            })
            .await;
        if !delay.is_zero() {
            TimeHandle::current().sleep(delay).await;
            // A stall that began meanwhile holds back what is under way.
            self.wait_out(None).await;
        }
    }

    /// Lets a read of `len` bytes take its time, if it costs any.
    async fn pay_for_read(&self, len: usize) {
        let due = self
            .alive(|state| {
                let pages = u32::try_from(len.div_ceil(PAGE)).unwrap_or(u32::MAX);
                state.read_debt += state.options.read_page.saturating_mul(pages).mul_f64(state.slow);
                let least = Duration::from_millis(1);
                if state.read_debt >= least { std::mem::take(&mut state.read_debt) } else { Duration::ZERO }
            })
            .await;
        if !due.is_zero() {
            TimeHandle::current().sleep(due).await;
            self.wait_out(None).await;
        }
    }

    /// The operation has had its effect, `result`: makes an event of it and asks the hook.
    async fn end<T>(&self, call: Call<'_>, result: io::Result<T>, fill: impl FnOnce(&mut Hash128)) -> io::Result<T> {
        let now = self.alive(|state| state.now).await;
        let failed = result.as_ref().err().map(|err| err.raw_os_error().unwrap_or(-1));
        let fill = |digest: &mut Hash128| {
            digest.word(u64::from(failed.unwrap_or(0).unsigned_abs()));
            digest.write(call.path.as_bytes());
            fill(digest);
        };
        match &failed {
            None => self.shared.traced(now, event(call.op), fill, format_args!("{}", call.path)),
            Some(number) => {
                self.shared.traced(now, event(call.op), fill, format_args!("{}: error {number}", call.path));
            }
        }
        self.ask(&call, Moment::After).await;
        result
    }

    /// A change of names: at once; where a rule lets it fail, the draws say whether it was made all the same.
    async fn change_names<T>(&self, call: &Call<'_>, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let Shared { node, draws, .. } = &*self.shared;
        self.alive(|state| {
            let Some(failure) = call.failure else { return work(state) };
            state.effects.refuse(failure.os_error(), |effects| &mut effects.names_failed);
            let Call { class, op, nth, .. } = call;
            if draws.chance(format_args!("disk/n{node}/{class}/{op}/{nth}/made"), 0.5) {
                work(state)?;
            }
            Err(os_error(failure.os_error()))
        })
        .await
    }
}

#[async_trait]
impl Disk for Mounted {
    async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let call = self.begin(if how == Open::Create { Op::Create } else { Op::Look }, path).await;
        let result = if how == Open::Create {
            self.change_names(&call, |state| {
                if state.store.used() >= state.options.capacity {
                    state.effects.full += 1;
                    return Err(os_error(libc::ENOSPC));
                }
                state.store.create(path)
            })
            .await
        } else {
            self.alive(|state| match call.failure {
                Some(failure) => Err(os_error(failure.os_error())),
                None => state.store.file(path),
            })
            .await
        };
        let result = match result {
            Ok(id) => {
                let path = path.to_string();
                self.alive(|state| state.store.opened(id)).await;
                Ok(Arc::new(SimFile { mounted: self.clone(), id, path, writable: how != Open::Read }) as Arc<dyn File>)
            }
            Err(err) => Err(err),
        };
        self.end(call, result, |_| {}).await
    }

    async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let call = self.begin(Op::Look, path).await;
        let result = self
            .alive(|state| match call.failure {
                Some(failure) => Err(os_error(failure.os_error())),
                None => state.store.list(path),
            })
            .await;
        self.end(call, result, |_| {}).await
    }

    async fn create_dir(&self, path: &str) -> io::Result<()> {
        let call = self.begin(Op::Create, path).await;
        let result = self.change_names(&call, |state| state.store.create_dir(path)).await;
        self.end(call, result, |_| {}).await
    }

    async fn sync_dir(&self, path: &str) -> io::Result<()> {
        let call = self.begin(Op::SyncDir, path).await;
        let begun = self.alive(|state| state.store.begin_sync_dir(path)).await;
        let result = match begun {
            Ok((folder, mark)) => {
                self.take_time(path, Op::SyncDir, 0).await;
                self.alive(|state| match call.failure {
                    Some(failure) => {
                        state.effects.refuse(failure.os_error(), |effects| &mut effects.syncs_failed);
                        Err(os_error(failure.os_error()))
                    }
                    None => {
                        state.effects.dir_syncs += 1;
                        state.store.sync_dir(folder, mark);
                        Ok(())
                    }
                })
                .await
            }
            Err(err) => Err(err),
        };
        self.end(call, result, |_| {}).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let call = self.begin(Op::Rename, to).await;
        let result = self.change_names(&call, |state| state.store.rename(from, to)).await;
        self.end(call, result, |digest| digest.write(from.as_bytes())).await
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        let call = self.begin(Op::Remove, path).await;
        let result = self.change_names(&call, |state| state.store.remove_file(path)).await;
        self.end(call, result, |_| {}).await
    }

    async fn remove_dir(&self, path: &str) -> io::Result<()> {
        let call = self.begin(Op::Remove, path).await;
        let result = self.change_names(&call, |state| state.store.remove_dir(path)).await;
        self.end(call, result, |_| {}).await
    }
}

#[async_trait]
impl File for SimFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let call = self.mounted.begin(Op::Read, &self.path).await;
        self.mounted.pay_for_read(len).await;
        let result = self
            .mounted
            .alive(|state| match call.failure {
                Some(failure) => {
                    state.effects.refuse(failure.os_error(), |effects| &mut effects.reads_failed);
                    Err(os_error(failure.os_error()))
                }
                None => {
                    if call.rot && state.store.rot(self.id, offset, len) {
                        state.effects.rotted += 1;
                    }
                    Ok(Bytes::from(state.store.read(self.id, offset, len)))
                }
            })
            .await;
        self.mounted
            .end(call, result, |digest| {
                digest.word(offset);
                digest.word(len as u64);
            })
            .await
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let call = self.mounted.begin(Op::Write, &self.path).await;
        let content = bytes.clone();
        let result = self.mounted.alive(|state| self.write_now(state, &call, offset, bytes)).await;
        self.mounted
            .end(call, result, |digest| {
                digest.word(offset);
                digest.write(&content);
            })
            .await
    }

    async fn len(&self) -> io::Result<u64> {
        let call = self.mounted.begin(Op::Look, &self.path).await;
        let result = self
            .mounted
            .alive(|state| match call.failure {
                Some(failure) => Err(os_error(failure.os_error())),
                None => Ok(state.store.len(self.id)),
            })
            .await;
        self.mounted.end(call, result, |_| {}).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let call = self.mounted.begin(Op::SetLen, &self.path).await;
        let result = self.mounted.alive(|state| self.set_len_now(state, &call, len)).await;
        self.mounted.end(call, result, |digest| digest.word(len)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let call = self.mounted.begin(Op::Sync, &self.path).await;
        let (mark, bytes) = self.mounted.alive(|state| state.store.begin_sync(self.id)).await;
        self.mounted.take_time(&self.path, Op::Sync, bytes).await;
        let result = self
            .mounted
            .alive(|state| match call.failure {
                Some(failure) => {
                    state.effects.refuse(failure.os_error(), |effects| &mut effects.syncs_failed);
                    state.store.fail_sync(self.id, mark);
                    Err(os_error(failure.os_error()))
                }
                None => {
                    state.effects.syncs += 1;
                    state.effects.bytes_synced += bytes;
                    state.store.sync(self.id, mark);
                    Ok(())
                }
            })
            .await;
        self.mounted.end(call, result, |digest| digest.word(bytes)).await
    }
}

impl SimFile {
    /// Writes what the faults and the room let through: all, or a part and an error.
    fn write_now(&self, state: &mut State, call: &Call<'_>, offset: u64, bytes: Bytes) -> io::Result<()> {
        if !self.writable {
            return Err(os_error(libc::EBADF));
        }
        let len = bytes.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > OFFSET_MAX) {
            return Err(os_error(libc::EFBIG));
        }
        let room = state.options.capacity.saturating_sub(state.store.used());
        let fits = (state.store.len(self.id).saturating_add(room)).saturating_sub(offset).min(len);
        let stopped = match call.failure {
            Some(failure) => {
                let Shared { node, draws, .. } = &*self.mounted.shared;
                let Call { class, op, nth, .. } = call;
                let written = draws.range(format_args!("disk/n{node}/{class}/{op}/{nth}/part"), 0..len + 1);
                Some((failure.os_error(), written.min(fits)))
            }
            None => (fits < len).then_some((libc::ENOSPC, fits)),
        };
        let written = stopped.map_or(len, |(_, written)| written);
        state.effects.bytes_written += written;
        state.store.write(self.id, offset, bytes.slice(..written as usize));
        match stopped {
            None => Ok(()),
            Some((error, _)) => {
                state.effects.refuse(error, |effects| &mut effects.writes_failed);
                Err(os_error(error))
            }
        }
    }

    fn set_len_now(&self, state: &mut State, call: &Call<'_>, len: u64) -> io::Result<()> {
        if !self.writable {
            return Err(os_error(libc::EINVAL));
        }
        if len > OFFSET_MAX {
            return Err(os_error(libc::EFBIG));
        }
        let room = state.options.capacity.saturating_sub(state.store.used());
        let more = len.saturating_sub(state.store.len(self.id));
        let failure = call.failure.map(Failure::os_error).or((more > room).then_some(libc::ENOSPC));
        match failure {
            None => {
                state.store.set_len(self.id, len);
                Ok(())
            }
            Some(error) => {
                state.effects.refuse(error, |effects| &mut effects.writes_failed);
                Err(os_error(error))
            }
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        // No clock here: this may run under the executor's locks.
        let mut state = self.mounted.shared.state();
        if state.incarnation == self.mounted.incarnation {
            state.store.closed(self.id);
        }
    }
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} incarnation {}", self.shared, self.incarnation)
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.mounted, self.path)
    }
}

/// The kind of event that an operation is in a trace.
fn event(op: Op) -> &'static str {
    match op {
        Op::Read => "disk.read",
        Op::Write => "disk.write",
        Op::SetLen => "disk.set_len",
        Op::Sync => "disk.fsync",
        Op::SyncDir => "disk.dir_sync",
        Op::Create => "disk.create",
        Op::Rename => "disk.rename",
        Op::Remove => "disk.remove",
        Op::Look => "disk.look",
    }
}
