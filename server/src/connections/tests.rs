use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};

use super::{http_stream::HttpStream, socket::Socket, *};

fn room_for(connections: usize, stalled: usize) -> Arc<Connections> {
    let capacity = Capacity { connections, accepted: connections, waits: 1, stalled, answers: 0, bodies: 0 };
    Arc::new(Connections::new(&capacity))
}

/// A time after all earlier events.
fn later() -> Instant {
    let now = Instant::now();
    while Instant::now() == now {}
    Instant::now()
}

#[test]
fn where_there_are_too_many_those_without_a_request_go() {
    let all = room_for(3, 8);
    let [idle, asking, busy] = [(); 3].map(|()| all.open());
    idle.begins(false);
    idle.answered();
    busy.begins(false);
    // Another connection is accepted, and connections with a recent request stay open.
    let fourth = all.open();
    assert!([&idle, &asking, &busy, &fourth].iter().all(|connection| !connection.is_ended()));
    all.end_overdue(later() + TIMEOUT_IN_NEED);
    // Closes no more than are needed, and idle connections first.
    assert!(idle.is_ended() && asking.is_ended() && !fourth.is_ended() && !busy.is_ended());
    {
        let table = all.table();
        assert_eq!((table.open, table.ending), (4, 2));
    }
    drop((idle, asking, fourth));
    // While the server is not full, the shorter timeout does not apply.
    let idle = all.open();
    all.end_overdue(later() + TIMEOUT_IN_NEED);
    assert!(!idle.is_ended());
    let table = all.table();
    assert_eq!((table.open, table.ending), (2, 0));
}

#[test]
fn a_client_that_takes_too_little_is_cut_off_and_one_that_takes_enough_is_not() {
    let all = room_for(10, 8);
    let [slow, quick, done] = [(); 3].map(|()| all.open());
    for connection in [&slow, &quick, &done] {
        connection.begins(false);
        connection.stalls();
    }
    let since = Instant::now();
    later();
    slow.takes(ENOUGH - 1);
    slow.stalls();
    quick.takes(ENOUGH - 1);
    quick.takes(1);
    done.has_taken_all();
    all.end_overdue(since + WRITE_TIMEOUT);
    assert!(slow.is_ended() && !quick.is_ended() && !done.is_ended());
    all.end_overdue(later() + WRITE_TIMEOUT);
    assert!(quick.is_ended() && !done.is_ended());
}

#[test]
fn of_too_many_that_stall_the_one_that_does_so_for_the_longest_is_cut_off() {
    let all = room_for(10, 2);
    let [first, second, third] = [(); 3].map(|()| all.open());
    for connection in [&first, &second, &third] {
        connection.stalls();
    }
    assert!(first.is_ended() && !second.is_ended() && !third.is_ended());
    // If the server is full, the slow connection is closed, but one that has only just stalled is not.
    third.takes(ENOUGH);
    let now = Instant::now();
    assert!(!all.end_a_stalled_one(now) && !second.is_ended());
    assert!(all.end_a_stalled_one(now + TIMEOUT_IN_NEED) && second.is_ended() && !third.is_ended());
    drop(third);
    assert!(!all.end_a_stalled_one(now + WRITE_TIMEOUT));
}

#[test]
fn the_head_of_a_second_request_has_a_time_as_well() {
    let all = room_for(10, 8);
    let (slow, idle) = (all.open(), all.open());
    for connection in [&slow, &idle] {
        connection.begins(false);
        connection.answered();
    }
    slow.receives(1);
    all.end_overdue(later() + Phase::Head.limit());
    assert!(slow.is_ended() && !idle.is_ended());
    all.end_overdue(later() + Phase::Idle.limit());
    assert!(idle.is_ended());
}

/// Returns both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn who_reads_nothing_is_cut_off_in_the_middle() {
    let all = room_for(10, 8);
    let connection = all.open();
    connection.begins(false);
    let (mut client, server) = pair().await;
    let mut socket = Socket::new(server, Rc::clone(&connection));
    let piece = vec![0; ENOUGH];
    let mut cut_off = false;
    // Writes until the kernel's buffer is full.
    let error = poll_fn(|cx| {
        loop {
            match Pin::new(&mut socket).poll_write(cx, &piece) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending if cut_off => return Poll::Pending,
                Poll::Pending => {
                    all.end_overdue(later() + WRITE_TIMEOUT);
                    cut_off = true;
                    // Closing the connection wakes this task.
                    return Poll::Pending;
                }
            }
        }
    });
    assert_eq!(error.await.kind(), io::ErrorKind::TimedOut);
    drop(socket);
    // The client sees the end of the stream in the middle of the answer.
    let mut taken = Vec::new();
    let _ = client.read_to_end(&mut taken).await;
}

/// Reads once from a stream. Returns the number of bytes, or `None` if there is nothing to read now.
async fn read_once(stream: &mut HttpStream) -> Option<io::Result<usize>> {
    let mut bytes = vec![0; 64 * 1024];
    poll_fn(|cx| {
        let mut buf = ReadBuf::new(&mut bytes);
        Poll::Ready(match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
            Poll::Pending => None,
            Poll::Ready(done) => Some(done.map(|()| buf.filled().len())),
        })
    })
    .await
}

#[tokio::test]
async fn no_client_fills_the_buffers() {
    let all = room_for(10, 8);
    let connection = all.open();
    let (mut client, server) = tokio::io::duplex(1024 * 1024);
    let mut stream = HttpStream::new(Box::new(server), Rc::clone(&connection));
    client.write_all(&vec![b'a'; 200_000]).await.unwrap();
    // While a request is answered, further bytes are not read.
    connection.begins(false);
    assert_eq!(read_once(&mut stream).await.unwrap().unwrap(), 64 * 1024);
    assert!(read_once(&mut stream).await.is_none());
    // The request's body is read, as far as it has arrived.
    connection.reads_body();
    assert!(read_once(&mut stream).await.is_none(), "what has come is not dealt with first");
    assert_eq!(read_once(&mut stream).await.unwrap().unwrap(), 64 * 1024);
    connection.has_body();
    connection.answered();
    assert_eq!(read_once(&mut stream).await.unwrap().unwrap(), 64 * 1024);
    // A head without an end: the parser may look once more for a request in the received bytes; then the stream ends.
    assert!(read_once(&mut stream).await.is_none());
    assert_eq!(read_once(&mut stream).await.unwrap().unwrap(), 0);
    drop((stream, connection));
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains("more than 16384 bytes"), "{answer}");
}

/// A stream that accepts a few bytes at a time.
struct Narrow(Vec<u8>);

impl AsyncRead for Narrow {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let some = &buf[..buf.len().min(7)];
        self.0.extend_from_slice(some);
        Poll::Ready(Ok(some.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn all_that_was_written_counts_where_an_explanation_takes_its_place() {
    let connection = room_for(10, 8).open();
    let mut stream = HttpStream::new(Box::new(Narrow(Vec::new())), connection);
    let before = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
    let both = [before.as_slice(), refusal].concat();
    let mut written = 0;
    poll_fn(|cx| {
        while written < both.len() {
            written += ready!(Pin::new(&mut stream).poll_write(cx, &both[written..])).unwrap();
        }
        Poll::Ready(())
    })
    .await;
    assert_eq!(written, both.len());
}

#[test]
fn where_others_wait_for_a_place_a_connection_ends_when_it_has_had_its_turn() {
    let all = room_for(2, 8);
    let mut stranger = Rc::into_inner(all.open()).unwrap();
    let long_ago = Instant::now().checked_sub(TURN).unwrap();
    stranger.opened = long_ago + Duration::from_secs(1);
    assert!(!stranger.must_close(), "nobody waits for its place");
    let mut device = Rc::into_inner(all.open()).unwrap();
    device.is_a_devices();
    device.opened = long_ago + Duration::from_secs(1);
    assert!(!stranger.must_close(), "so many have been ended just now");
    all.end_overdue(Instant::now());
    assert!(stranger.must_close() && !device.must_close());
    let new = all.open();
    assert!(!new.must_close(), "it has just come");
    device.gives_way();
    assert!(device.must_close());
    drop((stranger, new));
    let mut old = Rc::into_inner(all.open()).unwrap();
    old.is_a_devices();
    old.opened = long_ago;
    assert!(old.must_close(), "the two that there may be are there");
    drop(device);
    let next = all.open();
    drop(old);
    assert!(!next.must_close());
}
