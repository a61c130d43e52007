//! "Did you mean …?"

/// The candidate most like `word`, if any is close enough to be a likely typo (Jaro-Winkler ≥ 0.75).
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(similarity, _)| *similarity >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// `did you mean 'x'?` for the closest candidate, else `one of: a, b, c`.
pub fn suggestion(word: &str, candidates: &[&str]) -> String {
    closest(word, candidates.iter().copied())
        .map_or_else(|| format!("one of: {}", candidates.join(", ")), |c| format!("did you mean '{c}'?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_typos_and_only_typos() {
        assert_eq!(closest("group_sise", ["group_size", "strategy"]), Some("group_size"));
        assert_eq!(closest("zzz", ["group_size", "strategy"]), None);
    }
}
