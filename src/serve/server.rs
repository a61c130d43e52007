//! Starting, running and stopping the server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::admission::Admission;
use super::backend::Backend;
use super::connections::{self, Patience};
use super::metrics::Metrics;
use super::request::Limits;
use super::routes::{App, router};
use super::text::TextCodec;
use super::worker::{self, Flags};
use crate::base::clock::unix_seconds;
use crate::base::interrupt;
use crate::engine::GeneratorOptions;
use crate::record::{Classified, FailureClass};

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Host name or address to listen on.
    pub host: String,
    /// Port; 0 takes any free one.
    pub port: u16,
    /// Keys of which `/v1` requests must present one; none: open.
    pub api_keys: Vec<String>,
    /// Name of the model in requests and answers.
    pub model_name: String,
    /// Where the model came from, shown in `/v1/models`.
    pub root: String,
    /// How much is generated at once, and how long a sequence may be.
    pub generation: GeneratorOptions,
    /// Requests in flight, queued ones included, beyond which the answer is 503.
    pub max_queued_requests: usize,
    /// Requests in flight of one client (its key, else its address) beyond which the answer is 429.
    pub max_requests_per_client: Option<usize>,
    /// A request that is not answered by then is given up with 503.
    pub request_timeout: Duration,
    /// A request body that has not arrived by then gets 408; a connection without a whole head by then is closed.
    pub body_timeout: Duration,
    /// A client that takes nothing of its answer for so long loses the answer and its connection.
    pub write_timeout: Duration,
    /// Origins whose pages may read answers; `*` means all.
    pub cors_origins: Vec<String>,
    /// How long a shutdown waits for requests in flight.
    pub drain_timeout: Duration,
}

impl ServerOptions {
    /// Options for serving `model_name` on a free local port.
    pub fn local(model_name: &str) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            api_keys: Vec::new(),
            model_name: model_name.to_owned(),
            root: model_name.to_owned(),
            generation: GeneratorOptions::default(),
            max_queued_requests: 128,
            max_requests_per_client: None,
            request_timeout: Duration::from_secs(600),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            cors_origins: Vec::new(),
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

        let (flags, metrics) = (Arc::new(Flags::default()), Arc::new(Metrics::default()));
        let capacity = options.max_queued_requests.max(1);
        let (jobs, queue) = mpsc::channel(capacity);
        let engine = worker::spawn(
            Arc::clone(&backend),
            Arc::clone(&text),
            options.generation,
            queue,
            Arc::clone(&metrics),
            Arc::clone(&flags),
        )
        .map_err(runtime_error)?;
        let longest = backend.max_len();
        let limits = Limits {
            max_len: options.generation.max_len.map_or(longest, |most| most.min(longest)),
            vocab_size: backend.vocab_size(),
        };
        let app = Arc::new(App {
            backend,
            limits,
            text,
            model_name: options.model_name,
            root: options.root,
            api_keys: options.api_keys.iter().map(|k| blake3::hash(k.as_bytes())).collect(),
            cors_origins: options.cors_origins,
            started: unix_seconds(),
            request_timeout: options.request_timeout,
            jobs,
            admission: Admission::new(capacity, options.max_requests_per_client, options.body_timeout),
            metrics,
            flags: Arc::clone(&flags),
            next_number: AtomicU64::new(0),
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
        let patience = Patience { head: options.body_timeout, write: options.write_timeout };
        let http = std::thread::Builder::new()
            .name("day0-serve".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, app, stopped, patience, drain_timeout));
                // What outlived the drain is abandoned: the engine after the call in hand, handlers at once.
                flags.abandon.store(true, Ordering::Relaxed);
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
    patience: Patience,
    drain_timeout: Duration,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let flags = Arc::clone(&app.flags);
    let served = connections::serve(listener, router(app), stopped.clone(), patience);
    tokio::select! {
        () = served => {}
        () = async {
            // An error means that the handle is gone, which also ends the service.
            let _ = stopped.wait_for(|stop| *stop).await;
            flags.draining.store(true, Ordering::Relaxed);
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
