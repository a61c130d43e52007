//! Layer 3: recipes: versioned YAML, validated into typed schemes.
