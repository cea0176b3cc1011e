//! What the device does with each sample row, and what it needs to know for that, by `draw.cu`.

use super::CudaBackend;
use super::gpu::Shape;
use super::kernel_args::{Draw, Top};
use super::memory::padded;
use super::weights::Linear;
use crate::args::{Penalties, SampleRow, SampleTask, SamplingParams};
use crate::error::Result;
use crate::sampling::Seen;
use crate::sampling::random::{BITS, uniform};
use crate::sampling::softmax::log_least;

/// Best tokens of a row that the device finds; `MOST_TOP` in `draw.cu`. The host reports more.
const MOST_TOP: u32 = 64;
/// Changed logits of a row; where there are more, sending them takes about as long as fetching the row.
const MOST_CHANGES: usize = 16_384;
/// Tokens whose weights a sum has room for.
const MOST_TOKENS: usize = 1 << 19;
/// Words of `Draw` and of `Change` in `draw.cu`.
pub(super) const DRAW_WORDS: usize = 14;
const CHANGE_WORDS: usize = 4;
/// `kind` of `Change`: bits, and one time in the output.
const BANNED: u32 = 1;
const SEEN: u32 = 2;
const ONCE: u32 = 4;
/// Threads of a block, and logits that are worth one.
const THREADS: usize = 512;
const BLOCK_LOGITS: usize = 4096;
/// Blocks of a cluster, at most.
const MOST_BLOCKS: usize = 8;

/// What is done with a row's logits, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// The device takes the best token.
    Best,
    /// The device scores this token.
    Score(u32),
    /// The device draws.
    Draw {
        /// Then it scores what it has drawn.
        scored: bool,
    },
    /// The host does it.
    Host,
}

impl Task {
    /// `tasks` of `sample.cu`.
    pub(super) const fn word(self) -> u32 {
        match self {
            Self::Best => u32::MAX,
            Self::Score(token) => token,
            Self::Draw { scored: true } => u32::MAX - 2,
            Self::Draw { scored: false } | Self::Host => u32::MAX - 1,
        }
    }

    const fn draws(self) -> bool {
        matches!(self, Self::Draw { .. })
    }

    const fn is_picked(self) -> bool {
        matches!(self, Self::Best | Self::Score(_) | Self::Draw { scored: true })
    }
}

/// The sample rows of a step as the kernels take them.
#[derive(Debug, Default)]
pub(super) struct Draws {
    /// One a row.
    rows: Vec<[u32; DRAW_WORDS]>,
    tasks: Vec<Task>,
    changes: Changes,
    most_top: u32,
}

impl Draws {
    /// Forgets the step before.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.tasks.clear();
        self.changes.list.clear();
        self.most_top = 0;
    }

    /// Takes a row, and says who does what with it.
    pub(super) fn add(&mut self, row: &SampleRow<'_>, vocabulary: usize) -> Task {
        let first = self.changes.list.len();
        let mut task = match &row.task {
            SampleTask::Score(token) if (*token as usize) < vocabulary => Task::Score(*token),
            SampleTask::Score(_) => Task::Host,
            SampleTask::Draw(params) => {
                let greedy = params.temperature.is_nan() || params.temperature <= 0.0;
                let fits = vocabulary <= MOST_TOKENS && self.changes.add(params, vocabulary);
                let changes = self.changes.list.len() > first || row.counts_own_token();
                match (fits, greedy && !changes) {
                    (false, _) => Task::Host,
                    (true, true) => Task::Best,
                    (true, false) => Task::Draw { scored: row.logprobs.is_some() },
                }
            }
        };
        let mut top = row.logprobs.unwrap_or(0);
        if top > MOST_TOP {
            (task, top) = (Task::Host, 0);
        }
        if task == Task::Host {
            self.changes.list.truncate(first);
            top = 0;
        }
        self.most_top = self.most_top.max(top);
        let mut words = [0; DRAW_WORDS];
        if let (Task::Draw { scored }, SampleTask::Draw(params)) = (task, &row.task) {
            words = draw_words(params, scored, first..self.changes.list.len());
            if row.counts_own_token() {
                words[13] = row.row + 1;
                // Room for the change of a token that has none.
                self.changes.list.push([u32::MAX, 0, 0, 0]);
            }
        }
        words[12] = top;
        self.rows.push(words);
        self.tasks.push(task);
        task
    }

    /// Most best tokens that a row of the step wants from the device.
    pub(super) const fn most_top(&self) -> usize {
        self.most_top as usize
    }

    /// Tasks, then, where any row needs it, rows and changes. Offsets of the three, in words after those before, are
    /// those of [`Places`].
    pub(super) fn write(&self, words: &mut Vec<u32>) -> Places {
        let tasks = words.len();
        words.extend(self.tasks.iter().map(|task| task.word()));
        // Rows hold a number of 64 bits.
        words.resize(words.len().next_multiple_of(2), 0);
        let rows = words.len();
        if self.most_top > 0 || self.tasks.iter().any(|task| task.draws()) {
            words.extend_from_slice(self.rows.as_flattened());
        }
        words.resize(words.len().next_multiple_of(CHANGE_WORDS), 0);
        let changes = words.len();
        words.extend_from_slice(self.changes.list.as_flattened());
        Places { tasks, rows, changes }
    }
}

/// `Draw` of `draw.cu`, without its number of best tokens.
fn draw_words(
    params: &SamplingParams<'_>,
    restore: bool,
    changes: std::ops::Range<usize>,
) -> [u32; DRAW_WORDS] {
    // Exact: the number has that many bits.
    let uniform = (uniform(params.seed, params.draw) * (1_u64 << BITS) as f64) as u64;
    let penalties = params.penalties.as_ref();
    let number = |of: fn(&Penalties<'_>) -> f32| penalties.map_or(0, |p| of(p).to_bits());
    [
        uniform as u32,
        (uniform >> 32) as u32,
        params.temperature.to_bits(),
        log_least(params.min_p).to_bits(),
        params.top_k,
        params.top_p.to_bits(),
        changes.start as u32,
        changes.len() as u32,
        number(|penalties| penalties.repetition),
        number(|penalties| penalties.presence),
        number(|penalties| penalties.frequency),
        1 + u32::from(restore),
        0,
        0,
    ]
}

/// Where the parts of a letter begin, in words.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Places {
    pub(super) tasks: usize,
    pub(super) rows: usize,
    pub(super) changes: usize,
}

/// Changes of logits, each token of a row once: should a bias name one twice, the sum is added.
#[derive(Debug, Default)]
struct Changes {
    /// `Change` of `draw.cu`: token, bias, kind, and room for the logit before.
    list: Vec<[u32; CHANGE_WORDS]>,
    /// For each token one more than its place in the row's part of the list; 0, as everywhere between rows, is none.
    places: Vec<u32>,
}

impl Changes {
    /// Adds those of a row; false, with some of them added, where there are too many.
    fn add(&mut self, params: &SamplingParams<'_>, vocabulary: usize) -> bool {
        if self.places.len() < vocabulary {
            self.places.resize(vocabulary, 0);
        }
        let first = self.list.len();
        let mut fits = self.name(params, vocabulary, first).is_some();
        // Where nothing else names tokens, those that were seen need no places: each comes once.
        let alone = self.list.len() == first;
        if let Some(penalties) = params.penalties.as_ref().filter(|_| fits) {
            fits = self.penalise(penalties, vocabulary, first, alone).is_some();
        }
        if !alone {
            for change in &self.list[first..] {
                self.places[change[0] as usize] = 0;
            }
        }
        fits
    }

    /// Those that name tokens: bans and biases.
    fn name(&mut self, params: &SamplingParams<'_>, vocabulary: usize, first: usize) -> Option<()> {
        let valid = |token: &u32| (*token as usize) < vocabulary;
        for &token in params.banned.iter().filter(|token| valid(token)) {
            self.change(token, first)?[2] |= BANNED;
        }
        for &(token, bias) in params.bias.iter().filter(|(token, _)| valid(token)) {
            let change = self.change(token, first)?;
            change[1] = (f32::from_bits(change[1]) + bias).to_bits();
        }
        Some(())
    }

    fn penalise(
        &mut self,
        penalties: &Penalties<'_>,
        vocabulary: usize,
        first: usize,
        alone: bool,
    ) -> Option<()> {
        let repeats = penalties.repetition != 1.0;
        let counts = penalties.presence != 0.0 || penalties.frequency != 0.0;
        let matters = |seen: &&Seen| {
            (repeats || counts && seen.in_output > 0) && (seen.token as usize) < vocabulary
        };
        for seen in penalties.seen.iter().filter(matters) {
            let kind = SEEN + ONCE * seen.in_output;
            if !alone {
                self.change(seen.token, first)?[2] |= kind;
            } else if self.list.len() - first < MOST_CHANGES {
                self.list.push([seen.token, 0.0_f32.to_bits(), kind, 0]);
            } else {
                return None;
            }
        }
        Some(())
    }

    /// The change of a token, a new one if it has none; `None` where the row has too many.
    fn change(&mut self, token: u32, first: usize) -> Option<&mut [u32; CHANGE_WORDS]> {
        let place = &mut self.places[token as usize];
        if *place == 0 {
            if self.list.len() - first == MOST_CHANGES {
                return None;
            }
            self.list.push([token, 0.0_f32.to_bits(), 0, 0]);
            *place = (self.list.len() - first) as u32;
        }
        Some(&mut self.list[first + *place as usize - 1])
    }
}

impl CudaBackend {
    /// Queues the draws among `count` rows from `first`, whose logits are there.
    pub(super) fn draw(&mut self, head: &Linear, first: usize, count: usize) -> Result<()> {
        let sampler = &self.sampler;
        if !sampler.draws.tasks[first..first + count].iter().any(|task| task.draws()) {
            return Ok(());
        }
        let args = Draw {
            logits: sampler.logits.address(),
            draws: sampler.row_words(first),
            changes: sampler.wanted.address() + 4 * sampler.places.changes as u64,
            out: sampler.picked_of(first),
            sampled: sampler.sampled.address() + 4 * first as u64,
            tokens: self.meta(self.step.counts.places().tokens),
            stride: padded(head.outputs) as u32,
            vocabulary: head.outputs as u32,
        };
        let shape = self.cluster_shape(head.outputs, count);
        // SAFETY: logits, rows and outputs have room for `count` rows from `first`, and the rows' changes lie behind them,
        // each of a token below the vocabulary; the step has the rows whose own tokens they name.
        unsafe { self.gpu.launch(&self.kernels.draw, &self.gpu.compute, shape, &args) }
    }

    /// Queues the search for the best tokens of `count` rows from `first`. Says how many of each row there are room for
    /// in `sampler.tops`; 0 where no row wants any.
    pub(super) fn top(&mut self, head: &Linear, first: usize, count: usize) -> Result<usize> {
        let sampler = &self.sampler;
        let rows = &sampler.draws.rows[first..first + count];
        if rows.iter().all(|words| words[12] == 0) {
            return Ok(0);
        }
        let most = sampler.draws.most_top();
        let args = Top {
            logits: sampler.logits.address(),
            draws: sampler.row_words(first),
            out: sampler.tops_of(first),
            stride: padded(head.outputs) as u32,
            vocabulary: head.outputs as u32,
            most: most as u32,
            unused: 0,
        };
        let shape = self.cluster_shape(head.outputs, count);
        // SAFETY: as above, with `most` best tokens a row.
        unsafe { self.gpu.launch(&self.kernels.top, &self.gpu.compute, shape, &args)? };
        Ok(most)
    }

    /// Whether any of these rows is left for `pick`.
    pub(super) fn has_picks(&self, first: usize, count: usize) -> bool {
        self.sampler.draws.tasks[first..first + count].iter().any(|task| task.is_picked())
    }

    /// As many blocks a row as keep the device busy, where blocks can share one. No token depends on how many there are.
    fn cluster_shape(&self, vocabulary: usize, rows: usize) -> Shape {
        let probe = &self.gpu.probe;
        let most = if probe.capability.0 >= 9 { MOST_BLOCKS } else { 1 };
        let busy = (2 * probe.multiprocessors / rows.max(1)).max(1);
        let worth = vocabulary.div_ceil(BLOCK_LOGITS).max(1);
        let blocks = 1 << busy.min(worth).min(most).ilog2();
        Shape { cluster: [blocks, 1, 1], ..Shape::new([blocks, rows, 1], THREADS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::penalties::adjust;
    use crate::sampling::tests::all_penalties;

    /// What `apply` in `draw.cu` does.
    fn apply(change: [u32; CHANGE_WORDS], penalties: Option<Penalties<'_>>, logit: f32) -> f32 {
        let [_, bias, kind, _] = change;
        let mut logit = if kind & BANNED != 0 { f32::NEG_INFINITY } else { logit };
        logit += f32::from_bits(bias);
        let Some(penalties) = penalties.filter(|_| kind & SEEN != 0) else { return logit };
        let repetition = penalties.repetition;
        logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
        let count = kind / ONCE;
        if count > 0 {
            logit -= penalties.presence + penalties.frequency * count as f32;
        }
        logit
    }

    #[test]
    fn changes_are_those_of_the_definition() {
        let logits = [0.7, -1.3, 2.9, 0.0, -0.4, 5.1, f32::NEG_INFINITY, f32::NAN, 1.0];
        let mut changes = Changes::default();
        for penalties in all_penalties() {
            for banned in [&[][..], &[4, 4, 1, u32::MAX]] {
                for bias in [&[][..], &[(1, 2.5), (8, -1.5), (2, 0.3), (u32::MAX, 5.0)]] {
                    let params =
                        SamplingParams { banned, bias, penalties, ..SamplingParams::GREEDY };
                    let mut expected = logits;
                    adjust(&mut expected, &params, 0);
                    let first = changes.list.len();
                    assert!(changes.add(&params, logits.len()));
                    let mut found = logits;
                    for &change in &changes.list[first..] {
                        let logit = &mut found[change[0] as usize];
                        *logit = apply(change, penalties, *logit);
                    }
                    assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits), "{params:?}");
                }
            }
        }
    }

    #[test]
    fn a_row_with_too_much_to_send_is_the_hosts_and_leaves_nothing_behind() {
        let tokens: Vec<Seen> =
            (0..2 * MOST_CHANGES as u32).map(|token| Seen { token, in_output: 0 }).collect();
        let penalties = |count: usize| Penalties {
            repetition: 1.1,
            presence: 0.0,
            frequency: 0.0,
            seen: &tokens[..count],
            own: false,
        };
        let mut draws = Draws::default();
        let mut task = |count, logprobs| {
            let penalties = Some(penalties(count));
            let params = SamplingParams { penalties, ..SamplingParams::GREEDY };
            let row = SampleRow { row: 0, task: SampleTask::Draw(params), logprobs };
            let task = draws.add(&row, tokens.len());
            (task, draws.changes.list.len())
        };
        assert_eq!(task(0, Some(0)), (Task::Best, 0));
        assert_eq!(task(MOST_CHANGES + 1, None), (Task::Host, 0));
        assert_eq!(task(MOST_CHANGES, None), (Task::Draw { scored: false }, MOST_CHANGES));
        assert_eq!(task(2, Some(MOST_TOP)), (Task::Draw { scored: true }, MOST_CHANGES + 2));
        assert_eq!(task(2, Some(MOST_TOP + 1)), (Task::Host, MOST_CHANGES + 2));
        assert_eq!(draws.most_top(), MOST_TOP as usize);
    }

    #[test]
    fn what_draws_do_not_need_is_not_sent() {
        let (mut draws, mut words) = (Draws::default(), vec![7]);
        let row = SampleRow { row: 7, task: SampleTask::Score(3), logprobs: Some(0) };
        assert_eq!(draws.add(&row, 10), Task::Score(3));
        draws.write(&mut words);
        assert_eq!(words[..2], [7, 3]);
        assert!(words.len() <= 4, "{words:?}");
        let params = SamplingParams { bias: &[(4, 1.0)], ..SamplingParams::GREEDY };
        let row = SampleRow { task: SampleTask::Draw(params), ..row };
        draws.add(&row, 10);
        words = vec![7, 7];
        let places = draws.write(&mut words);
        assert_eq!(words[places.tasks..places.tasks + 2], [3, u32::MAX - 2]);
        assert_eq!((places.rows % 2, places.changes % CHANGE_WORDS), (0, 0));
        let own = &words[places.rows + DRAW_WORDS..][..DRAW_WORDS];
        assert_eq!((own[6], own[7], own[11]), (0, 1, 2));
        assert_eq!(words[places.changes..], [4, 1.0_f32.to_bits(), 0, 0]);
    }
}
