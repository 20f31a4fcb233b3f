//! Listens for connections: like actix-web's own `HttpServer`, but registers each connection with [`Connections`].

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{HttpService, Protocol, error::DispatchError};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    Error,
    body::MessageBody,
    dev::{AppConfig, Extensions, Response},
};
use rustls::ServerConfig;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Connections, HEAD_TIMEOUT, KEEP_ALIVE, http_stream::HttpStream, socket::Socket};
use crate::answers::send::PIECE;

/// The longest that a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest that a client may take to close its side of a connection.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that a stopping server waits for running requests.
const GRACE: Duration = Duration::from_secs(30);

/// The most connections that wait to be accepted. The kernel drops further ones, and their clients retry after 1 s, 2
/// s, 4 s and so on.
const BACKLOG: u32 = 4096;

/// The send buffer of a socket, in bytes, for an answer that its client does not receive. The kernel uses twice as much
/// memory for it. Its default would grow up to 4 MiB for each connection.
const SEND_BUFFER: u32 = 64 * 1024;

/// Binds the listener. Accepted sockets inherit its options.
pub(crate) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Serves with one app for each worker, until the handle stops the server.
pub(crate) fn serve<F, I, S, B>(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    (connections, accepted): (Arc<Connections>, usize),
    app: F,
) -> io::Result<actix_server::Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, actix_http::Request>,
    S: ServiceFactory<actix_http::Request, Config = AppConfig> + 'static,
    S::Error: Into<Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<actix_http::Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let workers = std::thread::available_parallelism().map_or(2, Into::into);
    let builder = actix_server::Server::build()
        .workers(workers)
        // The caller decides when the server stops: see `Server::run_until_stopped`.
        .disable_signals()
        .shutdown_timeout(GRACE.as_secs())
        .max_concurrent_connections((accepted / workers).max(1));
    let stopping = builder.graceful_shutdown_signal();
    let tls = tls.map(|mut config| {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    let builder = builder.listen("keypool", listener, move || {
        let (stopping, connections, tls) = (stopping.clone(), Arc::clone(&connections), tls.clone());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .client_request_timeout(HEAD_TIMEOUT)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .keep_alive(KEEP_ALIVE)
            // A client that closes its side has disconnected, so its wait for messages ends.
            .h1_allow_half_closed(false)
            .h1_write_buffer_size(PIECE)
            .on_connect_ext(|stream: &HttpStream, data: &mut Extensions| {
                data.insert(Rc::clone(stream.connection()));
            })
            .finish(map_config(app().into_factory().map_err(|error| error.into().error_response()), |()| {
                AppConfig::default()
            }));
        fn_service(move |stream| accepted_stream(stream, Arc::clone(&connections), tls.clone())).and_then(http)
    })?;
    Ok(builder.run())
}

async fn accepted_stream(
    stream: TcpStream,
    connections: Arc<Connections>,
    tls: Option<TlsAcceptor>,
) -> Result<(HttpStream, Protocol, Option<SocketAddr>), DispatchError> {
    let peer = stream.peer_addr().ok();
    let connection = connections.open();
    let socket = Socket::new(stream, Rc::clone(&connection));
    let stream = match tls {
        None => HttpStream::new(Box::new(socket), connection),
        Some(tls) => {
            let agreed = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await;
            HttpStream::new(Box::new(agreed.map_err(io::Error::from)??), connection)
        }
    };
    Ok((stream, Protocol::Http1, peer))
}
