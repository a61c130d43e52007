//! Layer 9: Markdown for people.

mod release;
mod scores;

pub use release::{SHOWN_FLIPS, release};
pub use scores::{Texts, decided, evidence, explain, shown_flips, table};

/// Text that does not break a table or list.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
