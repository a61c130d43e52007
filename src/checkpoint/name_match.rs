//! Names of modules against `targets` and `ignore` entries, as compressed-tensors and vLLM match them.
//!
//! An entry is an exact module name, `re:` with a pattern that is anchored at the start and not at the end (Python's
//! `re.match`), or a class name. Source: compressed-tensors 0.19, `utils/match.py` (`match_name`, `match_targets`).

use std::collections::HashSet;

use regex::RegexSet;

/// The class of every quantizable module here.
pub const LINEAR: &str = "Linear";

/// A list of entries, compiled; how long a look-up takes hardly depends on their number.
#[derive(Debug, Clone, Default)]
pub struct NameMatcher {
    exact: HashSet<String>,
    patterns: RegexSet,
    linear: bool,
}

/// How specific a match is; the most specific wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MatchLevel {
    /// By class name.
    Class,
    /// By pattern.
    Pattern,
    /// By exact name.
    Exact,
}

/// A `re:` entry that does not compile.
#[derive(Debug, thiserror::Error)]
#[error("'{entry}' is no usable pattern")]
pub struct PatternError {
    /// The entry.
    pub entry: String,
    /// Why. Look-around and back-references, which Python has, are not supported.
    #[source]
    pub source: Box<regex::Error>,
}

impl NameMatcher {
    /// Compiles a list of entries.
    pub fn new<S: AsRef<str>>(entries: &[S]) -> Result<Self, PatternError> {
        let mut matcher = Self::default();
        let mut patterns = Vec::new();
        for entry in entries.iter().map(AsRef::as_ref) {
            if let Some(pattern) = entry.strip_prefix("re:") {
                let pattern = format!("^(?:{pattern})");
                // Alone first, so that an error names its entry.
                RegexSet::new([&pattern])
                    .map_err(|e| PatternError { entry: entry.to_owned(), source: Box::new(e) })?;
                patterns.push(pattern);
            } else {
                matcher.linear |= entry == LINEAR;
                matcher.exact.insert(entry.to_owned());
            }
        }
        let all = patterns.len();
        matcher.patterns = RegexSet::new(patterns).map_err(|e| PatternError {
            entry: format!("all {all} patterns together"),
            source: Box::new(e),
        })?;
        Ok(matcher)
    }

    /// How the linear module of this name matches, if it does.
    pub fn level(&self, module: &str) -> Option<MatchLevel> {
        if self.exact.contains(module) {
            Some(MatchLevel::Exact)
        } else if self.patterns.is_match(module) {
            Some(MatchLevel::Pattern)
        } else {
            self.linear.then_some(MatchLevel::Class)
        }
    }

    /// Whether the linear module of this name matches at all.
    pub fn matches(&self, module: &str) -> bool {
        self.level(module).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let matcher = NameMatcher::new(&["lm_head", "re:.*self_attn", "re:model\\.layers\\.0$"]).unwrap();
        assert_eq!(matcher.level("lm_head"), Some(MatchLevel::Exact));
        assert_eq!(matcher.level("lm_head.x"), None);
        assert_eq!(matcher.level("model.layers.3.self_attn.q_proj"), Some(MatchLevel::Pattern));
        assert_eq!(matcher.level("model.layers.0"), Some(MatchLevel::Pattern));
        assert_eq!(matcher.level("model.layers.0.mlp"), None);
        assert_eq!(matcher.level("x.model.layers.0"), None, "anchored at the start");
        assert_eq!(NameMatcher::new(&["Linear"]).unwrap().level("a"), Some(MatchLevel::Class));
        let either = NameMatcher::new(&["re:a|b"]).unwrap();
        assert!(either.matches("bc") && !either.matches("cb"));
    }

    #[test]
    fn bad_pattern_is_named() {
        let error = NameMatcher::new(&["re:("]).unwrap_err();
        assert_eq!(error.entry, "re:(");
    }
}
