//! A model on devices.

use std::sync::Arc;

use super::super::config::ModelConfig;
use super::super::error::ModelError;
use super::super::graph::Graph;
use super::super::session::{Backend, Session};
use super::place::OnDevices;
use super::session::CudaSession;
use crate::checkpoint::Checkpoint;
use crate::device::cuda::Device;
use crate::ops::cuda::Act;
use crate::ops::kernel_path::ComputeDtype;

/// A loaded model on one device.
pub struct CudaDecoder {
    /// Its tensors, which are loaded together with those of the other replicas.
    pub(super) graph: Arc<Graph<OnDevices>>,
    /// Which of the replicas it is.
    pub(super) replica: usize,
    pub(super) device: Arc<Device>,
    pub(super) act: Act,
    /// Whether generation steps are recorded (`steps`).
    pub(super) records_steps: bool,
}

impl CudaDecoder {
    /// Loads every tensor of the checkpoint to devices of one kind: a replica on each. Generation steps are recorded where
    /// `records_steps` says so.
    pub fn load(
        checkpoint: &Checkpoint,
        devices: &[Arc<Device>],
        dtype: ComputeDtype,
        records_steps: bool,
    ) -> Result<Vec<Arc<Self>>, ModelError> {
        let config = ModelConfig::parse(checkpoint.config())?;
        let act = if dtype == ComputeDtype::Bf16 { Act::Bf16 } else { Act::F32 };
        let place = OnDevices::new(devices, act)?;
        let graph = Arc::new(Graph::load(checkpoint, config, dtype, &place)?);
        let replica = |(replica, device): (usize, &Arc<Device>)| {
            let (graph, device) = (Arc::clone(&graph), Arc::clone(device));
            Arc::new(Self { graph, replica, device, act, records_steps })
        };
        Ok(devices.iter().enumerate().map(replica).collect())
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
