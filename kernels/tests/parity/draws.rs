//! Draws from logits that are known to the last bit, against the formulas in f64.
//!
//! One row of ones goes through an embedding and a norm; a head whose rows hold a logit in two parts makes the logits of
//! it. So every backend has the same ones, and what a draw may give can be computed from them: the tokens whose share of
//! [0, 1) holds the draw's number, within what rounding of weights and sums may shift.

use half::bf16;
use loraplex_kernels::{
    Backend, BufferKind, HostData, HostTensor, Penalties, RowToken, SampleRow, SampleTask,
    SamplingParams, Seen, SequenceSpan, Step, StepOutput,
};

/// Inputs of the head.
const HIDDEN: usize = 16;

/// Logits with a name, and what is wanted of them.
#[derive(Debug)]
pub(crate) struct Sheet<'a> {
    pub(crate) name: &'static str,
    pub(crate) logits: Vec<f32>,
    pub(crate) rows: Vec<SampleRow<'a>>,
}

/// Parts of two numbers that bf16 holds, whose sum is exact.
fn parts(logit: f32) -> [bf16; 2] {
    let high = bf16::from_f32(logit);
    let rest = logit - high.to_f32();
    [high, bf16::from_f32(if rest.is_finite() { rest } else { 0.0 })]
}

/// How the step before draws what is the own token of a sheet's rows.
const BEFORE: SamplingParams<'_> = SamplingParams { bias: &[(1, 1e4)], ..SamplingParams::GREEDY };

impl Sheet<'_> {
    /// The own token of its rows.
    fn own(&self) -> u32 {
        best_first(&changed(&self.logits, &BEFORE, 0)).first().copied().unwrap_or(0)
    }
}

/// Draws the rows of a sheet, `at_once` in a step.
pub(crate) fn draw<B: Backend>(mut backend: B, sheet: &Sheet<'_>, at_once: usize) -> StepOutput {
    let vocabulary = sheet.logits.len();
    let mut values = vec![bf16::ZERO; vocabulary * HIDDEN];
    for (row, &logit) in values.chunks_exact_mut(HIDDEN).zip(&sheet.logits) {
        let parts = parts(logit);
        assert!(logit.is_nan() || parts[0].to_f32() + parts[1].to_f32() == logit, "{logit}");
        row[..2].copy_from_slice(&parts);
    }
    let head = HostTensor::new(vocabulary, HIDDEN, HostData::Bf16(values)).unwrap();
    let ones = HostTensor::from_f32(vocabulary, HIDDEN, vec![1.0; vocabulary * HIDDEN]).unwrap();
    let head = backend.upload_linear(&[head], None).unwrap();
    let table = backend.upload_linear(&[ones], None).unwrap();
    let norm = backend.upload_vector(&[1.0; HIDDEN]).unwrap();
    let mut residual = backend.buffer(BufferKind::Residual, 1, HIDDEN).unwrap();
    let mut x = backend.buffer(BufferKind::Operand, 1, HIDDEN).unwrap();
    let (mut all, mut output) = (StepOutput::default(), StepOutput::default());
    let mut pending = None;
    let before = SampleRow { row: 0, task: SampleTask::Draw(BEFORE), logprobs: None };
    let both = sheet.rows.chunks(at_once).flat_map(|rows| [std::slice::from_ref(&before), rows]);
    for (index, rows) in both.enumerate() {
        let follows = index % 2 == 1;
        let step = Step {
            tokens: &[if follows { RowToken::Sampled(0) } else { RowToken::Known(0) }],
            positions: &[0],
            slots: &[0],
            sequences: &[SequenceSpan { first_row: 0, rows: 1, context: 0, first_block: 0 }],
            block_tables: &[0],
            lora: &[],
        };
        backend.begin_step(&step).unwrap();
        backend.embed(&table, &mut residual).unwrap();
        backend.rms_norm(&residual, &norm, 0.0, &mut x).unwrap();
        backend.sample(&head, &x, rows).unwrap();
        let ticket = backend.end_step().unwrap();
        if !follows {
            // Its token is still on the device when the next step begins.
            pending = Some(ticket);
            continue;
        }
        backend.wait(pending.take().unwrap(), &mut output).unwrap();
        assert_eq!(output.tokens, [sheet.own()], "{}", sheet.name);
        backend.wait(ticket, &mut output).unwrap();
        for row in 0..rows.len() {
            all.tokens.push(output.tokens[row]);
            all.logprobs.push(output.logprobs[row]);
            all.ranks.push(output.ranks[row]);
            all.top.extend_from_slice(output.top_of(row));
            all.top_ends.push(all.top.len() as u32);
        }
    }
    all
}

/// Whether two outputs are the same by a bit.
pub(crate) fn is_same(a: &StepOutput, b: &StepOutput) -> bool {
    let bits = |output: &StepOutput| -> Vec<u32> {
        output.logprobs.iter().map(|logprob| logprob.to_bits()).collect()
    };
    (&a.tokens, &a.ranks, &a.top_ends) == (&b.tokens, &b.ranks, &b.top_ends)
        && a.top == b.top
        && bits(a) == bits(b)
}

/// Fails unless a backend's results are what the sheet allows.
pub(crate) fn assert_lawful(backend: &str, sheet: &Sheet<'_>, output: &StepOutput) {
    let scores = Scores::new(&sheet.logits);
    assert_eq!(output.tokens.len(), sheet.rows.len());
    for (index, row) in sheet.rows.iter().enumerate() {
        let name = format!("{backend}: {}, {row:?}", sheet.name);
        let token = output.tokens[index];
        match &row.task {
            SampleTask::Score(wanted) => assert_eq!(token, *wanted, "{name}"),
            SampleTask::Draw(params) => {
                assert_drawn(&name, (&sheet.logits, 0.0), (params, sheet.own()), token);
            }
        }
        let (logprob, rank) = (output.logprobs[index], output.ranks[index]);
        let Some(count) = row.logprobs else {
            assert!(logprob.is_nan() && rank == 0 && output.top_of(index).is_empty(), "{name}");
            continue;
        };
        let own = sheet.logits[token as usize];
        let better = sheet.logits.iter().filter(|&&logit| logit > own).count();
        assert_eq!(rank as usize, better, "{name}: rank of {token}");
        scores.assert_near(&name, token, logprob);
        let expected = &scores.order[..scores.order.len().min(count as usize)];
        let top = output.top_of(index);
        assert!(expected.iter().eq(top.iter().map(|(token, _)| token)), "{name}: {top:?}");
        top.iter().for_each(|&(token, logprob)| scores.assert_near(&name, token, logprob));
    }
}

/// Log-probabilities of unmodified logits.
struct Scores<'a> {
    logits: &'a [f32],
    /// Tokens above minus infinity, best first, ties to the lower id.
    order: Vec<u32>,
    log_sum: f64,
}

impl<'a> Scores<'a> {
    fn new(logits: &'a [f32]) -> Self {
        let order = best_first(logits);
        let best = order.first().map_or(f64::NAN, |&id| f64::from(logits[id as usize]));
        let weight = |&id: &u32| relative(f64::from(logits[id as usize]), best).exp();
        let log_sum = order.iter().map(weight).sum::<f64>().ln();
        Self { logits, order, log_sum }
    }

    fn assert_near(&self, name: &str, token: u32, found: f32) {
        let logit = f64::from(self.logits[token as usize]);
        if logit.is_nan() || logit == f64::NEG_INFINITY {
            return assert_eq!(found, f32::NEG_INFINITY, "{name}: {token}");
        }
        let best = f64::from(self.logits[self.order[0] as usize]);
        let expected = relative(logit, best) - self.log_sum;
        let near = f64::from(found) == expected
            || (f64::from(found) - expected).abs() < 1e-4 + 1e-6 * expected.abs();
        assert!(near, "{name}: {token} has {found}, not {expected}");
    }
}

/// The difference to the best, which may be infinite.
fn relative(logit: f64, best: f64) -> f64 {
    if logit == best { 0.0 } else { logit - best }
}

fn best_first(logits: &[f32]) -> Vec<u32> {
    let above = |id: &u32| logits[*id as usize] > f32::NEG_INFINITY;
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(above).collect();
    let at = |id: u32| logits[id as usize];
    order.sort_by(|&a, &b| at(b).partial_cmp(&at(a)).unwrap().then(a.cmp(&b)));
    order
}

/// The logits that a token is drawn from: the operations of the definition, each rounded to f32.
fn changed(logits: &[f32], params: &SamplingParams<'_>, own: u32) -> Vec<f32> {
    let mut logits = logits.to_vec();
    for &token in params.banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for &(token, bias) in params.bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    let Some(penalties) = &params.penalties else { return logits };
    let mut all = penalties.seen.to_vec();
    if penalties.own {
        match all.iter_mut().find(|seen| seen.token == own) {
            Some(seen) => seen.in_output += 1,
            None => all.push(Seen { token: own, in_output: 1 }),
        }
    }
    for seen in all {
        let Some(logit) = logits.get_mut(seen.token as usize) else { continue };
        let positive = *logit > 0.0;
        *logit =
            if positive { *logit / penalties.repetition } else { *logit * penalties.repetition };
        if seen.in_output > 0 {
            *logit -= penalties.presence + penalties.frequency * seen.in_output as f32;
        }
    }
    logits
}

/// Fails unless a token is what its row allows. Logits may be off by as much as `blur`.
pub(crate) fn assert_drawn(
    name: &str,
    (logits, blur): (&[f32], f64),
    (params, own): (&SamplingParams<'_>, u32),
    token: u32,
) {
    let logits = changed(logits, params, own);
    let order = best_first(&logits);
    let Some(&first) = order.first() else {
        return assert_eq!(token, 0, "{name}");
    };
    if params.temperature <= 0.0 {
        let close = logits[first as usize] - logits[token as usize] <= 2.0 * blur as f32;
        return assert!(token == first || (blur > 0.0 && close), "{name}: {token}, not {first}");
    }
    let rank = order.iter().position(|&id| id == token);
    let rank = rank.unwrap_or_else(|| panic!("{name}: drew {token}, which is impossible"));
    let (best, temperature) = (logits[order[0] as usize], f64::from(params.temperature));
    let distance =
        |id: u32| relative(f64::from(logits[id as usize]), f64::from(best)) / temperature;
    let weights: Vec<f64> = order.iter().map(|&id| distance(id).exp()).collect();
    // What a weight may be off by: two units of the power, and two roundings of what it is of, as shares of it, and what
    // a sum loses for it.
    let error = |(&id, &weight): (&u32, &f64)| {
        let shift = if weight > 0.0 { -distance(id) * 2.4e-7 * weight } else { 0.0 };
        weight * (5e-7 + blur / temperature) + shift + 1e-13
    };
    let slack = |kept: usize| {
        let errors = order[..kept].iter().zip(&weights).map(error).sum::<f64>();
        4.0 * errors / weights[..kept].iter().sum::<f64>()
    };
    let number = uniform(params.seed, params.draw);
    let mut tried = Vec::new();
    for least in least_logits(f64::from(best), blur, params) {
        let above = |&id: &u32| id == order[0] || f64::from(logits[id as usize]) >= least;
        let kept = order.partition_point(above);
        let kept = if params.top_k == 0 { kept } else { kept.min(params.top_k as usize) };
        let top_p = f64::from(params.top_p);
        for share in [top_p - slack(kept), top_p + slack(kept)] {
            let kept = if params.top_p < 1.0 { reaching(&weights[..kept], share) } else { kept };
            let of = |is_in: &dyn Fn(u32) -> bool| -> f64 {
                let pairs = order[..kept].iter().zip(&weights);
                pairs.filter(|(id, _)| is_in(**id)).map(|(_, weight)| weight).sum()
            };
            let all = of(&|_| true);
            let (below, upto) = (of(&|id| id < token) / all, of(&|id| id <= token) / all);
            let slack = slack(kept);
            if rank < kept && below - slack <= number && number <= upto + slack {
                return;
            }
            tried.push((kept, below, upto, slack));
        }
    }
    panic!("{name}: drew {token} of rank {rank} for {number}; kept, share and slack: {tried:?}");
}

/// The smallest logit that `min_p` leaves, as low and as high as rounding may put it.
fn least_logits(best: f64, blur: f64, params: &SamplingParams<'_>) -> [f64; 2] {
    let shift = f64::from(params.temperature) * f64::from(params.min_p).ln().min(0.0);
    if shift == f64::NEG_INFINITY {
        return [shift; 2];
    }
    let rounding =
        if best.is_finite() { (best.abs() + shift.abs()) * 2.4e-7 + 2.0 * blur } else { 0.0 };
    [best + shift - rounding, best + shift + rounding]
}

/// How many of the first weights reach a share of their sum; at least one.
fn reaching(weights: &[f64], share: f64) -> usize {
    let wanted = share * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= wanted
    });
    reached.map_or(weights.len(), |last| last + 1)
}

/// The number of a draw, as the definition makes it from SplitMix64.
fn uniform(seed: u64, draw: u64) -> f64 {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let start = mix(seed.wrapping_add(GAMMA));
    let bits = mix(start.wrapping_add(draw.wrapping_add(1).wrapping_mul(GAMMA)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Logits that differ in what makes draws hard; all are sums of two numbers that bf16 holds.
pub(crate) fn all_logits() -> Vec<(&'static str, Vec<f32>)> {
    // Sixteen bits, of which the lowest is `step`.
    let noise = |count: usize, stream: u64, scale: f64, step: f64| -> Vec<f32> {
        let unit = |i| (0..4).map(|part| uniform(stream + part, i) - 0.5).sum::<f64>();
        (0..count as u64).map(|i| ((unit(i) * scale / step).round() * step) as f32).collect()
    };
    let fine = 2.0_f64.powi(-10);
    let ties = noise(1000, 30, 9.0, 1.0);
    let mut holes = noise(1000, 40, 16.0, fine);
    holes.iter_mut().step_by(3).for_each(|logit| *logit = f32::NEG_INFINITY);
    holes.iter_mut().skip(1).step_by(7).for_each(|logit| *logit = f32::NAN);
    let mut infinite = noise(100, 50, 8.0, fine);
    (infinite[40], infinite[60]) = (f32::INFINITY, f32::INFINITY);
    vec![
        ("one token", vec![-3.0]),
        ("seven", noise(7, 10, 6.0, fine)),
        ("a thousand", noise(1000, 20, 16.0, fine)),
        ("ties", ties),
        ("holes", holes),
        ("infinite", infinite),
        ("not a number", vec![f32::NAN; 9]),
        ("nothing", vec![f32::NEG_INFINITY, f32::NAN, f32::NEG_INFINITY]),
        ("all equal", vec![1.5; 1003]),
        ("peaked", noise(500, 60, 400.0, 2.0_f64.powi(-7))),
        ("flat", noise(3001, 70, 0.01, 2.0_f64.powi(-14))),
        ("large", noise(128_256, 80, 20.0, fine)),
        ("large and equal", vec![-0.25; 128_256]),
        ("large, with ties", noise(128_256, 90, 30.0, 0.25)),
    ]
}

const PENALTIES: Penalties<'_> = Penalties {
    repetition: 1.3,
    presence: -0.4,
    frequency: 0.9,
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

/// What is wanted of all these logits: every `step`th of all combinations, each with its own number.
pub(crate) fn all_rows(vocabulary: usize, step: usize) -> Vec<SampleRow<'static>> {
    const PLAIN: SamplingParams<'_> = SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY };
    let presence = Penalties { repetition: 1.0, presence: 1.5, frequency: 0.0, ..PENALTIES };
    let own = Penalties { own: true, ..PENALTIES };
    let own_alone = Penalties { own: true, seen: &[], ..PENALTIES };
    let changes = [
        PLAIN,
        SamplingParams { banned: &[4, 3, 4, u32::MAX], bias: &[(6, 2.5), (0, -1.0)], ..PLAIN },
        SamplingParams { penalties: Some(PENALTIES), bias: &[(u32::MAX, 5.0)], ..PLAIN },
        SamplingParams { penalties: Some(presence), banned: &[0], ..PLAIN },
        SamplingParams { penalties: Some(own), bias: &[(1, -0.5)], ..PLAIN },
        SamplingParams { penalties: Some(own_alone), ..PLAIN },
    ];
    let logprobs = [None, Some(0), Some(1), Some(20), None, Some(64), Some(65), Some(5)];
    let mut rows = Vec::new();
    let mut number = 0_usize;
    for changes in changes {
        for temperature in [0.0, 1.0, 0.3, 1.7] {
            for (min_p, top_k) in [(0.0, 0), (0.05, 0), (0.0, 1), (0.0, 50), (0.02, 7), (0.0, 900)]
            {
                for top_p in [1.0, 0.9, 0.4, 0.0] {
                    number += 1;
                    if !number.is_multiple_of(step) {
                        continue;
                    }
                    let (seed, draw) = (number as u64 * 7919, number as u64 % 11);
                    let params = SamplingParams { temperature, min_p, top_k, top_p, ..changes };
                    let task = SampleTask::Draw(SamplingParams { seed, draw, ..params });
                    let logprobs = logprobs[number / step % logprobs.len()];
                    rows.push(SampleRow { row: 0, task, logprobs });
                    if rows.len().is_multiple_of(9) {
                        let task = SampleTask::Score((number * 31 % vocabulary) as u32);
                        rows.push(SampleRow { row: 0, task, logprobs });
                    }
                }
            }
        }
    }
    rows
}
