//! Layer 5: work graph, append-only ledger, leases, executors. Knows only units.
