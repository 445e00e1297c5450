//! openraft's runtime on tokio, as both builds have it: the simulated tokio lacks `timeout_at` and the coop budget, so
//! openraft's own adapter does not serve.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::future::{Either, FutureExt, Map, Select, select};
use openraft_rt::{
    AsyncRuntime, Instant, Mpsc, MpscReceiver, MpscSender, MpscWeakSender, Mutex, Oneshot, OneshotSender, OptionalSend,
    OptionalSync, RecvError, SendError, TryRecvError, Watch, WatchReceiver, WatchSender,
};
use tokio::sync::{mpsc, oneshot, watch};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Runtime;

/// The future was not ready in time.
#[derive(Debug, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

type Timed<T> = Select<Pin<Box<T>>, Pin<Box<tokio::time::Sleep>>>;
type Ended<R, T> = Either<(R, Pin<Box<tokio::time::Sleep>>), ((), Pin<Box<T>>)>;
type InTime<R, T> = Map<Timed<T>, fn(Ended<R, T>) -> Result<R, Elapsed>>;

fn timed<R, T: Future<Output = R>>(future: T, sleep: tokio::time::Sleep) -> InTime<R, T> {
    select(Box::pin(future), Box::pin(sleep)).map(|ended| match ended {
        Either::Left((value, _)) => Ok(value),
        Either::Right(_) => Err(Elapsed),
    })
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = Moment;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = InTime<R, T>;
    type ThreadLocalRng = rand::rngs::ThreadRng;
    type Mpsc = Channels;
    type Watch = Channels;
    type Oneshot = Channels;
    type Mutex<T: OptionalSend + 'static> = AsyncMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        timed(future, tokio::time::sleep(duration))
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        timed(future, tokio::time::sleep_until(deadline.0))
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    #[expect(clippy::disallowed_methods, reason = "elections draw their timeouts")]
    fn thread_rng() -> Self::ThreadLocalRng {
        rand::rng()
    }

    fn new(_threads: usize) -> Self {
        Runtime
    }

    fn block_on<F, T>(&mut self, _future: F) -> T
    where
        F: Future<Output = T>,
    {
        unreachable!("raft runs inside the node's runtime and never starts one")
    }
}

/// tokio's clock for timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(tokio::time::Instant);

impl Instant for Moment {
    fn now() -> Self {
        Moment(tokio::time::Instant::now())
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0 + by)
    }
}

impl std::ops::AddAssign<Duration> for Moment {
    fn add_assign(&mut self, by: Duration) {
        self.0 += by;
    }
}

impl std::ops::Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, by: Duration) -> Moment {
        Moment(self.0 - by)
    }
}

impl std::ops::Sub<Moment> for Moment {
    type Output = Duration;
    fn sub(self, earlier: Moment) -> Duration {
        self.0 - earlier.0
    }
}

impl std::ops::SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, by: Duration) {
        self.0 -= by;
    }
}

/// tokio's channels.
#[derive(Debug)]
pub struct Channels;

/// The receiving end of a bounded channel.
#[derive(Debug)]
pub struct Receiver<T>(mpsc::Receiver<T>);

impl Mpsc for Channels {
    type Sender<T: OptionalSend> = mpsc::Sender<T>;
    type Receiver<T: OptionalSend> = Receiver<T>;
    type WeakSender<T: OptionalSend> = mpsc::WeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (Self::Sender<T>, Self::Receiver<T>) {
        let (sender, receiver) = mpsc::channel(buffer);
        (sender, Receiver(receiver))
    }
}

impl<T: OptionalSend> MpscSender<Channels, T> for mpsc::Sender<T> {
    fn send(&self, msg: T) -> impl Future<Output = Result<(), SendError<T>>> + OptionalSend {
        self.send(msg).map(|sent| sent.map_err(|refused| SendError(refused.0)))
    }

    fn downgrade(&self) -> mpsc::WeakSender<T> {
        self.downgrade()
    }
}

impl<T: OptionalSend> MpscWeakSender<Channels, T> for mpsc::WeakSender<T> {
    fn upgrade(&self) -> Option<mpsc::Sender<T>> {
        self.upgrade()
    }
}

impl<T: OptionalSend> MpscReceiver<T> for Receiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> + OptionalSend {
        self.0.recv()
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.0.try_recv().map_err(|err| match err {
            mpsc::error::TryRecvError::Empty => TryRecvError::Empty,
            mpsc::error::TryRecvError::Disconnected => TryRecvError::Disconnected,
        })
    }
}

impl Watch for Channels {
    type Sender<T: OptionalSend + OptionalSync> = watch::Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = watch::Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Self::Sender<T>, Self::Receiver<T>) {
        watch::channel(init)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<Channels, T> for watch::Sender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        self.send(value).map_err(|refused| openraft_rt::watch::SendError(refused.0))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> watch::Receiver<T> {
        self.subscribe()
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<Channels, T> for watch::Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        self.changed().await.map_err(|_| RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.borrow_and_update()
    }
}

/// The sending end of a channel for one value.
#[derive(Debug)]
pub struct Once<T>(oneshot::Sender<T>);

impl Oneshot for Channels {
    type Sender<T: OptionalSend> = Once<T>;
    type Receiver<T: OptionalSend> = oneshot::Receiver<T>;
    type ReceiverError = oneshot::error::RecvError;

    fn channel<T: OptionalSend>() -> (Self::Sender<T>, Self::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Once(sender), receiver)
    }
}

impl<T: OptionalSend> OneshotSender<T> for Once<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

/// tokio's mutex.
#[derive(Debug)]
pub struct AsyncMutex<T>(tokio::sync::Mutex<T>);

impl<T: OptionalSend + 'static> Mutex<T> for AsyncMutex<T> {
    type Guard<'a> = tokio::sync::MutexGuard<'a, T>;

    fn new(value: T) -> Self {
        AsyncMutex(tokio::sync::Mutex::new(value))
    }

    fn lock(&self) -> impl Future<Output = Self::Guard<'_>> + OptionalSend {
        self.0.lock()
    }
}
