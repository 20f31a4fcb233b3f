//! The byte stream below HTTP. It keeps a client from filling the server's buffers, and explains malformed requests.
//!
//! actix-http itself answers a request that it cannot parse: without a body, and out of sight of every middleware.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::http::StatusCode;
use keypool_openapi::{Problem, ProblemType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::{Connection, HEAD_TIMEOUT, Phase};
use crate::problem::{PROBLEM_JSON, table};

/// The largest head of a request, in bytes: the limit that is common among proxies. Further bytes are not read until
/// the request before is answered.
const HEAD: usize = 16 * 1024;

/// Any stream, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// The stream of one connection.
pub(crate) struct HttpStream {
    stream: Box<dyn Stream>,
    connection: Rc<Connection>,
    /// Whether actix-http has had a chance to parse all received bytes.
    has_paused: bool,
    /// The explanation that replaces an answer without a body, and the number of its bytes already sent.
    explanation: Option<(Vec<u8>, usize)>,
}

impl HttpStream {
    pub(super) fn new(stream: Box<dyn Stream>, connection: Rc<Connection>) -> Self {
        Self { stream, connection, has_paused: false, explanation: None }
    }

    pub(super) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// Sends the explanation. Ready once all of it is sent.
    fn poll_explain(&mut self, cx: &mut Context<'_>, detail: impl FnOnce() -> String) -> Poll<io::Result<()>> {
        let (bytes, sent) = self.explanation.get_or_insert_with(|| (explanation(detail()), 0));
        while *sent < bytes.len() {
            *sent += ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[*sent..]))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Whether the client may send without a limit here: a body has its own limit, and a closing connection discards
    /// its input.
    fn is_open_ended(&self) -> bool {
        self.connection.is_closing.get() || self.connection.phase.get() == Some(Phase::Body)
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.received.get() >= HEAD {
            if self.is_open_ended() {
                // Lets actix-http parse the received bytes first: otherwise it would read on up to 128 KiB.
                self.connection.received.set(0);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.connection.phase.get().is_none() {
                // Continues when the request is answered, or when its body is read.
                self.connection.waits(cx);
                return Poll::Pending;
            }
            if !self.has_paused {
                self.has_paused = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.connection.is_stalled() {
                // In the middle of an answer, no explanation can be sent.
                return Poll::Ready(Ok(()));
            }
            let detail =
                || format!("The head of the request has more than {HEAD} bytes. Send fewer or shorter headers.");
            // Then the stream reports its end, and actix-http closes the connection.
            return self.poll_explain(cx, detail);
        }
        self.has_paused = false;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.connection.receives(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match unexplained(buf) {
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
            Some((0, status)) => {
                ready!(self.poll_explain(cx, || not_http(status)))?;
                Poll::Ready(Ok(buf.len()))
            }
            // Answers to earlier requests are sent first.
            Some((at, _)) => Pin::new(&mut self.stream).poll_write(cx, &buf[..at]),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Returns position and status of an answer without a body from actix-http itself, if the written bytes end with one.
fn unexplained(written: &[u8]) -> Option<(usize, StatusCode)> {
    // No answer of this server ends like this: it has a body, or a request id after its length.
    if !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let at = written.windows(9).rposition(|part| part == b"HTTP/1.1 " || part == b"HTTP/1.0 ")?;
    let head = std::str::from_utf8(&written[at..]).ok()?.to_ascii_lowercase();
    let status = head.get(9..12)?.parse().ok()?;
    let of_actix = [StatusCode::BAD_REQUEST, StatusCode::REQUEST_TIMEOUT, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];
    let is_its =
        of_actix.contains(&status) && head.contains("\r\ncontent-length: 0\r\n") && !head.contains("\r\nx-request-id:");
    is_its.then_some((at, status))
}

fn not_http(status: StatusCode) -> String {
    if status == StatusCode::REQUEST_TIMEOUT {
        format!("The head of the request did not arrive within {} s. Send it again, faster.", HEAD_TIMEOUT.as_secs())
    } else {
        "This is not a request of HTTP/1.1 that the server can read. Check its first line, its headers, and how the length \
         of its body is said."
            .to_owned()
    }
}

/// Builds an answer that explains the error and closes the connection.
fn explanation(detail: String) -> Vec<u8> {
    let kind = ProblemType::MalformedRequest;
    let (status, title) = (StatusCode::BAD_REQUEST, table(kind).1.to_owned());
    let id = Uuid::new_v4();
    tracing::debug!(request_id = %id, status = status.as_u16(), detail, "answered what is not HTTP");
    let problem = Problem {
        kind,
        title,
        status: status.as_u16(),
        detail,
        missing: Vec::new(),
        reservation_id: None,
        epoch: None,
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\nx-request-id: {id}\r\nconnection: \
         close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_actix_is_told_from_ours() {
        let its = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
        assert_eq!(unexplained(its), Some((0, StatusCode::BAD_REQUEST)));
        let before = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let both = [before.as_slice(), its].concat();
        assert_eq!(unexplained(&both), Some((before.len(), StatusCode::BAD_REQUEST)));
        for ours in [
            before.as_slice(),
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nx-request-id: 1\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"\r\n\r\n",
        ] {
            assert_eq!(unexplained(ours), None, "{}", String::from_utf8_lossy(ours));
        }
    }
}
