//! A model on a device.

use std::sync::Arc;

use super::super::config::ModelConfig;
use super::super::error::ModelError;
use super::super::graph::Graph;
use super::super::session::{Backend, Session};
use super::place::OnDevice;
use super::session::CudaSession;
use crate::checkpoint::Checkpoint;
use crate::device::cuda::Device;
use crate::ops::cuda::Act;
use crate::ops::kernel_path::ComputeDtype;

/// A loaded model.
pub struct CudaDecoder {
    pub(super) graph: Graph<OnDevice>,
    pub(super) device: Arc<Device>,
    pub(super) act: Act,
    /// Whether generation steps are recorded (`steps`).
    pub(super) records_steps: bool,
}

impl CudaDecoder {
    /// Loads every tensor of the checkpoint to a device. Generation steps are recorded where `records_steps` says so.
    pub fn load(
        checkpoint: &Checkpoint,
        device: &Arc<Device>,
        dtype: ComputeDtype,
        records_steps: bool,
    ) -> Result<Arc<Self>, ModelError> {
        let config = ModelConfig::parse(checkpoint.config())?;
        let act = if dtype == ComputeDtype::Bf16 { Act::Bf16 } else { Act::F32 };
        let place = OnDevice::new(device, act)?;
        let graph = Graph::load(checkpoint, config, dtype, &place)?;
        Ok(Arc::new(Self { graph, device: Arc::clone(device), act, records_steps }))
    }
}

impl Backend for Arc<CudaDecoder> {
    fn config(&self) -> &ModelConfig {
        &self.graph.config
    }

    fn session(&self) -> Box<dyn Session> {
        Box::new(CudaSession::new(self))
    }
}
