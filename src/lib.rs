//! day0 decides whether a quantized language model may be published.
