//! Connections: how many there may be, how long one may be silent, and how they end when the server does.
//!
//! `axum::serve` sets no timer, so that a client that never finishes its headers stays for ever; hence this loop.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};

use super::write_deadline::WriteDeadline;

/// Files that are left for everything but connections.
const OTHER_FILES: u64 = 128;
/// Connections however many files there may be.
const MAX_CONNECTIONS: u64 = 16 * 1024;
/// Wait after a failure to accept that time may heal, such as no free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a connection may keep the server waiting before it is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For headers, and between two requests.
    pub head: Duration,
    /// For the client to take more of an answer.
    pub write: Duration,
}

/// Serves `router` until `stopped`, then until the last request is answered.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    stopped: watch::Receiver<bool>,
    patience: Patience,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience.head);
    let room = Arc::new(Semaphore::new(max_connections()));
    // Every connection holds a sender; nothing is ever sent.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let mut until = stopped.clone();
        let (permit, accepted) = tokio::select! {
            next = next => next,
            // An error means that the handle is gone, which also ends the service.
            _ = until.wait_for(|stop| *stop) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_client(&error) => continue,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (http, router, stopped, open) = (http.clone(), router.clone(), stopped.clone(), open.clone());
        tokio::spawn(async move {
            // Chunks of a stream go out as they come; without it they may be a little late, no more.
            let _ = stream.set_nodelay(true);
            connection(&http, router, WriteDeadline::new(stream, patience.write), address, stopped).await;
            drop((permit, open));
        });
    }
    drop((listener, open));
    // A request that has begun is answered; idle connections close at once.
    let _ = all_closed.recv().await;
}

async fn connection(
    http: &http1::Builder,
    router: Router,
    stream: WriteDeadline<TcpStream>,
    address: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        router.call(request)
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A connection that fails has a client that is gone or talks nonsense, and was answered if it could be.
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Whether accepting failed because of the one that connected.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// As many as there are descriptors for: one more would keep the server from opening anything.
fn max_connections() -> usize {
    #[cfg(unix)]
    let files = {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `getrlimit` fills the struct it is given, which outlives the call.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
        if known { limit.rlim_cur } else { 1024 }
    };
    #[cfg(not(unix))]
    let files = MAX_CONNECTIONS + OTHER_FILES;
    files.saturating_sub(OTHER_FILES).clamp(64, MAX_CONNECTIONS) as usize
}
