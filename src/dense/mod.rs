//! Layer 3: a checkpoint's tensors as dense floats, whatever they are stored as.
//!
//! [`DenseSource`] is what quantizer and verifier read a source through. It presents every weight under the name and
//! shape it would have in an unquantized checkpoint with one tensor per expert: codes and scales of compressed-tensors,
//! ModelOpt and DeepSeek-style FP8 become one weight in the model's float type, and three-dimensional expert tensors
//! become `experts.{i}.{gate_proj,up_proj,down_proj}`. Nothing is converted before it is read, and any range of a
//! tensor's dense bytes can be read alone, so memory does not grow with the model.
//!
//! ```text
//! let source = DenseSource::open(checkpoint)?;          // headers only
//! for tensor in source.shard(0) {                       // in the order of the source's data
//!     let row = tensor.row_bytes() as u64;
//!     source.read(tensor, 0..64 * row, &mut tile)?;     // any thread, any range, in any order
//! }                                                     // source.location(tensor): bytes that lie in a file as they are
//! ```

mod error;
mod experts;
mod quantized;
mod read;
mod shapes;
mod source;
#[cfg(test)]
pub(crate) mod test_checkpoint;

pub use error::DenseError;
pub use quantized::declared_dtype;
pub use source::{DenseSource, DenseTensor};
