//! Draws against direct formulas in f64 that sort the whole vocabulary.

mod direct;

use super::*;
use crate::args::Penalties;

use direct::direct;

const NO_CHANGE: SamplingParams<'static> =
    SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY };

/// Rows of logits that differ in what makes sampling hard.
fn rows() -> Vec<(&'static str, Vec<f32>)> {
    let noise = |n: usize, seed, scale: f64| -> Vec<f32> {
        (0..n as u64).map(|i| ((uniform(seed, i) - 0.5) * scale) as f32).collect()
    };
    let ties = noise(301, 3, 12.0).into_iter().map(f32::round).collect();
    let mut holes = noise(90, 4, 8.0);
    holes.iter_mut().step_by(3).for_each(|logit| *logit = f32::NEG_INFINITY);
    holes.iter_mut().skip(1).step_by(7).for_each(|logit| *logit = f32::NAN);
    vec![
        ("one token", vec![-3.0]),
        ("few", noise(7, 1, 4.0)),
        ("many", noise(2003, 2, 10.0)),
        ("ties", ties),
        ("flat", noise(3000, 5, 0.01)),
        ("peaked", noise(500, 6, 200.0)),
        ("holes", holes),
    ]
}

fn draw_with(logits: &[f32], params: SamplingParams<'_>, scratch: &mut SamplingScratch) -> u32 {
    let row = SampleRow { row: 0, task: SampleTask::Draw(params), logprobs: None };
    sample_row(&mut logits.to_vec(), &row, 0, scratch).token
}

/// Each draw must be the token whose share of [0, 1) holds the draw's number.
fn check(name: &str, logits: &[f32], params: SamplingParams<'_>) {
    let probabilities = direct(logits, &params);
    let mut scratch = SamplingScratch::default();
    for draw in 0..12 {
        let params = SamplingParams { draw, ..params };
        let token = draw_with(logits, params, &mut scratch) as usize;
        let number = uniform(params.seed, draw);
        let below: f64 = probabilities[..token].iter().sum();
        let share = probabilities[token];
        assert!(share > 0.0, "{name}: {params:?} drew {token}, which is not possible");
        assert!(
            below - 1e-5 <= number && number <= below + share + 1e-5,
            "{name}: {params:?} drew {token}, [{below}, {}) for {number}",
            below + share
        );
    }
}

#[test]
fn truncation_matches_the_direct_formula() {
    for (name, logits) in rows() {
        for temperature in [0.0, 0.3, 1.0, 1.7] {
            for min_p in [0.0, 0.0371, 0.4, 1.0] {
                for top_k in [0, 1, 3, 50, 400, 5000] {
                    for top_p in [1.0, 0.9313, 0.517, 0.0913, 0.0] {
                        let seed = u64::from(top_k) + 1;
                        let params =
                            SamplingParams { temperature, min_p, top_k, top_p, ..NO_CHANGE };
                        check(name, &logits, SamplingParams { seed, ..params });
                    }
                }
            }
        }
    }
}

/// None, each kind, and all kinds at once, over tokens that come once, often and beyond the vocabulary.
pub(crate) fn all_penalties() -> [Option<Penalties<'static>>; 8] {
    let penalties = |repetition, presence, frequency| Penalties {
        repetition,
        presence,
        frequency,
        seen: &[
            Seen { token: 0, in_output: 0 },
            Seen { token: 2, in_output: 1 },
            Seen { token: 5, in_output: 0 },
            Seen { token: 4_000_000, in_output: 1 },
            Seen { token: 1, in_output: 3 },
            Seen { token: 6, in_output: 1 },
        ],
        own: false,
    };
    [
        None,
        Some(penalties(1.0, 0.0, 0.0)),
        Some(penalties(1.9, 0.0, 0.0)),
        Some(penalties(0.6, 0.0, 0.0)),
        Some(penalties(1.0, 1.3, 0.0)),
        Some(penalties(1.0, 0.0, 0.7)),
        Some(penalties(1.3, -0.4, 0.9)),
        Some(penalties(0.8, -0.4, 0.9)),
    ]
}

#[test]
fn changes_match_the_direct_formula() {
    let banned: [&[u32]; 3] = [&[], &[4], &[0, 3, 3, u32::MAX]];
    let bias: [&[(u32, f32)]; 3] = [&[], &[(1, 2.5)], &[(3, 99.0), (2, -1.5), (u32::MAX, 5.0)]];
    for (name, logits) in rows() {
        for penalties in all_penalties() {
            for banned in banned {
                for bias in bias {
                    for (temperature, top_k, top_p) in
                        [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 5, 0.83)]
                    {
                        let params = SamplingParams { temperature, top_k, top_p, ..NO_CHANGE };
                        check(name, &logits, SamplingParams { penalties, banned, bias, ..params });
                    }
                }
            }
        }
    }
}

#[test]
fn a_ban_beats_a_bias_and_the_best_of_equals_is_the_lower_id() {
    let mut scratch = SamplingScratch::default();
    let greedy = SamplingParams { temperature: 0.0, ..NO_CHANGE };
    let logits = [1.0, 4.0, 4.0, 2.0];
    assert_eq!(draw_with(&logits, greedy, &mut scratch), 1);
    let banned = SamplingParams { banned: &[1], bias: &[(1, 100.0)], ..greedy };
    assert_eq!(draw_with(&logits, banned, &mut scratch), 2);
    let top = SamplingParams { top_k: 1, ..NO_CHANGE };
    for draw in 0..50 {
        assert_eq!(draw_with(&logits, SamplingParams { draw, ..top }, &mut scratch), 1);
    }
}

#[test]
fn numbers_out_of_range_do_not_panic() {
    let infinite = f32::INFINITY;
    let rows: [(&[f32], u32); 6] = [
        (&[f32::NAN; 40], 0),
        (&[f32::NEG_INFINITY; 40], 0),
        (&[f32::NAN, f32::NEG_INFINITY], 0),
        (&[f32::NAN, f32::NEG_INFINITY, -1e30], 2),
        (&[1.0, infinite, 3.0], 1),
        (&[], 0),
    ];
    let values = [0.0, -1.0, 1.0, 1e-45, 1e38, f32::NAN, infinite, -infinite];
    let mut scratch = SamplingScratch::default();
    for (logits, expected) in rows {
        for (i, &temperature) in values.iter().enumerate() {
            for &min_p in &values {
                for &top_p in &values {
                    let params = SamplingParams { temperature, min_p, top_p, ..NO_CHANGE };
                    let params = SamplingParams { top_k: [0, 2][i % 2], ..params };
                    let task = SampleTask::Draw(params);
                    let row = SampleRow { row: 0, task, logprobs: Some(5) };
                    let token = sample_row(&mut logits.to_vec(), &row, 0, &mut scratch).token;
                    assert_eq!(token, expected, "{logits:?} {params:?}");
                    assert!(scratch.top().iter().all(|(_, logprob)| !logprob.is_nan()));
                }
            }
        }
    }
}

#[test]
fn logprobs_ranks_and_best_tokens_are_of_the_unmodified_logits() {
    let mut scratch = SamplingScratch::default();
    for (name, logits) in rows() {
        let mut order: Vec<usize> = (0..logits.len()).filter(|&id| logits[id] > f32::MIN).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        let sum: f64 = order.iter().map(|&id| f64::from(logits[id]).exp()).sum();
        let logprob = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
        for count in [0, 1, 5, 20, 10_000] {
            let best: &[u32] = &[order[0] as u32];
            let task = SampleTask::Draw(SamplingParams { banned: best, draw: 3, ..NO_CHANGE });
            let score = SampleTask::Score(order[order.len() / 2] as u32);
            for task in [task, score] {
                let row = SampleRow { row: 0, task, logprobs: Some(count) };
                let sampled = sample_row(&mut logits.clone(), &row, 0, &mut scratch);
                let token = sampled.token as usize;
                let rank = order.iter().filter(|&&id| logits[id] > logits[token]).count();
                assert!((sampled.logprob - logprob(token)).abs() < 1e-4, "{name}: {sampled:?}");
                assert_eq!(sampled.rank as usize, rank, "{name}");
                assert_eq!(scratch.top().len(), order.len().min(count as usize), "{name}");
                for (&(id, found), &expected) in scratch.top().iter().zip(&order) {
                    assert_eq!(id as usize, expected, "{name}");
                    assert!((found - logprob(expected)).abs() < 1e-4, "{name}: {id} {found}");
                }
            }
        }
    }
}

#[test]
fn a_row_that_wants_no_logprobs_gets_none() {
    let mut scratch = SamplingScratch::default();
    for task in [SampleTask::Draw(NO_CHANGE), SampleTask::Score(1)] {
        for logprobs in [Some(2), None] {
            let row = SampleRow { row: 0, task, logprobs };
            let sampled = sample_row(&mut [0.5, 1.0, 2.0], &row, 0, &mut scratch);
            assert_eq!(sampled.logprob.is_nan(), logprobs.is_none());
            assert_eq!(scratch.top().is_empty(), logprobs.is_none());
        }
    }
}

/// Pearson's statistic of 40000 draws; 30 is beyond the 99.98th percentile for 7 degrees of freedom.
#[test]
fn draws_follow_the_distribution() {
    const DRAWS: u64 = 40_000;
    let logits = [0.1, 1.3, -0.7, 2.0, 0.0, -1.5, 0.9, 1.1];
    let mut scratch = SamplingScratch::default();
    // Along one stream, across streams, and with candidates that are picked out first.
    let pairs: [fn(u64) -> (u64, u64); 2] = [|i| (42, i), |i| (i, 0)];
    for (pair, top_p) in pairs.into_iter().flat_map(|pair| [(pair, 1.0), (pair, 0.9999)]) {
        let params = SamplingParams { temperature: 1.2, top_p, ..NO_CHANGE };
        let mut counts = [0_u32; 8];
        for i in 0..DRAWS {
            let (seed, draw) = pair(i);
            let params = SamplingParams { seed, draw, ..params };
            counts[draw_with(&logits, params, &mut scratch) as usize] += 1;
        }
        let expected = direct(&logits, &params).into_iter().map(|p| p * DRAWS as f64);
        let statistic: f64 =
            counts.iter().zip(expected).map(|(&n, e)| (f64::from(n) - e).powi(2) / e).sum();
        assert!(statistic < 30.0, "{counts:?}: {statistic}");
    }
}

#[test]
fn a_rows_own_token_counts_as_one_more_of_the_output() {
    for penalties in all_penalties().into_iter().flatten() {
        // Seen in the prompt alone, in the output, nowhere, and beyond the vocabulary.
        for own in [0, 1, 3, 4_000_000, u32::MAX] {
            let mut seen = penalties.seen.to_vec();
            match seen.iter_mut().find(|seen| seen.token == own) {
                Some(seen) => seen.in_output += 1,
                None => seen.push(Seen { token: own, in_output: 1 }),
            }
            let logits = [0.5, -1.5, 2.0, 0.25, -0.125, 4.0, 1.0];
            let adjusted = |penalties, own| {
                let mut logits = logits;
                let penalties = Some(penalties);
                adjust(&mut logits, &SamplingParams { penalties, ..NO_CHANGE }, own);
                logits
            };
            let expected = adjusted(Penalties { seen: &seen, ..penalties }, 5);
            assert_eq!(adjusted(Penalties { own: true, ..penalties }, own), expected, "{own}");
        }
    }
}

#[test]
fn a_draw_depends_on_its_own_row_and_number_alone() {
    let rows = rows();
    let penalties = Penalties {
        repetition: 1.5,
        presence: 0.5,
        frequency: 0.5,
        seen: &[
            Seen { token: 0, in_output: 0 },
            Seen { token: 1, in_output: 0 },
            Seen { token: 2, in_output: 2 },
        ],
        own: false,
    };
    let mut used = SamplingScratch::default();
    for draw in 0..20 {
        for (name, logits) in &rows {
            for (top_k, top_p) in [(0, 1.0), (0, 0.8), (9, 0.8)] {
                let params =
                    SamplingParams { penalties: Some(penalties), top_k, top_p, draw, ..NO_CHANGE };
                let alone = draw_with(logits, params, &mut SamplingScratch::default());
                assert_eq!(draw_with(logits, params, &mut used), alone, "{name}");
            }
        }
    }
}

#[test]
fn the_smallest_number_does_not_draw_what_has_no_weight() {
    let weights = [(4, 0.0), (5, 0.5), (6, 0.0)];
    assert_eq!(pick(weights.into_iter(), 0.0), 5);
    assert_eq!(pick(weights.into_iter(), 0.5), 5);
}

#[test]
fn scratch_stops_growing() {
    let mut scratch = SamplingScratch::default();
    let run = |scratch: &mut SamplingScratch| {
        for (_, logits) in rows() {
            for (top_k, top_p) in [(0, 0.99), (9, 0.8)] {
                let task = SampleTask::Draw(SamplingParams { top_k, top_p, ..NO_CHANGE });
                let row = SampleRow { row: 0, task, logprobs: Some(20) };
                sample_row(&mut logits.clone(), &row, 0, scratch);
            }
        }
        [scratch.unmodified.capacity(), scratch.candidates.capacity(), scratch.top.capacity()]
    };
    let warm = run(&mut scratch);
    assert_eq!(run(&mut scratch), warm);
}

#[test]
fn random_numbers_stay_as_published() {
    // SplitMix64's own first outputs from state 0 are 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4: the first is the start
    // of the stream of seed 0 here.
    let start = 0xE220_A839_7B1D_CDAF_u64;
    let second = random::mix(start.wrapping_add(random::GAMMA));
    assert_eq!(uniform(0, 0), (second >> 11) as f64 / 9_007_199_254_740_992.0);
    assert!((0..1000).all(|draw| (0.0..1.0).contains(&uniform(9, draw))));
}
