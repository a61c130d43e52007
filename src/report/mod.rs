//! Layer 9: Markdown for people.

mod release;

pub use release::release;
