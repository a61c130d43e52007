//! Pooling of fixed strata (the subjects of MMLU): they are not a sample, so their spread adds nothing to the error.

use super::level::Estimate;

/// Σw·δ/Σw with standard error √Σ(w·se)²/Σw over `(estimate, weight)`; `None` without weight. With the strata's sizes
/// as weights this is the pooled mean with its stratified error (W. G. Cochran, Sampling Techniques, section 5.3).
pub fn stratified(strata: &[(Estimate, f64)]) -> Option<Estimate> {
    let total: f64 = strata.iter().map(|(_, weight)| weight).sum();
    let sum = |f: fn(&(Estimate, f64)) -> f64| strata.iter().map(f).sum::<f64>();
    (total > 0.0).then(|| Estimate {
        value: sum(|(e, w)| w * e.value) / total,
        stderr: sum(|(e, w)| (w * e.stderr).powi(2)).sqrt() / total,
        n: strata.iter().map(|(e, _)| e.n).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/golden.py`: scipy.stats.sem of each stratum; value and error of the pooled sample in numpy.
    #[test]
    fn agrees_with_the_textbook() {
        for case in crate::base::stats::tests::golden("strata") {
            let list = |name: &str| -> Vec<f64> {
                case[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
            };
            let strata: Vec<(Estimate, f64)> = list("means")
                .into_iter()
                .zip(list("stderrs"))
                .zip(list("sizes"))
                .map(|((value, stderr), n)| (Estimate { value, stderr, n: n as usize }, n))
                .collect();
            let found = stratified(&strata).unwrap();
            assert!((found.value - case["value"].as_f64().unwrap()).abs() < 1e-12);
            assert!((found.stderr - case["stderr"].as_f64().unwrap()).abs() < 1e-12);
        }
        assert_eq!(stratified(&[]), None);
    }
}
