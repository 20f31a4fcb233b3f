//! The attackers, on a thread of their own. They reconnect when the server closes a connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use keypool_bench::DEVICE;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{http::Connection, people};

/// The receive buffer of a client that reads nothing.
const RECEIVE_BUFFER: u32 = 4_096;

/// How long an attacker waits before it reconnects.
const PAUSE: Duration = Duration::from_millis(500);

const LARGE: u32 = 1_000_000;

/// The smallest size whose length has four bytes.
const SMALL: u32 = 20_000;
const GROUP: &[u8] = b"siege";

#[derive(Debug, Default)]
struct Count {
    open: AtomicUsize,
    most_open: AtomicUsize,
    ended: AtomicUsize,
    stop: AtomicBool,
}

/// All attackers.
#[derive(Debug)]
pub(super) struct Attack {
    count: Arc<Count>,
    thread: JoinHandle<Result<()>>,
}

impl Attack {
    /// Starts so many readers, a third of which fetch the messages of these queues, and one waiting device for each
    /// token.
    pub(super) fn begin(address: &str, readers: usize, waiting: &[String], queues: &[String]) -> Self {
        let mut requests = Vec::new();
        for number in 0..readers {
            requests.push(match queues.get(number % (3 * queues.len()).max(1)) {
                Some(token) => request(address, "/messages", Some(token)),
                None if number % 2 == 0 => request(address, "/openapi.json", None),
                None => request(address, "/swagger-ui/swagger-ui-bundle.js", None),
            });
        }
        let polls = waiting.iter().map(|token| request(address, "/messages?wait=60", Some(token)));
        let (polls, address) = (polls.collect::<Vec<_>>(), address.to_owned());
        let count = Arc::<Count>::default();
        let its = Arc::clone(&count);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                for (request, reads) in requests
                    .into_iter()
                    .map(|request| (request, false))
                    .chain(polls.into_iter().map(|poll| (poll, true)))
                {
                    tokio::spawn(insist(address.clone(), request, reads, Arc::clone(&its)));
                    // Not all at the same time, which would only fill the listener's queue.
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
                while !its.stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(())
            })
        });
        Self { count, thread }
    }

    /// Stops the attack. Returns the most simultaneous connections, and the number of closed ones.
    pub(super) fn end(self) -> Result<(usize, usize)> {
        self.count.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread of the attack panicked"))??;
        Ok((self.count.most_open.load(Ordering::Relaxed), self.count.ended.load(Ordering::Relaxed)))
    }
}

fn request(address: &str, path: &str, token: Option<&String>) -> Vec<u8> {
    let bearer = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{bearer}\r\n").into_bytes()
}

/// Sends request after request. A reader that reads nothing keeps its connection until the server closes it.
async fn insist(address: String, request: Vec<u8>, reads: bool, count: Arc<Count>) {
    loop {
        if let Ok(stream) = connect(&address).await {
            let open = count.open.fetch_add(1, Ordering::Relaxed) + 1;
            count.most_open.fetch_max(open, Ordering::Relaxed);
            let _ = ask(stream, &request, reads).await;
            count.open.fetch_sub(1, Ordering::Relaxed);
        }
        count.ended.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn connect(address: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let address = address.parse().map_err(std::io::Error::other)?;
    socket.connect(address).await
}

async fn ask(mut stream: TcpStream, request: &[u8], reads: bool) -> std::io::Result<()> {
    let mut bytes = vec![0; 1_024];
    loop {
        stream.write_all(request).await?;
        if !reads {
            // A reset connection ends the read with an error.
            stream.ready(tokio::io::Interest::ERROR).await?;
            return Ok(());
        }
        if stream.read(&mut bytes).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Registers devices with four large messages each. Returns their tokens.
pub(super) async fn fill_queues(address: &str, count: usize) -> Result<Vec<String>> {
    let names: Vec<_> = (0..count).map(|number| format!("queue-{number}")).chain(["sender".to_owned()]).collect();
    let mut tokens = people::register(address, &names).await?;
    let sender = tokens.pop().context("nobody was registered")?;
    let recipients: Vec<_> = names[..count].iter().map(|user| json!({"user": user, "device": DEVICE})).collect();
    let mut connection = Connection::open(address).await?;
    let mut post = async |path: &str, body: Value| connection.post::<Value>(path, Some(&sender), &body).await;
    let path = format!("/groups/{}", BASE64_STANDARD.encode(GROUP).trim_end_matches('='));
    post(&format!("{path}/commits"), json!({"commit": private_message(true, SMALL), "recipients": []})).await?;
    for _ in 0..4 {
        let body = json!({"message": private_message(false, LARGE), "recipients": recipients});
        let answer = post(&format!("{path}/messages"), body).await?;
        ensure!(answer["undelivered"] == json!([]), "messages did not get into the queues: {}", answer["undelivered"]);
    }
    Ok(tokens)
}

/// Bytes that look like a `PrivateMessage` (RFC 9420, section 6.3) without decryption, in base64.
fn private_message(is_commit: bool, bytes: u32) -> String {
    let (version, wire_format, epoch) = ([0, 1], [0, 2], [0; 8]);
    let content_type = if is_commit { 3 } else { 1 };
    let length = (bytes | 0x8000_0000).to_be_bytes();
    let id = u8::try_from(GROUP.len()).unwrap_or_default();
    let head = [&version[..], &wire_format, &[id], GROUP, &epoch, &[content_type, 0, 0], &length].concat();
    BASE64_STANDARD.encode([head, vec![7; bytes as usize]].concat())
}
