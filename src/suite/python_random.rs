//! Python's `random.Random`, as far as lm-eval's numbers depend on it.
//!
//! Sources: Matsumoto and Nishimura, "Mersenne Twister" (mt19937ar.c); CPython 3.11 `Modules/_randommodule.c` and
//! `Lib/random.py` (`seed`, `_randbelow_with_getrandbits`, `sample`, `shuffle`, `choices`).

const N: usize = 624;
const M: usize = 397;

/// A generator with the state of MT19937.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; N],
    index: usize,
}

impl std::fmt::Debug for PythonRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PythonRandom").field("index", &self.index).finish_non_exhaustive()
    }
}

impl PythonRandom {
    /// `random.Random(seed)` for an integer seed.
    pub fn new(seed: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        let length = if key[1] == 0 { 1 } else { 2 };
        Self::from_key(&key[..length])
    }

    /// `init_by_array` of mt19937ar.c.
    fn from_key(key: &[u32]) -> Self {
        let mut s = [0u32; N];
        s[0] = 19_650_218;
        for i in 1..N {
            s[i] = 1_812_433_253u32.wrapping_mul(s[i - 1] ^ (s[i - 1] >> 30)).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let mixed = (s[i - 1] ^ (s[i - 1] >> 30)).wrapping_mul(1_664_525);
            s[i] = (s[i] ^ mixed).wrapping_add(key[j]).wrapping_add(j as u32);
            (i, j) = (i + 1, (j + 1) % key.len());
            if i == N {
                s[0] = s[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let mixed = (s[i - 1] ^ (s[i - 1] >> 30)).wrapping_mul(1_566_083_941);
            s[i] = (s[i] ^ mixed).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                s[0] = s[N - 1];
                i = 1;
            }
        }
        s[0] = 0x8000_0000;
        Self { state: s, index: N }
    }

    fn refill(&mut self) {
        for k in 0..N {
            let y = (self.state[k] & 0x8000_0000) | (self.state[(k + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[k] = self.state[(k + M) % N] ^ (y >> 1) ^ twist;
        }
        self.index = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.index == N {
            self.refill();
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: 53 bits in [0, 1).
    pub fn random(&mut self) -> f64 {
        let a = f64::from(self.next_u32() >> 5);
        let b = f64::from(self.next_u32() >> 6);
        (a * 67_108_864.0 + b) / 9_007_199_254_740_992.0
    }

    /// `randbelow(n)` for 0 < n < 2³².
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let r = (self.next_u32() >> (32 - bits)) as usize;
            if r < n {
                return r;
            }
        }
    }

    /// Indices that `sample(range(n), k)` picks; `k ≤ n`.
    pub fn sample_indices(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "sample of {k} from {n}");
        let mut set_size = 21;
        if k > 5 {
            set_size += 4usize.pow((k as f64 * 3.0).log(4.0).ceil() as u32);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let last = pool[n - i - 1];
                    std::mem::replace(&mut pool[j], last)
                })
                .collect();
        }
        let mut selected = std::collections::HashSet::with_capacity(k);
        (0..k)
            .map(|_| {
                let mut j = self.below(n);
                while !selected.insert(j) {
                    j = self.below(n);
                }
                j
            })
            .collect()
    }

    /// `shuffle(list(range(n)))`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let j = self.below(i + 1);
            order.swap(i, j);
        }
        order
    }

    /// One index of `choices(xs, k)`: call it k times for k draws from n.
    pub fn choice_index(&mut self, n: usize) -> usize {
        (self.random() * n as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: CPython 3.11, `random.Random(1234)` and the calls named.
    #[test]
    fn as_cpython() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("testdata/python_random.json")).unwrap();
        for case in golden.as_array().unwrap() {
            let mut rng = PythonRandom::new(case["seed"].as_u64().unwrap());
            let list = |v: &serde_json::Value| -> Vec<usize> { serde_json::from_value(v.clone()).unwrap() };
            assert_eq!(rng.random(), case["random"].as_f64().unwrap());
            for sample in case["samples"].as_array().unwrap() {
                let n = sample["n"].as_u64().unwrap() as usize;
                let picked = list(&sample["picked"]);
                assert_eq!(rng.sample_indices(n, picked.len()), picked);
            }
            let shuffled = list(&case["shuffled"]);
            assert_eq!(rng.permutation(shuffled.len()), shuffled);
            let choices = list(&case["choices"]);
            let drawn: Vec<usize> = choices.iter().map(|_| rng.choice_index(1000)).collect();
            assert_eq!(drawn, choices);
        }
    }
}
