//! Keys and values of the beginnings of prompts, kept across batches and calls within a budget of bytes.
//!
//! They lie in pages of 32 positions. A full page is known by the page before it and by its tokens, so a prompt finds the
//! longest chain of pages that it begins with. Where a page is needed and none is free, the one that was not used for the
//! longest time goes, the end of a chain before its beginning. A row's keys and values do not depend on the batch that
//! computed them, so taking them from here changes no bits.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::pages::{PAGE, Page, PagePool};
use crate::model::{KvCache, Slots, Stored};

/// The cache of one engine.
pub(super) struct PrefixCache<S = KvCache> {
    pub kv: S,
    pool: PagePool,
    known: HashMap<Key, Known>,
    clock: u64,
}

/// A full page: its tokens after those of the page before it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    before: Option<usize>,
    /// Whether all positions are rotated as in long inputs.
    long: bool,
    tokens: [u32; PAGE],
}

struct Known {
    page: usize,
    /// Place in its chain.
    depth: usize,
    last_used: u64,
}

impl<S: Slots> PrefixCache<S> {
    /// An empty cache of at most `bytes`, at least one page.
    pub fn new(kv: S, bytes: usize) -> Self {
        let capacity = (bytes / (PAGE * kv.slot_bytes()).max(1)).max(1);
        Self { kv, pool: PagePool::new(capacity), known: HashMap::new(), clock: 0 }
    }

    /// Memory of the pages in use; `None` as long as nobody looked for any, so that nothing was computed with the session.
    pub fn held_bytes(&self) -> Option<usize> {
        (self.clock > 0).then(|| self.pool.used() * PAGE * self.kv.slot_bytes())
    }

    /// The full pages that `tokens` begin with; they stay until they are released.
    pub fn find(&mut self, long: bool, tokens: &[u32]) -> Vec<Page> {
        self.clock += 1;
        let mut pages: Vec<Page> = Vec::new();
        for tokens in tokens.as_chunks::<PAGE>().0 {
            let key = Key { before: pages.last().map(|p| p.index), long, tokens: *tokens };
            let Some(known) = self.known.get_mut(&key) else { break };
            known.last_used = self.clock;
            pages.push(Page { index: known.page, len: PAGE });
        }
        self.pool.share(&pages);
        pages
    }

    /// Pages are no longer needed by whoever found or kept them.
    pub fn release(&mut self, pages: &[Page]) {
        self.pool.release(pages);
    }

    /// Pages for the path `tokens`, whose first `cached` positions lie in `pages`. Returns them and the rows to store, as
    /// offsets from position `cached` on; fewer positions where memory runs out. They stay until they are released.
    pub fn keep(
        &mut self,
        long: bool,
        tokens: &[u32],
        pages: &[Page],
        cached: usize,
    ) -> (Vec<Page>, Vec<Stored>) {
        self.clock += 1;
        let whole = cached / PAGE;
        let mut kept = pages[..whole].to_vec();
        self.pool.share(&kept);
        let mut stored = Vec::new();
        while kept.len() * PAGE < tokens.len() {
            let first = kept.len() * PAGE;
            let len = PAGE.min(tokens.len() - first);
            let Some(index) = self.take() else { break };
            let old = cached.saturating_sub(first).min(len);
            if old > 0 {
                self.kv.copy(pages[whole].index * PAGE, index * PAGE, old);
            }
            if len > old {
                let rows = first + old - cached..first + len - cached;
                stored.push(Stored { rows, first_slot: index * PAGE + old });
            }
            kept.push(Page { index, len });
        }
        self.learn(long, tokens, &kept);
        (kept, stored)
    }

    /// Pages that [`Self::keep`] can still take.
    pub fn room(&self) -> usize {
        self.pool.available() + self.known.values().filter(|k| self.pool.is_exclusive(k.page)).count()
    }

    /// Makes the full pages of a path known.
    fn learn(&mut self, long: bool, tokens: &[u32], pages: &[Page]) {
        let mut before = None;
        for (depth, (page, tokens)) in pages.iter().zip(tokens.as_chunks::<PAGE>().0).enumerate() {
            let key = Key { before, long, tokens: *tokens };
            if let Some(known) = self.known.get_mut(&key) {
                known.last_used = self.clock;
                if known.page != page.index {
                    // The same tokens in another page: what follows is known after that one.
                    return;
                }
            } else {
                self.known.insert(key, Known { page: page.index, depth, last_used: self.clock });
                self.pool.share(std::slice::from_ref(page));
            }
            before = Some(page.index);
        }
    }

    /// A free page, perhaps one that nobody uses any more.
    fn take(&mut self) -> Option<usize> {
        if self.pool.available() == 0 {
            let unused = self.known.iter().filter(|(_, k)| self.pool.is_exclusive(k.page));
            let (key, page) = unused
                .min_by_key(|(_, k)| (k.last_used, Reverse(k.depth)))
                .map(|(key, k)| (key.clone(), Page { index: k.page, len: PAGE }))?;
            self.known.remove(&key);
            self.pool.release(&[page]);
        }
        self.pool.take()
    }
}
