//! What `--device` says: `auto`, `cpu`, `cuda` or `cuda:0,1`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CudaError, Device};

/// Where work is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// On every GPU that is usable, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On these GPUs, all visible ones where none is named; if one is unusable, nowhere.
    Cuda(Vec<usize>),
}

/// A value of `--device` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no device: expected auto, cpu, cuda, or cuda:N[,M…] without repetition")]
pub struct DeviceChoiceError(String);

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceChoiceError;

    fn try_from(text: String) -> Result<Self, DeviceChoiceError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceChoiceError;

    fn from_str(text: &str) -> Result<Self, DeviceChoiceError> {
        let wrong = || DeviceChoiceError(text.to_owned());
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(Vec::new())),
            _ => {}
        }
        let list = text.strip_prefix("cuda:").ok_or_else(wrong)?;
        let mut ordinals: Vec<usize> = Vec::new();
        for part in list.split(',') {
            // Not "+1", which usize accepts.
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let ordinal = digits.then(|| part.parse().ok()).flatten().ok_or_else(wrong)?;
            if ordinals.contains(&ordinal) {
                return Err(wrong());
            }
            ordinals.push(ordinal);
        }
        Ok(Self::Cuda(ordinals))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinals) => {
                let list: Vec<String> = ordinals.iter().map(usize::to_string).collect();
                write!(f, "cuda{}{}", if list.is_empty() { "" } else { ":" }, list.join(","))
            }
        }
    }
}

impl DeviceChoice {
    /// Opens the devices; none means the CPU. `auto` falls back to the CPU and says why in the second value unless there
    /// simply is no GPU.
    pub fn open(&self) -> Result<(Vec<Arc<Device>>, Option<CudaError>), CudaError> {
        let ordinals = match self {
            Self::Cpu => return Ok((Vec::new(), None)),
            Self::Auto => &[],
            Self::Cuda(ordinals) => ordinals.as_slice(),
        };
        match (open_all(ordinals), self) {
            (Ok(devices), _) => Ok((devices, None)),
            (Err(CudaError::NoDriver | CudaError::NoDevice { .. }), Self::Auto) => Ok((Vec::new(), None)),
            (Err(error), Self::Auto) => Ok((Vec::new(), Some(error))),
            (Err(error), _) => Err(error),
        }
    }
}

fn open_all(ordinals: &[usize]) -> Result<Vec<Arc<Device>>, CudaError> {
    if ordinals.is_empty() {
        return (0..Device::count()?).map(Device::open).collect();
    }
    ordinals.iter().map(|ordinal| Device::open(*ordinal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let parse = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parse("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(parse("cuda"), Ok(DeviceChoice::Cuda(vec![])));
        assert_eq!(parse("cuda:2,0"), Ok(DeviceChoice::Cuda(vec![2, 0])));
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:1,",
            "cuda:-1",
            "cuda:+1",
            "cuda:0,0",
            "CUDA",
            "cuda:99999999999999999999",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for text in ["auto", "cpu", "cuda", "cuda:0,1"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_cpu_needs_no_driver() {
        assert!(DeviceChoice::Cpu.open().unwrap().0.is_empty());
    }
}
