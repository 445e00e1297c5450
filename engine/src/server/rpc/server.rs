//! Serving peers: one task per connection reads, decodes and writes, each request is handled in a task of its own.
//!
//! A connection has at most `rpc_window` requests whose answer is not yet written; when it has, one more is read and
//! then none, and the peer feels it. Answers are written in the order in which they are ready.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Handler;
use super::frame::{Broken, Frame, FrameReader, Malformed, decode, encode};
use crate::error::{Error, Result};
use crate::event::Events;
use crate::net::{Listener, Stream};
use crate::options::Options;
use crate::server::message::{Kind, Request, Response};
use crate::types::NodeId;

/// Answers that are ready are written together, up to this size.
const WRITE_BYTES: usize = 64 << 10;

/// Accepts connections and answers their requests by `handler`, until dropped: then every connection is closed.
/// Requests that are being handled at that moment run to their end, unheard.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    handler: Arc<dyn Handler>,
    options: Arc<Options>,
    events: Events,
) -> Infallible {
    let mut connections: Vec<Connection> = Vec::new();
    let mut pause = Duration::ZERO;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = Duration::ZERO;
                connections.retain(|connection| !connection.0.is_finished());
                let session = Session {
                    node: events.node(),
                    peer,
                    handler: handler.clone(),
                    window: Arc::new(Semaphore::new(window(&options))),
                    options: options.clone(),
                };
                connections.push(Connection(tokio::spawn(session.run(stream))));
            }
            // The system is short of something (file descriptors), or a peer was gone before it was accepted.
            Err(err) => {
                pause = (pause * 2)
                    .max(Duration::from_millis(options.retry_min_ms))
                    .min(Duration::from_millis(options.retry_max_ms));
                tracing::warn!(node = events.node().0, %err, "cannot accept a connection");
                sleep(pause).await;
            }
        }
    }
}

fn window(options: &Options) -> usize {
    usize::try_from(options.rpc_window).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

/// The task of a connection: ends with its owner.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One connection, as long as it lasts.
struct Session {
    node: NodeId,
    peer: String,
    handler: Arc<dyn Handler>,
    window: Arc<Semaphore>,
    options: Arc<Options>,
}

/// An encoded answer, and the place in the window that it has until it is written.
type Outgoing = (Frame, OwnedSemaphorePermit);

impl Session {
    async fn run(self, stream: Box<dyn Stream>) {
        let (read, write) = tokio::io::split(stream);
        let (answers, outgoing) = unbounded_channel();
        let ended = tokio::select! {
            biased;
            ended = self.write_answers(write, outgoing) => ended,
            ended = self.read_requests(read, answers) => ended,
        };
        let (node, peer) = (self.node.0, &self.peer);
        match ended {
            Ok(()) => tracing::debug!(node, peer, "the peer closed the connection"),
            Err(Broken::Malformed(malformed)) => tracing::warn!(node, peer, %malformed, "closed the connection"),
            Err(Broken::Io(err)) => tracing::debug!(node, peer, %err, "lost the connection"),
        }
    }

    async fn read_requests(
        &self,
        stream: impl AsyncRead + Unpin,
        answers: UnboundedSender<Outgoing>,
    ) -> Result<(), Broken> {
        let mut frames = FrameReader::new(stream, self.options.rpc_frame_bytes);
        let patience = Duration::from_millis(self.options.rpc_timeout_ms);
        let from = match timeout(patience, frames.next()).await {
            Ok(Ok(Some(Frame::Hello { node, .. }))) => node,
            Ok(Ok(Some(frame))) => return Err(Malformed::unexpected(&frame, "a hello").into()),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(broken)) => return Err(broken),
            Err(_) => return Err(Broken::Io(std::io::ErrorKind::TimedOut.into())),
        };
        while let Some(frame) = frames.next().await? {
            let Frame::Request { kind, id, within, body } = frame else {
                return Err(Malformed::unexpected(&frame, "a request").into());
            };
            let request: Request = decode(&body)?;
            if request.kind() != kind {
                let (said, is) = (kind.name(), request.kind().name());
                return Err(Malformed::Protocol(format!("a frame of kind {said} has a request of kind {is}")).into());
            }
            let deadline = Instant::now() + within;
            // Nobody closes the window.
            let Ok(place) = self.window.clone().acquire_owned().await else { return Ok(()) };
            let work = Work { handler: self.handler.clone(), from, kind, id, request, deadline };
            tokio::spawn(work.run(self.options.rpc_frame_bytes, answers.clone(), place));
        }
        Ok(())
    }

    async fn write_answers(
        &self,
        mut stream: impl AsyncWrite + Unpin,
        mut outgoing: UnboundedReceiver<Outgoing>,
    ) -> Result<(), Broken> {
        let mut buffer = BytesMut::new();
        let mut places = Vec::new();
        while let Some((frame, place)) = outgoing.recv().await {
            frame.put(&mut buffer);
            places.push(place);
            while buffer.len() < WRITE_BYTES {
                let Ok((frame, place)) = outgoing.try_recv() else { break };
                frame.put(&mut buffer);
                places.push(place);
            }
            stream.write_all_buf(&mut buffer).await?;
            stream.flush().await?;
            places.clear();
        }
        Ok(())
    }
}

/// A request that has its place.
struct Work {
    handler: Arc<dyn Handler>,
    from: NodeId,
    kind: Kind,
    id: u64,
    request: Request,
    deadline: Instant,
}

impl Work {
    async fn run(self, limit: u64, answers: UnboundedSender<Outgoing>, place: OwnedSemaphorePermit) {
        let within = self.deadline.saturating_duration_since(Instant::now());
        let answer: Result<Response> = if within.is_zero() {
            // Nobody waits for it any more; to do it now would only surprise.
            Err(Error::Deadline { waiting_for: "its turn at the peer".into() })
        } else {
            self.handler.handle(self.from, self.request, within).await
        };
        let body = encode(&answer, limit).or_else(|err| encode(&Err::<Response, _>(err), limit));
        // An error always fits: the least legal rpc_frame_bytes leaves room for any message of ours.
        let Ok(body) = body else { return };
        // The connection may be lost: then nobody hears the answer.
        let _ = answers.send((Frame::Answer { kind: self.kind, id: self.id, body }, place));
    }
}
