//! Layer 6: the OpenAI-compatible server.
