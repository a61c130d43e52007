"""Writes golden.json, the reference values of src/base/stats: python golden.py (scipy 1.17.1, statsmodels 0.15.0).

Nothing here uses the closed forms of the Rust code: Tango's constrained maximum is found numerically, bounds are found
by inverting the tests of scipy and statsmodels.
"""

import json
from pathlib import Path

import numpy as np
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint


def tango_statistic(n, b, c, m):
    """Score statistic with the restricted maximum found by bounded minimization over p_c; p_b = p_c + m."""
    low, high = max(0.0, -m), (1.0 - m) / 2.0

    def xlogy(x, y):
        return 0.0 if x == 0 else (x * np.log(y) if y > 0 else -np.inf)

    def negative(q):
        return -(xlogy(b, q + m) + xlogy(c, q) + xlogy(n - b - c, 1.0 - 2.0 * q - m))

    def slope(q):
        return b / (q + m) + c / q - 2.0 * (n - b - c) / (1.0 - 2.0 * q - m)

    eps = 1e-13
    left, right = low + eps, high - eps
    if slope(left) <= 0:
        q = low
    elif slope(right) >= 0:
        q = high
    else:
        q = optimize.brentq(slope, left, right, xtol=1e-16, rtol=1e-15)
    assert negative(q) <= min(negative(left), negative(right)) + 1e-6
    return (b - c - n * m) / np.sqrt(n * (2.0 * q + m * (1.0 - m)))


def tango():
    cases = []
    for n, b, c in [(300, 9, 0), (300, 12, 3), (1172, 20, 12), (4000, 0, 1), (4000, 31, 29), (4000, 90, 20),
                    (10042, 251, 250), (10042, 600, 300), (50, 1, 0), (50, 20, 25), (44, 0, 1)]:
        for alpha in (0.05, 0.025):
            z = stats.norm.isf(alpha)
            delta = (b - c) / n
            upper = optimize.brentq(lambda m: tango_statistic(n, b, c, m) + z, delta + 1e-9, 1 - 1e-9, xtol=1e-13)
            lower = optimize.brentq(lambda m: tango_statistic(n, b, c, m) - z, -1 + 1e-9, delta - 1e-9, xtol=1e-13)
            m = 0.01
            t = tango_statistic(n, b, c, m)
            cases.append(dict(n=n, b=b, c=c, alpha=alpha, lower=lower, upper=upper, m=m,
                              p_at_most=stats.norm.sf(t), p_at_least=stats.norm.cdf(t)))
    return cases


def mcnemar_cases():
    cases = []
    for b, c in [(0, 0), (1, 0), (0, 5), (9, 0), (6, 16), (31, 29), (90, 20), (600, 500)]:
        n = b + c
        worse = stats.binom.sf(b - 1, n, 0.5)
        exact = mcnemar([[0, b], [c, 0]], exact=True).pvalue if n else 1.0
        mid = min(1.0, 2 * stats.binom.cdf(min(b, c), n, 0.5) - stats.binom.pmf(min(b, c), n, 0.5))
        cases.append(dict(b=b, c=c, exact_worse=worse, exact_two_sided=min(1.0, float(exact)),
                          mid_p_worse=worse - 0.5 * stats.binom.pmf(b, n, 0.5), mid_p_two_sided=mid))
    return cases


def fit(x, clusters):
    """(mean, standard error, degrees of freedom) by statsmodels' OLS on a constant."""
    ones = np.ones(len(x))
    if clusters is None:
        result = sm.OLS(x, ones).fit()
        return result.params[0], result.bse[0], len(x) - 1
    result = sm.OLS(x, ones).fit(cov_type="cluster", cov_kwds={"groups": np.asarray(clusters)}, use_t=True)
    return result.params[0], result.bse[0], len(set(clusters)) - 1


def p_at_most(num, den, clusters, m):
    mean, se, df = fit(num - m * den, clusters)
    return float(stats.t.sf(mean / se, df))


def ratio():
    rng = np.random.default_rng(20260)
    cases = []
    for name, n, weighted, relative, k in [("t", 12, 0, 0, 0), ("t large", 300, 0, 0, 0), ("weights", 40, 1, 0, 0),
                                           ("relative", 40, 1, 1, 0), ("clusters", 60, 0, 0, 7),
                                           ("clusters of weights, relative", 80, 1, 1, 9)]:
        clusters = rng.integers(0, k, n).tolist() if k else None
        weight = rng.integers(20, 400, n).astype(float) if weighted else np.ones(n)
        base = rng.normal(1.3, 0.2, n)
        worse = rng.normal(0.01, 0.02, n) + (rng.normal(0, 0.01, k)[clusters] if k else 0.0)
        num = weight * worse
        den = weight * base if relative else weight
        m, alpha = 0.01, 0.05
        estimate = num.sum() / den.sum()
        f = lambda m: p_at_most(num, den, clusters, m)
        lower = optimize.brentq(lambda m: f(m) - alpha, estimate - 1.0, estimate, xtol=1e-14)
        upper = optimize.brentq(lambda m: f(m) - (1 - alpha), estimate, estimate + 1.0, xtol=1e-14)
        stderr = None
        if not weighted:
            stderr = float(fit(num, clusters)[1])
            if not k:
                check = stats.ttest_1samp(num, m, alternative="greater")
                assert abs(check.pvalue - f(m)) < 1e-12
                assert abs(check.confidence_interval(1 - alpha).low - lower) < 1e-10
        cases.append(dict(name=name, num=num.tolist(), den=den.tolist(), clusters=clusters, alpha=alpha, m=m,
                          estimate=estimate, stderr=stderr, lower=lower, upper=upper, p_at_most=f(m)))
    return cases


def holm():
    rng = np.random.default_rng(7)
    lists = [[0.01, 0.04, 0.03, 0.005], [0.2], [0.5, 0.6, 0.04], rng.uniform(0, 0.1, 12).tolist(), [0.02, 0.02, 0.02]]
    return [dict(p=p, adjusted=multipletests(p, method="holm")[1].tolist()) for p in lists]


def benjamini_hochberg():
    rng = np.random.default_rng(8)
    lists = [[0.01, 0.04, 0.03, 0.005], [0.2], [0.5, 0.6, 0.04], rng.uniform(0, 0.1, 12).tolist(), [0.02, 0.02, 0.02]]
    return [dict(p=p, adjusted=multipletests(p, method="fdr_bh")[1].tolist()) for p in lists]


def wilson():
    cases = []
    for right, n in [(81, 263), (15, 148), (0, 20), (1, 29), (29, 29), (2376, 10042)]:
        for alpha in (0.05, 0.025):
            lower, upper = proportion_confint(right, n, alpha=2 * alpha, method="wilson")
            cases.append(dict(right=right, n=n, alpha=alpha, lower=float(lower), upper=float(upper)))
    return cases


def strata():
    rng = np.random.default_rng(9)
    cases = []
    for sizes in ([100, 40, 260], [7, 11]):
        samples = [rng.normal(0.01 * i, 0.1, n) for i, n in enumerate(sizes)]
        share = np.array(sizes) / sum(sizes)
        variance = sum(w**2 * np.var(x, ddof=1) / len(x) for w, x in zip(share, samples))
        cases.append(dict(sizes=sizes, means=[float(x.mean()) for x in samples],
                          stderrs=[float(stats.sem(x)) for x in samples],
                          value=float(np.concatenate(samples).mean()), stderr=float(np.sqrt(variance))))
    return cases


def power():
    cases = []
    for alpha in (0.05, 0.025):
        for variance, distance in [(0.02, 0.01), (0.05, 0.01), (0.1, 0.02), (1 / 9, 0.03)]:
            n = NormalIndPower().solve_power(effect_size=distance / np.sqrt(variance), alpha=alpha, power=0.8,
                                                    ratio=0, alternative="larger")
            cases.append(dict(alpha=alpha, variance=variance, distance=distance, n=float(n)))
    return cases


def quantiles():
    cases = []
    for p in (0.001, 0.025, 0.05, 0.3, 0.8, 0.95, 0.975, 0.9995):
        for df in (1, 2, 7, 61, 299, 3999, 14041):
            z = stats.norm.ppf(p)
            cases.append(dict(p=p, df=df, normal=z, student=stats.t.ppf(p, df), student_sf=stats.t.sf(z, df)))
    return cases


groups = dict(tango=tango(), mcnemar=mcnemar_cases(), ratio=ratio(), holm=holm(), power=power(), quantiles=quantiles(),
              benjamini_hochberg=benjamini_hochberg(), wilson=wilson(), strata=strata())
text = json.dumps(groups, indent=0, default=float)
Path(__file__).with_name("golden.json").write_text(text + "\n")
