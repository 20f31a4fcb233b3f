use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedRwLockWriteGuard, RwLock},
};

/// A failure of a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It arrives and is done, and the answer does not come back.
    LostAnswer,
    /// It does not arrive.
    Lost,
    /// Something in front of the server answers 503, and says how many seconds to wait.
    Busy(u64),
    /// Something in front of the server answers with this status, and a page of its own.
    Gateway(u16),
    /// It arrives with the second of these in place of the first, which are as long as each other.
    Altered(&'static str, &'static str),
}

/// A lying server's change of its answer.
type Lie = Box<dyn Fn(&mut Value) + Send>;

/// Something between a client and its server that loses things as it is told. Requests are noted when they are done.
#[derive(Clone)]
pub struct Proxy {
    pub base: String,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    /// The failure of the next request that begins so.
    failing: Arc<Mutex<Option<(String, Fault)>>>,
    seen: Arc<Mutex<Vec<String>>>,
    /// The changes of the answers to requests that begin so.
    lies: Arc<Mutex<Vec<(String, Lie)>>>,
    /// While it is held, nothing passes.
    gate: Arc<RwLock<()>>,
}

impl Proxy {
    pub async fn before(base: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            base: format!("http://{}", listener.local_addr().unwrap()),
            faults: Arc::default(),
            failing: Arc::default(),
            seen: Arc::default(),
            lies: Arc::default(),
            gate: Arc::default(),
        };
        let (server, its) = (base.strip_prefix("http://").unwrap().to_owned(), proxy.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, its) = (server.clone(), its.clone());
                tokio::spawn(async move { its.pass(client, &server).await });
            }
        });
        proxy
    }

    /// Sets the failures of the next requests, in this order.
    pub fn next(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// Sets the failure of the next request that begins so; later ones succeed.
    pub fn fail_on(&self, beginning: &str, fault: Fault) {
        *self.failing.lock().unwrap() = Some((beginning.to_owned(), fault));
    }

    /// Changes every answer to a request that begins so, until [`Proxy::is_honest`].
    pub fn lies(&self, beginning: &str, lie: impl Fn(&mut Value) + Send + 'static) {
        self.lies.lock().unwrap().push((beginning.to_owned(), Box::new(lie)));
    }

    /// From now on, answers pass as they are.
    pub fn is_honest(&self) {
        self.lies.lock().unwrap().clear();
    }

    /// The answer to a request, as the client gets it.
    fn told(&self, head: &str, answer: Vec<u8>) -> Vec<u8> {
        let lies = self.lies.lock().unwrap();
        let mut matching = lies.iter().filter(|(beginning, _)| head.starts_with(beginning.as_str())).peekable();
        if matching.peek().is_none() {
            return answer;
        }
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut body: Value = serde_json::from_str(body).unwrap();
        matching.for_each(|(_, lie)| lie(&mut body));
        let body = body.to_string();
        let is_length = |line: &&str| !line.to_lowercase().starts_with("content-length:");
        let head: Vec<_> = head.lines().filter(is_length).collect();
        format!("{}\r\nContent-Length: {}\r\n\r\n{body}", head.join("\r\n"), body.len()).into_bytes()
    }

    /// Lets no request pass for as long as the answer of this is kept.
    pub async fn held(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.gate).write_owned().await
    }

    /// The requests since they were asked for last, which stay.
    pub fn passed(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests since this was asked last, each with its method, path and headers.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// One request a connection.
    async fn pass(&self, mut client: TcpStream, server: &str) {
        let Some(mut request) = message(&mut client).await else { return };
        let head = String::from_utf8_lossy(&request).split("\r\n\r\n").next().unwrap().to_owned();
        let _passes = self.gate.read().await;
        let fails = self.failing.lock().unwrap().take_if(|(beginning, _)| head.starts_with(beginning.as_str()));
        let fault = fails.map(|(_, fault)| fault).or_else(|| self.faults.lock().unwrap().pop_front());
        match fault {
            Some(Fault::Lost) => self.seen.lock().unwrap().push(head),
            Some(Fault::Busy(seconds)) => {
                self.seen.lock().unwrap().push(head);
                answer_instead(&mut client, 503, &format!("Retry-After: {seconds}\r\n")).await;
            }
            Some(Fault::Gateway(status)) => {
                self.seen.lock().unwrap().push(head);
                answer_instead(&mut client, status, "").await;
            }
            None | Some(Fault::LostAnswer | Fault::Altered(..)) => {
                if let Some(Fault::Altered(before, after)) = fault {
                    assert_eq!(before.len(), after.len());
                    request = String::from_utf8(request).unwrap().replace(before, after).into_bytes();
                }
                let mut to_server = TcpStream::connect(server).await.unwrap();
                to_server.write_all(&request).await.unwrap();
                let answer = message(&mut to_server).await;
                let answer = answer.map(|answer| self.told(&head, answer));
                self.seen.lock().unwrap().push(head);
                if let (None | Some(Fault::Altered(..)), Some(answer)) = (fault, answer) {
                    let text = String::from_utf8_lossy(&answer);
                    let end = text.find("\r\n").unwrap();
                    let _ = client.write_all(&answer[..end]).await;
                    let _ = client.write_all(b"\r\nConnection: close").await;
                    let _ = client.write_all(&answer[end..]).await;
                }
            }
        }
    }
}

/// Answers in place of the server.
async fn answer_instead(client: &mut TcpStream, status: u16, headers: &str) {
    let answer = format!("HTTP/1.1 {status} No\r\n{headers}Content-Length: 4\r\nConnection: close\r\n\r\nbusy");
    let _ = client.write_all(answer.as_bytes()).await;
}

/// A whole HTTP message whose length its head says; `None` where the connection ends before.
async fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut whole = usize::MAX;
    while bytes.len() < whole {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            whole = end + 4 + length.map_or(0, |length| length.trim().parse().unwrap());
        }
    }
    Some(bytes)
}
