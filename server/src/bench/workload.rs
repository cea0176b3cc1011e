//! A load as data: which request asks whom, when, with which prompt, for how many tokens. The same seed, the same load.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Requests, prompt tokens and adapters at most: far above what a benchmark needs, far below what fills memory.
const MOST: usize = 100_000;
/// Ids below are special tokens in most vocabularies.
const FIRST_ID: u32 = 10;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// The base alone.
    Base,
    /// One adapter by all requests.
    One,
    /// Request `i` asks adapter `i mod N`, as vLLM's `--lora-assignment round-robin`.
    Distinct(usize),
    /// Each request asks one of N at random, all as likely, as vLLM's `--lora-assignment random`.
    Uniform(usize),
    /// As [`Mix::Uniform`], the k-th adapter with a weight of 1/k.
    Zipf(usize),
    /// As [`Mix::One`], while another adapter is replaced in place each time that this has passed.
    Reload(Duration),
    /// As [`Mix::One`], while that adapter itself is replaced: what a trainer does that pushes its policy.
    Push(Duration),
}

impl Mix {
    /// Reads `base`, `one`, `distinct:N`, `uniform:N`, `zipf:N`, `reload:SECONDS` or `push:SECONDS`.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, count) = text.split_once(':').map_or((text, None), |(kind, n)| (kind, Some(n)));
        if let ("reload" | "push", Some(seconds)) = (kind, count) {
            let seconds = seconds.parse().ok().filter(|s| (0.001..=3600.0).contains(s));
            let seconds =
                seconds.with_context(|| format!("--mix {text}: SECONDS is 0.001 to 3600"))?;
            let every = Duration::from_secs_f64(seconds);
            return Ok(if kind == "push" { Self::Push(every) } else { Self::Reload(every) });
        }
        let count = match count {
            Some(n) => {
                let n = n.parse().ok().filter(|n| (1..=MOST).contains(n));
                Some(n.with_context(|| format!("--mix {text}: N is 1 to {MOST}"))?)
            }
            None => None,
        };
        Ok(match (kind, count) {
            ("base", None) => Self::Base,
            ("one", None) => Self::One,
            ("distinct", Some(n)) => Self::Distinct(n),
            ("uniform", Some(n)) => Self::Uniform(n),
            ("zipf", Some(n)) => Self::Zipf(n),
            _ => bail!(
                "--mix {text}: it is base, one, distinct:N, uniform:N, zipf:N, reload:SECONDS or push:SECONDS"
            ),
        })
    }

    /// Adapters that it needs.
    pub fn adapters(self) -> usize {
        match self {
            Self::Base => 0,
            Self::One | Self::Push(_) => 1,
            Self::Reload(_) => 2,
            Self::Distinct(n) | Self::Uniform(n) | Self::Zipf(n) => n,
        }
    }

    /// As it is typed.
    pub fn name(self) -> String {
        match self {
            Self::Base => "base".into(),
            Self::One => "one".into(),
            Self::Distinct(n) => format!("distinct:{n}"),
            Self::Uniform(n) => format!("uniform:{n}"),
            Self::Zipf(n) => format!("zipf:{n}"),
            Self::Reload(every) => format!("reload:{}", every.as_secs_f64()),
            Self::Push(every) => format!("push:{}", every.as_secs_f64()),
        }
    }

    /// Which adapter is replaced meanwhile, and how often.
    pub fn replaces(self) -> Option<(usize, Duration)> {
        match self {
            Self::Push(every) => Some((0, every)),
            Self::Reload(every) => Some((1, every)),
            _ => None,
        }
    }

    fn pick(self, index: usize, random: &mut Random) -> Option<usize> {
        match self {
            Self::Base => None,
            Self::One | Self::Reload(_) | Self::Push(_) => Some(0),
            Self::Distinct(n) => Some(index % n),
            Self::Uniform(n) => Some(random.below(n as u64) as usize),
            Self::Zipf(n) => {
                let total: f64 = (1..=n).map(|k| 1.0 / k as f64).sum();
                let mut left = random.unit() * total;
                let found = (1..=n).find(|&k| {
                    left -= 1.0 / k as f64;
                    left < 0.0
                });
                Some(found.unwrap_or(n) - 1)
            }
        }
    }
}

/// Lengths of prompts and outputs in tokens, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Of prompts.
    pub input: (usize, usize),
    /// Of outputs.
    pub output: (usize, usize),
}

impl Shape {
    /// Reads a name or `IN/OUT`.
    pub fn parse(text: &str) -> Result<Self> {
        let fixed = |input, output| Self { input: (input, input), output: (output, output) };
        Ok(match text {
            "even" => fixed(64, 64),
            "prefill" => fixed(256, 8),
            "decode" => fixed(16, 128),
            "mixed" => Self { input: (16, 128), output: (16, 128) },
            _ => {
                let lengths = text
                    .split_once('/')
                    .and_then(|(input, output)| Some((input.parse().ok()?, output.parse().ok()?)));
                let (input, output) = lengths.with_context(|| {
                    format!("--shape {text}: it is even, prefill, decode, mixed or IN/OUT such as 512/32")
                })?;
                ensure!(
                    (1..=MOST).contains(&input) && (1..=MOST).contains(&output),
                    "--shape {text}: lengths are 1 to {MOST}"
                );
                fixed(input, output)
            }
        })
    }
}

/// What every mix of a run has in common.
#[derive(Debug, Clone)]
pub struct Load {
    /// Lengths.
    pub shape: Shape,
    /// How many.
    pub requests: usize,
    /// Arrivals a second; all at once when `None`.
    pub rate: Option<f64>,
    /// Prompts are drawn from ids below this.
    pub vocab: u32,
    /// Of everything that is drawn.
    pub seed: u64,
}

/// One request to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// After the start of the round.
    pub at: Duration,
    /// Which adapter; `None` for the base.
    pub adapter: Option<usize>,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Tokens to make.
    pub output: usize,
}

impl Load {
    /// The requests of `mix`, number `place` of its round. Lengths and arrivals are those of the round, so that mixes
    /// differ in nothing else; prompts are new each time, so that no prefix cache helps the later mix.
    pub fn plan(&self, mix: Mix, place: usize, round: usize) -> Vec<Planned> {
        let round = self.seed ^ (round as u64).wrapping_mul(0x9e37_79b9);
        let (mut lengths, mut arrivals) = (Random::new(round, 1), Random::new(round, 2));
        let mut choice = Random::new(round, 3);
        let mut tokens = Random::new(round, 4 + place as u64);
        let mut at = Duration::ZERO;
        let ids = u64::from(self.vocab.saturating_sub(FIRST_ID).max(1));
        (0..self.requests)
            .map(|index| {
                let input = lengths.between(self.shape.input);
                let output = lengths.between(self.shape.output);
                if let Some(rate) = self.rate {
                    // Gaps of a Poisson process are exponential.
                    at += Duration::from_secs_f64(-(1.0 - arrivals.unit()).ln() / rate);
                }
                let adapter = mix.pick(index, &mut choice);
                let prompt = (0..input).map(|_| FIRST_ID + tokens.below(ids) as u32).collect();
                Planned { at, adapter, prompt, output }
            })
            .collect()
    }
}

/// SplitMix64: the same numbers on every machine and in every version.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.next();
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn between(&mut self, (least, most): (usize, usize)) -> usize {
        least + self.below((most - least + 1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(seed: u64) -> Load {
        let shape = Shape::parse("mixed").unwrap();
        Load { shape, requests: 2000, rate: Some(10.0), vocab: 2048, seed }
    }

    #[test]
    fn a_seed_makes_one_load() {
        let plan = |seed, place, round| load(seed).plan(Mix::Zipf(8), place, round);
        assert_eq!(plan(7, 1, 2), plan(7, 1, 2));
        assert_ne!(plan(7, 1, 2), plan(8, 1, 2));
        assert_ne!(plan(7, 1, 2), plan(7, 1, 3));
        let (one, other) = (plan(7, 1, 2), plan(7, 2, 2));
        for (one, other) in one.iter().zip(&other) {
            assert_eq!((one.at, one.output), (other.at, other.output));
            assert_eq!(one.prompt.len(), other.prompt.len());
            assert_ne!(one.prompt, other.prompt);
        }
    }

    #[test]
    fn mixes_ask_whom_they_say() {
        let count = |mix: Mix| {
            let mut counts = vec![0usize; mix.adapters()];
            for planned in load(1).plan(mix, 0, 0) {
                counts[planned.adapter.unwrap()] += 1;
            }
            counts
        };
        assert!(load(1).plan(Mix::Base, 0, 0).iter().all(|planned| planned.adapter.is_none()));
        assert_eq!(count(Mix::One), [2000]);
        assert_eq!(count(Mix::Distinct(4)), [500; 4]);
        assert!(count(Mix::Uniform(4)).iter().all(|n| (400..600).contains(n)));
        let zipf = count(Mix::Zipf(3));
        // 6/11, 3/11 and 2/11 of 2000.
        assert!(zipf[0].abs_diff(1091) < 100 && zipf[1].abs_diff(545) < 100, "{zipf:?}");
    }

    #[test]
    fn arrivals_have_their_rate() {
        let plan = load(3).plan(Mix::Base, 0, 0);
        let seconds = plan[1999].at.as_secs_f64();
        assert!((170.0..230.0).contains(&seconds), "{seconds}");
        assert!(plan.windows(2).all(|pair| pair[0].at <= pair[1].at));
    }

    #[test]
    fn what_is_no_mix_or_shape_is_refused() {
        for text in ["", "two", "distinct", "zipf:0", "zipf:x", "one:1", "reload", "push:0"] {
            assert!(Mix::parse(text).is_err(), "{text}");
        }
        for text in ["one", "base", "distinct:3", "uniform:2", "zipf:9", "reload:0.5", "push:2"] {
            assert_eq!(Mix::parse(text).unwrap().name(), text);
        }
        for text in ["", "1", "0/1", "1/0", "a/b", "huge"] {
            assert!(Shape::parse(text).is_err(), "{text}");
        }
        assert_eq!(Shape::parse("5/6").unwrap(), Shape { input: (5, 5), output: (6, 6) });
    }
}
