//! Corrections for several tests at once: Holm's of the family-wise error, Benjamini and Hochberg's of the false
//! discovery rate.
//!
//! Sources: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6
//! (1979), 65–70; Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, JRSS B 57 (1995), 289–300.

/// Adjusted p-values in the order of `p_values`: the i-th is rejected at family-wise level α iff it is ≤ α.
/// A p-value that is not a number counts as 1.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let p: Vec<f64> = p_values.iter().map(|p| if p.is_nan() { 1.0 } else { p.clamp(0.0, 1.0) }).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|i, j| p[*i].total_cmp(&p[*j]));
    let mut adjusted = vec![1.0; p.len()];
    let mut running = 0.0f64;
    for (rank, index) in order.into_iter().enumerate() {
        running = running.max(((p.len() - rank) as f64 * p[index]).min(1.0));
        adjusted[index] = running;
    }
    adjusted
}

/// Adjusted p-values in the order of `p_values`: those ≤ q are a list of discoveries of which, on average, a share of
/// at most q is false (independent or positively dependent tests). For lists to look at, not for verdicts.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let p: Vec<f64> = p_values.iter().map(|p| if p.is_nan() { 1.0 } else { p.clamp(0.0, 1.0) }).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|i, j| p[*i].total_cmp(&p[*j]));
    let mut adjusted = vec![1.0; p.len()];
    let mut running = 1.0f64;
    for (rank, index) in order.into_iter().enumerate().rev() {
        running = running.min(p[index] * p.len() as f64 / (rank + 1) as f64);
        adjusted[index] = running;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/golden.py`: statsmodels.stats.multitest.multipletests, method "holm" and "fdr_bh".
    #[test]
    fn agrees_with_statsmodels() {
        type Method = fn(&[f64]) -> Vec<f64>;
        for (group, method) in
            [("holm", holm as Method), ("benjamini_hochberg", benjamini_hochberg as Method)]
        {
            for case in crate::base::stats::tests::golden(group) {
                let list = |name: &str| -> Vec<f64> {
                    case[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
                };
                for (found, expected) in method(&list("p")).iter().zip(list("adjusted")) {
                    assert!((found - expected).abs() < 1e-12, "{group} {case}");
                }
            }
        }
    }

    #[test]
    fn nothing_and_no_number() {
        assert!(holm(&[]).is_empty());
        assert_eq!(holm(&[f64::NAN, 0.01]), [1.0, 0.02]);
    }
}
