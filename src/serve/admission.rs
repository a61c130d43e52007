//! Who may come in: requests at once in all and of one client, and the memory of bodies being read. What is too much is
//! refused at once, which keeps the time in the queue bounded.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Largest request body in bytes (as vLLM's Rust front end).
const MAX_BODY_BYTES: usize = 32 << 20;
/// Memory of all bodies that are read or parsed, in KiB.
const BODY_MEMORY_KIB: usize = 256 << 10;

/// Whom requests are counted for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// The holder of the API key with this number.
    Key(usize),
    /// Whoever connects from this address.
    Address(IpAddr),
}

/// Requests by client.
type InFlight = Mutex<HashMap<Client, usize>>;

/// The limits and what is in use.
#[derive(Debug)]
pub(super) struct Admission {
    requests: Arc<Semaphore>,
    body_kib: Arc<Semaphore>,
    max_per_client: Option<usize>,
    body_timeout: Duration,
    clients: Arc<InFlight>,
}

/// An admitted request, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    _request: OwnedSemaphorePermit,
    client: Option<(Arc<InFlight>, Client)>,
}

impl Ticket {
    /// The last bytes of the answer, which hold the request's place until they are on their way.
    pub fn until_written(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Held { bytes, _ticket: self })
    }
}

/// Bytes to be written, and the place of their request.
struct Held {
    bytes: Vec<u8>,
    _ticket: Ticket,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body and its share of the memory.
pub(super) struct ReadBody {
    pub bytes: Vec<u8>,
    /// Given back when the body is dropped.
    memory: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub fn new(max_requests: usize, max_per_client: Option<usize>, body_timeout: Duration) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(max_requests)),
            body_kib: Arc::new(Semaphore::new(BODY_MEMORY_KIB)),
            max_per_client,
            body_timeout,
            clients: Arc::default(),
        }
    }

    /// 429 when the client has too many requests in flight, 503 when the server has.
    pub fn admit(&self, client: Option<Client>) -> Result<Ticket, ApiError> {
        let request = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| ApiError::unavailable("The server has too many requests in flight; try again."))?;
        let mut ticket = Ticket { _request: request, client: None };
        if let (Some(most), Some(client)) = (self.max_per_client, client) {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            let count = clients.entry(client.clone()).or_default();
            if *count >= most {
                let message =
                    format!("This client has {most} requests in flight, the most it may have; try again.");
                return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message));
            }
            *count += 1;
            ticket.client = Some((Arc::clone(&self.clients), client));
        }
        Ok(ticket)
    }

    /// The whole body, bounded in size and time.
    pub async fn read(&self, body: Body) -> Result<ReadBody, ApiError> {
        // A declared length is judged before anything is read.
        if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(too_large());
        }
        let timed_out =
            |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time.");
        tokio::time::timeout(self.body_timeout, self.collect(body)).await.map_err(timed_out)?
    }

    async fn collect(&self, mut body: Body) -> Result<ReadBody, ApiError> {
        let mut read = ReadBody { bytes: Vec::new(), memory: None };
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|_| ApiError::invalid("The request body was cut short."))?;
            let Ok(data) = frame.into_data() else { continue };
            if read.bytes.len() + data.len() > MAX_BODY_BYTES {
                return Err(too_large());
            }
            let more = (read.bytes.len() + data.len()).div_ceil(1024) - read.bytes.len().div_ceil(1024);
            let permit = Arc::clone(&self.body_kib).try_acquire_many_owned(more as u32).map_err(|_| {
                ApiError::unavailable("The server is reading too many large bodies; try again.")
            })?;
            match &mut read.memory {
                Some(memory) => memory.merge(permit),
                none => *none = Some(permit),
            }
            read.bytes.extend_from_slice(&data);
        }
        Ok(read)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some((clients, client)) = self.client.take() else { return };
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

fn too_large() -> ApiError {
    let message = format!("The request body is larger than {MAX_BODY_BYTES} bytes.");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}
