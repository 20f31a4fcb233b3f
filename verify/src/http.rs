//! A small HTTP/1.1 client for GET over TCP and TLS: connections that stay open, answers of bounded size.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use rustls_platform_verifier::BuilderVerifierExt;

/// How long a connection may be silent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of an answer's status line and headers.
const MAX_HEAD: u64 = 65_536;

/// How often a request is sent again to a server that is busy, and the longest wait before.
const ATTEMPTS: u32 = 5;
const MAX_WAIT: u64 = 30;

/// Why a URL cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL is none that this client can fetch.
    #[error("{0} is no http:// or https:// URL")]
    Url(String),
    /// The server redirects to another server, which was not asked for.
    #[error("{0}: the server redirects to another server: give that one's URL if you mean it")]
    Redirect(String),
    /// The network failed.
    #[error("{url}: {source}")]
    Network {
        /// The URL.
        url: String,
        /// What failed.
        source: io::Error,
    },
    /// The server answered with another status than 200 or 404.
    #[error("{url}: the server answered {status}")]
    Status {
        /// The URL.
        url: String,
        /// The status.
        status: u16,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where a URL points.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Option<Self> {
        let (tls, rest) = match url.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("http://")?),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| is_port(port)) {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let path = if path.is_empty() { "/" } else { path };
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_valid = !host.is_empty() && is_plain(host) && is_plain(path) && !host.contains('@');
        is_valid.then(|| Self { tls, host: host.to_owned(), port, path: path.to_owned() })
    }

    fn url(&self, path: &str) -> String {
        let (scheme, host) = (if self.tls { "https" } else { "http" }, &self.host);
        if host.contains(':') {
            format!("{scheme}://[{host}]:{}{path}", self.port)
        } else {
            format!("{scheme}://{host}:{}{path}", self.port)
        }
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An open connection.
type Connection = BufReader<Box<dyn Stream>>;

/// A client of the server behind one URL.
pub struct Client {
    target: Target,
    tls: Option<Arc<ClientConfig>>,
    idle: Mutex<Vec<Connection>>,
}

/// An answer.
struct Answer {
    status: u16,
    body: Vec<u8>,
    location: Option<String>,
    retry_after: Option<u64>,
    keeps_open: bool,
}

impl Client {
    /// A client for URLs that begin with this prefix.
    pub fn new(prefix: &str) -> Result<Self, HttpError> {
        let target = Target::parse(prefix.trim_end_matches('/')).ok_or_else(|| HttpError::Url(prefix.to_owned()))?;
        let tls = if target.tls {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
            Some(Arc::new(builder.with_platform_verifier()?.with_no_client_auth()))
        } else {
            None
        };
        Ok(Self { target, tls, idle: Mutex::default() })
    }

    /// Fetches what is at a path below the prefix; `None` if the server has nothing there. Redirects on the same server
    /// are followed.
    pub fn get(&self, path: &str, max_size: u64) -> Result<Option<Vec<u8>>, HttpError> {
        let mut path = format!("{}/{path}", self.target.path.trim_end_matches('/'));
        for attempt in 0..ATTEMPTS {
            let url = self.target.url(&path);
            let answer =
                self.request(&path, max_size).map_err(|source| HttpError::Network { url: url.clone(), source })?;
            match answer.status {
                200 => return Ok(Some(answer.body)),
                404 | 410 => return Ok(None),
                301 | 302 | 307 | 308 => path = self.redirect(answer.location).ok_or(HttpError::Redirect(url))?,
                429 | 503 if attempt + 1 < ATTEMPTS => {
                    sleep(Duration::from_secs(answer.retry_after.unwrap_or(1).clamp(1, MAX_WAIT)));
                }
                status => return Err(HttpError::Status { url, status }),
            }
        }
        Err(HttpError::Status { url: self.target.url(&path), status: 310 })
    }

    fn redirect(&self, location: Option<String>) -> Option<String> {
        let location = location?;
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(location);
        }
        let target = Target::parse(&location)?;
        let is_same = (target.tls, &target.host, target.port) == (self.target.tls, &self.target.host, self.target.port);
        is_same.then_some(target.path)
    }

    fn request(&self, path: &str, max_size: u64) -> io::Result<Answer> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // The server may have closed an idle connection: then a new one is tried.
        if let Some(connection) = idle
            && let Ok(answer) = self.exchange(connection, path, max_size)
        {
            return Ok(answer);
        }
        self.exchange(self.connect()?, path, max_size)
    }

    fn connect(&self) -> io::Result<Connection> {
        let Target { host, port, .. } = &self.target;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (host.as_str(), *port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => return self.prepare(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn prepare(&self, stream: TcpStream) -> io::Result<Connection> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let Some(config) = &self.tls else { return Ok(BufReader::new(Box::new(stream))) };
        let name = ServerName::try_from(self.target.host.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(BufReader::new(Box::new(StreamOwned::new(connection, stream))))
    }

    fn exchange(&self, mut connection: Connection, path: &str, max_size: u64) -> io::Result<Answer> {
        let Target { host, port, .. } = &self.target;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: keypool-verify\r\nAccept-Encoding: identity\r\n\r\n"
        );
        connection.get_mut().write_all(request.as_bytes())?;
        connection.get_mut().flush()?;
        let answer = read_answer(&mut connection, max_size)?;
        if answer.keeps_open {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        Ok(answer)
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn line(connection: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    connection.take(MAX_HEAD).read_until(b'\n', &mut line)?;
    let line = String::from_utf8(line).map_err(|_| invalid("a header is not UTF-8"))?;
    line.strip_suffix('\n')
        .map(|line| line.trim_end_matches('\r').to_owned())
        .ok_or_else(|| invalid("the answer ends within its headers"))
}

fn read_answer(connection: &mut impl BufRead, max_size: u64) -> io::Result<Answer> {
    let status = line(connection)?;
    let is_1_1 = status.starts_with("HTTP/1.1 ");
    let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| invalid("the answer has no status"))?;
    let mut answer = Answer { status, body: Vec::new(), location: None, retry_after: None, keeps_open: is_1_1 };
    let (mut length, mut chunked) = (None, false);
    for _ in 0..200 {
        let line = line(connection)?;
        if line.is_empty() {
            read_body(connection, &mut answer, length, chunked, max_size)?;
            return Ok(answer);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header has no colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse().map_err(|_| invalid("the length is no number"))?),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" if value.eq_ignore_ascii_case("close") => answer.keeps_open = false,
            "location" => answer.location = Some(value.to_owned()),
            "retry-after" => answer.retry_after = value.parse().ok(),
            _ => {}
        }
    }
    Err(invalid("the answer has more than 200 headers"))
}

fn read_body(
    connection: &mut impl BufRead,
    answer: &mut Answer,
    length: Option<u64>,
    chunked: bool,
    max_size: u64,
) -> io::Result<()> {
    let too_long = || invalid("the answer is longer than the log's format allows");
    if chunked {
        loop {
            let size = line(connection)?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| invalid("a chunk has no size"))?;
            if size > max_size - answer.body.len() as u64 {
                return Err(too_long());
            }
            read_exact(connection, &mut answer.body, size)?;
            while !line(connection)?.is_empty() {
                if size > 0 {
                    return Err(invalid("a chunk is longer than its size"));
                }
            }
            if size == 0 {
                return Ok(());
            }
        }
    }
    match length {
        Some(length) if length > max_size => Err(too_long()),
        Some(length) => read_exact(connection, &mut answer.body, length),
        None => {
            answer.keeps_open = false;
            connection.take(max_size + 1).read_to_end(&mut answer.body)?;
            if answer.body.len() as u64 > max_size { Err(too_long()) } else { Ok(()) }
        }
    }
}

fn read_exact(connection: &mut impl BufRead, body: &mut Vec<u8>, size: u64) -> io::Result<()> {
    let read = connection.take(size).read_to_end(body)?;
    if read as u64 == size { Ok(()) } else { Err(invalid("the answer ends within its body")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Option<(bool, String, u16, String)> {
        Target::parse(url).map(|Target { tls, host, port, path }| (tls, host, port, path))
    }

    #[test]
    fn urls_are_split_or_refused() {
        let parts = |tls, host: &str, port, path: &str| Some((tls, host.to_owned(), port, path.to_owned()));
        assert_eq!(target("https://k.example/log"), parts(true, "k.example", 443, "/log"));
        assert_eq!(target("http://k.example:8080"), parts(false, "k.example", 8080, "/"));
        assert_eq!(target("http://[::1]:8080/a/b"), parts(false, "::1", 8080, "/a/b"));
        for url in
            ["ftp://k.example/", "k.example", "http://", "http://a b/", "http://u@k.example/", "http://k/\r\nX: y"]
        {
            assert_eq!(target(url), None, "{url}");
        }
    }

    fn answer(text: &str, max_size: u64) -> io::Result<Answer> {
        read_answer(&mut text.as_bytes(), max_size)
    }

    #[test]
    fn bodies_are_read_as_their_headers_say() {
        for (text, keeps_open) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nhello", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", false),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", false),
        ] {
            let read = answer(text, 5).unwrap();
            assert_eq!(
                (read.status, read.body.as_slice(), read.keeps_open),
                (200, &b"hello"[..], keeps_open),
                "{text}"
            );
            assert!(answer(text, 4).is_err(), "{text}");
        }
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhell\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "hello",
        ] {
            assert!(answer(text, 5).is_err(), "{text}");
        }
    }
}
