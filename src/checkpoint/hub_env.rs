//! What the environment says about the hub: address, cache, token, and whether it may be asked at all.

use std::path::PathBuf;

use crate::base::env_vars;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, read once.
#[derive(Debug, Clone)]
pub struct HubEnv {
    /// Address of the hub, without a trailing slash.
    pub endpoint: String,
    /// The hub's cache of files, `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// Access token.
    pub token: Option<String>,
    /// Whether connections are forbidden.
    pub offline: bool,
}

impl HubEnv {
    /// Reads the environment. Without HF_TOKEN the token file of `huggingface-cli login` is used, as everywhere.
    pub fn from_env() -> Self {
        let user = || env_vars::get_os(env_vars::HOME).map_or_else(std::env::temp_dir, PathBuf::from);
        let home = env_vars::get_os(env_vars::HF_HOME)
            .map_or_else(|| user().join(".cache/huggingface"), PathBuf::from);
        let endpoint = env_vars::get(env_vars::HF_ENDPOINT).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let token = env_vars::get(env_vars::HF_TOKEN)
            .or_else(|| std::fs::read_to_string(home.join("token")).ok())
            .map(|t| t.trim().to_owned())
            .filter(|t| !t.is_empty());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: home.join("hub"),
            token,
            offline: env_vars::is_true(env_vars::HF_HUB_OFFLINE),
        }
    }

    /// The token, if the address belongs to the hub: it is never sent elsewhere.
    pub fn token_for(&self, url: &str) -> Option<&str> {
        let rest = url.strip_prefix(&self.endpoint)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(self.token.as_deref())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_stays_with_the_hub() {
        let env = HubEnv {
            endpoint: "https://hub.example".to_owned(),
            cache: PathBuf::new(),
            token: Some("t".to_owned()),
            offline: false,
        };
        assert_eq!(env.token_for("https://hub.example/org/name"), Some("t"));
        assert_eq!(env.token_for("https://hub.example.evil.com/org/name"), None);
        assert_eq!(env.token_for("https://other.example/org/name"), None);
    }
}
