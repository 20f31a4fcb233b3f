//! A client's socket. It reports whether the client receives the bytes that are sent, and fails once the connection is
//! closed.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;

/// The socket below all protocols, including TLS.
#[derive(Debug)]
pub(super) struct Socket<S> {
    stream: S,
    connection: Rc<Connection>,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, connection: Rc<Connection>) -> Self {
        Self { stream, connection }
    }

    /// Returns the result of a read or write, or an error if the connection was closed meanwhile.
    fn checked<T>(&self, cx: &Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_pending() {
            self.connection.waits(cx);
        }
        if self.connection.is_ended() {
            let why = "the client was too slow, or room was needed for others";
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, why)));
        }
        done
    }

    fn written(&self, cx: &Context<'_>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match done {
            Poll::Pending => self.connection.stalls(),
            Poll::Ready(Ok(bytes)) => self.connection.takes(bytes),
            Poll::Ready(Err(_)) => {}
        }
        self.checked(cx, done)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.checked(cx, done)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        // The writer flushes after it has written everything.
        if matches!(done, Poll::Ready(Ok(()))) {
            self.connection.has_taken_all();
        }
        self.checked(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.checked(cx, done)
    }
}
