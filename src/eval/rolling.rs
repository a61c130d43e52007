//! Windows over a text that is longer than the model's input.
//!
//! Source: lm-eval 0.4.13, `utils.py` (`get_rolling_token_windows` with context_len = 1, `make_disjoint_window`):
//! the first window predicts W tokens from the prefix token; later ones predict W tokens from one token of context;
//! the last one reaches back so that its input is full, and scores only what is new.

use crate::record::score::ScoreRequest;

/// Requests that score each of `tokens` once, with W = `max_len`.
pub(super) fn windows(tokens: &[u32], prefix: u32, max_len: usize) -> Vec<ScoreRequest> {
    let first = max_len.min(tokens.len());
    if first == 0 {
        return Vec::new();
    }
    let head = [&[prefix], &tokens[..first]].concat();
    let mut requests = vec![ScoreRequest { tokens: head, context_len: 1 }];
    let mut predicted = first;
    while predicted < tokens.len() {
        let new = (tokens.len() - predicted).min(max_len);
        let end = predicted + new;
        let start = end - max_len - 1;
        requests.push(ScoreRequest { tokens: tokens[start..end].to_vec(), context_len: max_len + 1 - new });
        predicted = end;
    }
    requests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reference: the example in lm-eval's `loglikelihood_rolling` docstring.
    #[test]
    fn docstring_example() {
        let tokens: Vec<u32> = (0..10).collect();
        let split: Vec<(Vec<u32>, Vec<u32>)> = windows(&tokens, 99, 4)
            .into_iter()
            .map(|r| (r.tokens[..r.tokens.len() - 1].to_vec(), r.tokens[r.context_len..].to_vec()))
            .collect();
        assert_eq!(
            split,
            [
                (vec![99, 0, 1, 2], vec![0, 1, 2, 3]),
                (vec![3, 4, 5, 6], vec![4, 5, 6, 7]),
                (vec![5, 6, 7, 8], vec![8, 9]),
            ]
        );
        assert!(windows(&[], 99, 4).is_empty());
    }

    proptest! {
        #[test]
        fn each_token_is_scored_once(count in 0usize..60, max_len in 1usize..12) {
            let tokens: Vec<u32> = (0..count as u32).collect();
            let requests = windows(&tokens, 1000, max_len);
            let scored: Vec<u32> = requests.iter().flat_map(|r| r.tokens[r.context_len..].to_vec()).collect();
            prop_assert_eq!(scored, tokens);
            for r in &requests {
                prop_assert!(r.context_len >= 1 && r.tokens.len() <= max_len + 1);
            }
        }
    }
}
