//! What [`engine::net::Net`] promises. One script for all that stand behind it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::net::{Net, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

/// Where a script runs.
pub struct World {
    pub server: Arc<dyn Net>,
    pub client: Arc<dyn Net>,
    /// Where the server may listen, with port 0.
    pub listen: String,
}

impl World {
    /// Both ends of a connection: the client's, the server's.
    async fn connection(&self) -> (Box<dyn Stream>, Box<dyn Stream>) {
        let mut listener = self.server.listen(&self.listen).await.unwrap();
        let addr = listener.addr();
        let (client, accepted) = tokio::join!(self.client.connect(&addr), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }
}

/// Nothing here takes that long, unless it hangs.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what).await.expect("it hangs")
}

/// Bytes that tell where in the stream they belong.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn read_all(stream: &mut Box<dyn Stream>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    Ok(all)
}

pub async fn bytes_arrive_once_and_in_order(world: World) {
    let (mut client, mut server) = world.connection().await;
    let sent = pattern(300_000);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        // Pieces of all sizes, from one byte on.
        let mut rest = &sent[..];
        let mut len = 1;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            client.write_all(piece).await.unwrap();
            client.flush().await.unwrap();
            (rest, len) = (after, len * 3 % 10_007);
        }
        client.shutdown().await.unwrap();
        client
    });
    let received = soon(read_all(&mut server)).await.unwrap();
    assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
    drop(writer.await.unwrap());
}

pub async fn a_direction_can_end_before_the_other(world: World) {
    let (mut client, mut server) = world.connection().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(soon(read_all(&mut server)).await.unwrap(), b"question");
    let err = client.write_all(b"more").await.unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::BrokenPipe);
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(soon(read_all(&mut client)).await.unwrap(), b"answer");
}

pub async fn what_was_written_before_closing_arrives(world: World) {
    let (client, mut server) = world.connection().await;
    let mut client = client;
    client.write_all(&pattern(50_000)).await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    assert!(soon(read_all(&mut server)).await.unwrap() == pattern(50_000));
}

pub async fn the_peer_of_a_dropped_stream_notices(world: World) {
    let (mut client, server) = world.connection().await;
    drop(server);
    let mut byte = [0];
    match soon(client.read(&mut byte)).await {
        Ok(read) => assert_eq!(read, 0),
        Err(err) => assert_eq!(err.kind(), io::ErrorKind::ConnectionReset),
    }
    let failed = async {
        loop {
            if let Err(err) = client.write_all(b"is anybody there").await {
                return err.kind();
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let kind = soon(failed).await;
    assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind:?}");
}

pub async fn unread_bytes_do_not_hide_the_end(world: World) {
    let (mut client, mut server) = world.connection().await;
    client.write_all(&pattern(1_000)).await.unwrap();
    client.flush().await.unwrap();
    let mut first = [0];
    soon(server.read_exact(&mut first)).await.unwrap();
    drop(server);
    let ended = soon(client.read(&mut first)).await;
    assert!(matches!(&ended, Err(err) if err.kind() == io::ErrorKind::ConnectionReset), "{ended:?}");
}

pub async fn nobody_listens(world: World) {
    let listener = world.server.listen(&world.listen).await.unwrap();
    let addr = listener.addr();
    drop(listener);
    let refused = soon(world.client.connect(&addr)).await.err().map(|err| err.kind());
    assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
}

pub async fn an_address_is_taken_once(world: World) {
    let listener = world.server.listen(&world.listen).await.unwrap();
    let addr = listener.addr();
    let taken = world.server.listen(&addr).await.err().map(|err| err.kind());
    assert_eq!(taken, Some(io::ErrorKind::AddrInUse));
    drop(listener);
    let mut listener = world.server.listen(&addr).await.unwrap();
    assert_eq!(listener.addr(), addr);
    let (client, accepted) = soon(async { tokio::join!(world.client.connect(&addr), listener.accept()) }).await;
    drop((client.unwrap(), accepted.unwrap()));
}

pub async fn a_writer_waits_for_its_reader(world: World) {
    let (mut client, mut server) = world.connection().await;
    let all = pattern(64 << 20);
    let mut accepted = 0;
    let fill = async {
        while accepted < all.len() {
            accepted += client.write(&all[accepted..]).await.unwrap();
        }
    };
    timeout(Duration::from_millis(500), fill).await.expect_err("somebody took 64 MiB that nobody reads");
    assert!(accepted > 0);
    let rest = all[accepted..].to_vec();
    let writer = tokio::spawn(async move {
        client.write_all(&rest).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let received = timeout(Duration::from_secs(120), read_all(&mut server)).await.expect("it hangs").unwrap();
    assert!(received == all, "{} of {} bytes", received.len(), all.len());
    drop(writer.await.unwrap());
}

pub async fn both_directions_at_once(world: World) {
    let (client, server) = world.connection().await;
    let talk = |stream: Box<dyn Stream>, says: Vec<u8>, hears: usize| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let mut heard = vec![0; hears];
        let (written, read) = tokio::join!(write.write_all(&says), read.read_exact(&mut heard));
        written.unwrap();
        read.unwrap();
        heard
    };
    let (long, short) = (pattern(3 << 20), pattern(1 << 20));
    let client = talk(client, long.clone(), short.len());
    let server = talk(server, short.clone(), long.len());
    let (by_client, by_server) = soon(async { tokio::join!(client, server) }).await;
    assert!(by_client == short && by_server == long);
}

pub async fn many_connections_at_once(world: World) {
    const COUNT: usize = 30;
    let mut listener = world.server.listen(&world.listen).await.unwrap();
    let addr = listener.addr();
    let server = tokio::spawn(async move {
        for _ in 0..COUNT {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let all = read_all(&mut stream).await.unwrap();
                stream.write_all(&all).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    let clients = (0..COUNT).map(|at| {
        let (net, addr) = (world.client.clone(), addr.clone());
        async move {
            let mut stream = net.connect(&addr).await.unwrap();
            let mine: Vec<u8> = pattern(20_000).iter().map(|byte| byte ^ at as u8).collect();
            stream.write_all(&mine).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(read_all(&mut stream).await.unwrap() == mine, "connection {at}");
        }
    });
    soon(futures::future::join_all(clients)).await;
    server.await.unwrap();
}
