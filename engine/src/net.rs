//! The seam to the network: byte streams between nodes. A harness may put its own behind it.
//!
//! A stream delivers bytes once and in order, or fails. It may fail late (a lost peer is silent until a deadline), and
//! bytes of an abandoned connection may still arrive after newer ones of another.

use std::fmt;
use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection: dropped = closed.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Makes and accepts connections.
#[async_trait]
pub trait Net: fmt::Debug + Send + Sync + 'static {
    /// Starts to accept connections at `addr` (`host:port`; port 0 lets the system choose).
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>>;

    /// A connection to `addr`. May wait as long as the peer is silent: the caller has the deadline.
    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Stream>>;
}

/// Accepts connections until dropped.
#[async_trait]
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// The next connection, and who made it (for logs only).
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, String)>;

    /// Where it listens.
    fn addr(&self) -> String;
}

/// TCP.
#[derive(Debug, Default)]
pub struct OsNet;

#[derive(Debug)]
struct OsListener(tokio::net::TcpListener);

#[expect(clippy::disallowed_methods, reason = "the one place that is meant to make connections")]
#[async_trait]
impl Net for OsNet {
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(OsListener(tokio::net::TcpListener::bind(addr).await?)))
    }

    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Stream>> {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        // Frames are written whole; waiting for more would only delay them.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

#[async_trait]
impl Listener for OsListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, String)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer.to_string()))
    }

    fn addr(&self) -> String {
        self.0.local_addr().map_or_else(|err| format!("unknown ({err})"), |addr| addr.to_string())
    }
}
