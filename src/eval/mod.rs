//! Layer 7: requests to log-likelihoods to metrics to sample files.
