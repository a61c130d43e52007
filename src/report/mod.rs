//! Layer 9: Markdown for people.

mod diff;
mod quality;
pub mod ci;
mod ratchet;
mod release;
mod repro;
mod scores;

pub use diff::{brief, comparisons, diff};
pub use quality::quality;
pub use ratchet::ratchet;
pub use release::{SHOWN_FLIPS, release};
pub use repro::{criteria, curves, repro};
pub use scores::{Texts, decided, evidence, explain, shown_flips, table};

/// Text that does not break a table or list.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
