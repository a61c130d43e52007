//! Starting, running and stopping the server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use super::backend::Backend;
use super::queue;
use super::routes::{App, router};
use super::text::TextCodec;
use crate::base::clock::unix_seconds;
use crate::base::interrupt;
use crate::record::{Classified, FailureClass};

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Host name or address to listen on.
    pub host: String,
    /// Port; 0 takes any free one.
    pub port: u16,
    /// Key that `/v1` requests must present; `None`: open.
    pub api_key: Option<String>,
    /// Name of the model in requests and answers.
    pub model_name: String,
    /// Where the model came from, shown in `/v1/models`.
    pub root: String,
    /// Requests in flight, queued ones included, beyond which the answer is 503.
    pub max_queued_requests: usize,
    /// How long a shutdown waits for requests in flight.
    pub drain_timeout: Duration,
}

impl ServerOptions {
    /// Options for serving `model_name` on a free local port.
    pub fn local(model_name: &str) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            api_key: None,
            model_name: model_name.to_owned(),
            root: model_name.to_owned(),
            max_queued_requests: 128,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// The server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process listens there.
    #[error("port {port} of {host} is in use")]
    PortInUse {
        /// Host asked for.
        host: String,
        /// Port asked for.
        port: u16,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {host}:{port}")]
    Bind {
        /// Host asked for.
        host: String,
        /// Port asked for.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system refused threads or descriptors.
    #[error("cannot start the server")]
    Runtime {
        /// Why.
        source: std::io::Error,
    },
}

impl Classified for ServeError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::PortInUse { .. } | Self::Bind { .. } => FailureClass::UserConfigError,
            Self::Runtime { .. } => FailureClass::InfraTransient,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::PortInUse { .. } => {
                Some("choose another with --port, or --port 0 for any free one".to_owned())
            }
            Self::Bind { .. } => Some("give an address of this machine with --host".to_owned()),
            Self::Runtime { .. } => None,
        }
    }
}

/// The OpenAI-compatible server.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Listens and serves in the background; requests are answered when this returns.
    pub fn start(
        backend: Arc<dyn Backend>,
        text: Arc<dyn TextCodec>,
        options: ServerOptions,
    ) -> Result<ServerHandle, ServeError> {
        let runtime_error = |source| ServeError::Runtime { source };
        let listener = bind(&options.host, options.port)?;
        let address = listener.local_addr().map_err(runtime_error)?;
        listener.set_nonblocking(true).map_err(runtime_error)?;

        let healthy = Arc::new(AtomicBool::new(true));
        let abandon = Arc::new(AtomicBool::new(false));
        let capacity = options.max_queued_requests.max(1);
        let (jobs, queue) = mpsc::channel(capacity);
        let engine = queue::spawn(
            Arc::clone(&backend),
            Arc::clone(&text),
            queue,
            Arc::clone(&healthy),
            Arc::clone(&abandon),
        )
        .map_err(runtime_error)?;
        let app = Arc::new(App {
            backend,
            text,
            model_name: options.model_name,
            root: options.root,
            api_key: options.api_key.as_deref().map(|k| blake3::hash(k.as_bytes())),
            started: unix_seconds(),
            jobs,
            admitted: Semaphore::new(capacity),
            healthy,
            next_id: AtomicU64::new(0),
            id_prefix: format!("{:016x}", rand::random::<u64>()),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("day0-http")
            .enable_all()
            .build()
            .map_err(runtime_error)?;
        let (stop, stopped) = watch::channel(false);
        let drain_timeout = options.drain_timeout;
        let http = std::thread::Builder::new()
            .name("day0-serve".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, app, stopped, drain_timeout));
                // What outlived the drain is abandoned: the engine after the prompt in hand, handlers at once.
                abandon.store(true, Ordering::Relaxed);
                runtime.shutdown_background();
                // A panic of the engine thread was reported by its own hook.
                let _ = engine.join();
            })
            .map_err(runtime_error)?;
        Ok(ServerHandle { address, stop, http: Mutex::new(Some(http)) })
    }
}

async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    mut stopped: watch::Receiver<bool>,
    drain_timeout: Duration,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let mut drain_from = stopped.clone();
    let graceful = axum::serve(listener, router(app)).with_graceful_shutdown(async move {
        // An error means that the handle is gone, which also ends the service.
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    tokio::select! {
        _ = graceful.into_future() => {}
        () = async {
            let _ = drain_from.wait_for(|stop| *stop).await;
            tokio::time::sleep(drain_timeout).await;
        } => {}
    }
}

fn bind(host: &str, port: u16) -> Result<TcpListener, ServeError> {
    let at = |source| ServeError::Bind { host: host.to_owned(), port, source };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(at)?.collect();
    TcpListener::bind(addresses.as_slice()).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => ServeError::PortInUse { host: host.to_owned(), port },
        _ => at(source),
    })
}

/// A running server. Dropping it shuts the server down.
#[derive(Debug)]
pub struct ServerHandle {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    http: Mutex<Option<JoinHandle<()>>>,
}

impl ServerHandle {
    /// `http://address:port` with the port that was really bound; a server that listens on every address is reached
    /// through the loopback one.
    pub fn url(&self) -> String {
        let mut address = self.address;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        format!("http://{address}")
    }

    /// Serves until SIGTERM or Ctrl-C (with [`interrupt::install`]) or until the server ends on its own, then
    /// drains. Returns the signal.
    pub fn wait(&self) -> Option<i32> {
        loop {
            let signal = interrupt::received();
            if signal.is_some() || self.is_finished() {
                self.shutdown();
                return signal;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops accepting, finishes the requests in flight (for at most the drain time) and frees the port.
    pub fn shutdown(&self) {
        // No receiver means that the server has ended already.
        let _ = self.stop.send(true);
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(http) = http {
            // A panic in there was reported by its own hook; there is nothing left to stop.
            let _ = http.join();
        }
    }

    fn is_finished(&self) -> bool {
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        http.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.shutdown();
    }
}
