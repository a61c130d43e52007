//! The engine: a loaded model, its worker threads and its identity.

use std::sync::{Arc, Mutex};

use crate::base::digest::Digest;
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::model::{Backend, CpuBackend, CudaDecoder, Decoder, ModelConfig, Session};
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::provenance::{GIT_HASH, TOOL_VERSION};
use crate::record::score::{EngineIdentity, ScoreRequest};

use super::batch_limits::BatchLimits;
use super::error::{EngineError, RequestError};
use super::place::EnginePlace;
use super::prefix_cache::PrefixCache;

/// How the engine runs; results do not depend on threads and batch size.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Worker threads.
    pub threads: Threads,
    /// What linear layers multiply; results depend on it, and the kernel path's name says so.
    pub dtype: ComputeDtype,
    /// New rows of one forward pass; a longer request goes through several, as far as the cache has room for its keys
    /// and values.
    pub max_batched_tokens: usize,
    /// Memory of the keys and values that are kept for prompts of later calls.
    pub prefix_cache_bytes: usize,
    /// Whether GPUs record the launches of generation steps to repeat them at once.
    pub records_steps: bool,
}

/// Default of `prefix_cache_bytes`: the header of a few tasks, or the contexts of many requests, of a small model.
const PREFIX_CACHE_BYTES: usize = 256 << 20;

/// Default of `max_batched_tokens`: enough rows for every kernel's full speed; more leave the caches (a 3 M model scores
/// 5 % slower at 4096).
pub const MAX_BATCHED_TOKENS: usize = 1024;

/// Default of `max_batched_tokens` on GPUs, where a pass of few rows takes as long as its launches.
const DEVICE_BATCHED_TOKENS: usize = 16_384;

/// Default of `prefix_cache_bytes` on GPUs.
const DEVICE_PREFIX_CACHE_BYTES: usize = 2 << 30;

impl EngineOptions {
    /// The defaults for a place, in f32.
    pub fn at(threads: Threads, place: &EnginePlace) -> Self {
        let options = Self::new(threads);
        if place.is_cpu() {
            return options;
        }
        Self {
            max_batched_tokens: DEVICE_BATCHED_TOKENS,
            prefix_cache_bytes: DEVICE_PREFIX_CACHE_BYTES,
            ..options
        }
    }

    /// The default batch size on these threads, in f32.
    pub fn new(threads: Threads) -> Self {
        Self {
            threads,
            dtype: ComputeDtype::F32,
            max_batched_tokens: MAX_BATCHED_TOKENS,
            prefix_cache_bytes: PREFIX_CACHE_BYTES,
            records_steps: true,
        }
    }
}

/// A loaded model that scores and generates.
pub struct Engine {
    /// The model on each of its devices.
    pub(super) replicas: Vec<Replica>,
    /// Where it is in memory.
    pub(super) host: Option<CpuBackend>,
    pub(super) max_batched_tokens: usize,
    identity: EngineIdentity,
}

/// The cache of a session.
pub(super) type SessionCache = PrefixCache<Box<dyn Session>>;

/// The model on one device, with what former calls left there.
pub(super) struct Replica {
    pub backend: Box<dyn Backend>,
    pub prefixes: Mutex<SessionCache>,
    pub limits: BatchLimits,
}

impl Engine {
    /// Loads a checkpoint, quantized or not, for the best kernels of this machine.
    pub fn load(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self, EngineError> {
        Self::load_with(checkpoint, options, KernelPath::best(options.dtype))
    }

    /// Loads a checkpoint for the given kernels, which decide what linear layers multiply.
    pub fn load_with(
        checkpoint: &Checkpoint,
        options: &EngineOptions,
        path: KernelPath,
    ) -> Result<Self, EngineError> {
        let count = options.threads.count.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("engine-{i}"))
            .build()
            .map_err(|source| EngineError::Threads { count, source })?;
        let decoder = Arc::new(pool.install(|| Decoder::load(checkpoint, path))?);
        let host = CpuBackend { decoder, pool: Arc::new(pool) };
        let place = ("cpu".to_owned(), path.name().to_owned());
        let engine = Self::new(checkpoint, options, vec![Box::new(host.clone())], place)?;
        Ok(Self { host: Some(host), ..engine })
    }

    /// Loads a checkpoint where it is to be computed: to each GPU, or as [`Self::load`].
    pub fn load_at(
        checkpoint: &Checkpoint,
        options: &EngineOptions,
        place: &EnginePlace,
    ) -> Result<Self, EngineError> {
        if place.is_cpu() {
            return Self::load(checkpoint, options);
        }
        let loaded = CudaDecoder::load(checkpoint, place.devices(), options.dtype, options.records_steps)?;
        let backends = loaded.into_iter().map(|decoder| Box::new(decoder) as Box<dyn Backend>).collect();
        Self::new(checkpoint, options, backends, (place.device(), place.kernel_path(options.dtype)))
    }

    /// An engine of a model that was loaded, on its device by its kernels.
    fn new(
        checkpoint: &Checkpoint,
        options: &EngineOptions,
        backends: Vec<Box<dyn Backend>>,
        (device, kernel_path): (String, String),
    ) -> Result<Self, EngineError> {
        let digest = checkpoint.digest().map_err(crate::model::ModelError::from)?;
        let identity = EngineIdentity {
            engine: format!("day0 {TOOL_VERSION}+{GIT_HASH}"),
            device,
            kernel_path,
            checkpoint_digest: Some(digest),
            identity_proven: true,
            tokenizer_digest: None,
        };
        let replica = |backend: Box<dyn Backend>| {
            let prefixes = Mutex::new(PrefixCache::new(backend.session(), options.prefix_cache_bytes));
            let limits = BatchLimits::new(options.max_batched_tokens.max(1), options.prefix_cache_bytes);
            Replica { backend, prefixes, limits }
        };
        Ok(Self {
            replicas: backends.into_iter().map(replica).collect(),
            host: None,
            max_batched_tokens: options.max_batched_tokens.max(1),
            identity,
        })
    }

    /// An empty cache of the allowed size.
    pub(super) fn new_prefix_cache(replica: &Replica) -> SessionCache {
        PrefixCache::new(replica.backend.session(), replica.limits.cache_bytes())
    }

    /// Drops what former calls left on a device, unless a call uses it. Whether there was anything.
    pub(super) fn forget_prefixes(replica: &Replica) -> bool {
        let Ok(mut cache) = replica.prefixes.try_lock() else { return false };
        let is_held = cache.held_bytes().is_some();
        if is_held {
            *cache = Self::new_prefix_cache(replica);
        }
        is_held
    }

    /// Records the tokenizer that made the requests.
    #[must_use]
    pub fn with_tokenizer_digest(mut self, digest: Digest) -> Self {
        self.identity.tokenizer_digest = Some(digest);
        self
    }

    /// What answers.
    pub fn identity(&self) -> &EngineIdentity {
        &self.identity
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.replicas[0].backend.config()
    }

    /// The model in memory, for checks of single layers; `None` where it is on a device.
    pub fn decoder(&self) -> Option<&Decoder> {
        self.host.as_ref().map(|host| host.decoder.as_ref())
    }

    /// Most input tokens of a request: `max_position_embeddings`. A scored request may be one longer.
    pub fn max_len(&self) -> usize {
        self.config().max_position_embeddings
    }

    /// New rows that one forward pass of every device takes together.
    pub fn pass_rows(&self) -> usize {
        self.max_batched_tokens * self.replicas.len()
    }

    /// V.
    pub fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    /// Whether [`Engine::score`] takes this request.
    pub fn check(&self, request: &ScoreRequest) -> Result<(), RequestError> {
        let (context_len, len) = (request.context_len, request.tokens.len());
        if len == 0 {
            return Err(RequestError::Empty);
        }
        if context_len == 0 || context_len >= len {
            return Err(RequestError::Context { context_len, len });
        }
        self.check_tokens(&request.tokens, len - 1)
    }

    /// Whether all tokens exist and `inputs` of them fit the model.
    pub(super) fn check_tokens(&self, tokens: &[u32], inputs: usize) -> Result<(), RequestError> {
        let vocab_size = self.vocab_size();
        if let Some(position) = tokens.iter().position(|t| *t as usize >= vocab_size) {
            return Err(RequestError::Token { token: tokens[position], position, vocab_size });
        }
        if inputs > self.max_len() {
            return Err(RequestError::TooLong { inputs, max_len: self.max_len() });
        }
        Ok(())
    }
}
