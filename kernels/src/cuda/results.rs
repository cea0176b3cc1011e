//! What a step gives, on its way to the host.

use std::sync::Arc;

use cudarc::driver::CudaEvent;

use super::draws::{Draws, Task};
use super::error::Context as _;
use super::gpu::Gpu;
use super::memory::Pinned;
use crate::args::{Penalties, SampleRow, SampleTask, SamplingParams, StepOutput};
use crate::error::Result;
use crate::sampling::{Sampled, SamplingScratch, Seen, sample_row};

/// Rows whose logits the host holds at once.
const HOST_ROWS: usize = 64;
/// Words of `Picked` in `sample.cu`, and of a best token in `draw.cu`.
pub(super) const PICKED_WORDS: usize = 4;
pub(super) const TOP_WORDS: usize = 2;

/// Results of one step: copies under way until `ready`, then read row by row.
#[derive(Debug)]
pub(super) struct Results {
    gpu: Arc<Gpu>,
    ready: CudaEvent,
    rows: Vec<Row>,
    vocabulary: usize,
    /// `Picked` of every row.
    picked: Option<Pinned>,
    /// Best tokens of every row and their logits, `most_top` each.
    tops: Option<Pinned>,
    most_top: usize,
    /// Of the row that is read.
    top: Vec<(u32, f32)>,
    /// Logits of rows that the host finishes, `HOST_ROWS` at most.
    logits: Option<Pinned>,
    /// How many of them are taken.
    taken: usize,
    output: StepOutput,
}

#[derive(Debug)]
struct Row {
    task: Task,
    logprobs: Option<u32>,
    /// What the host needs to know.
    own: Option<OwnTask>,
    /// The row's own token, where the host asks for it.
    token: u32,
    /// Place among the logits on the host.
    place: usize,
}

/// A task that outlives the call that brought it.
#[derive(Debug)]
enum OwnTask {
    Draw(Box<OwnParams>),
    Score(u32),
}

#[derive(Debug)]
struct OwnParams {
    banned: Vec<u32>,
    bias: Vec<(u32, f32)>,
    penalties: Option<OwnPenalties>,
    /// The numbers; its slices are empty.
    numbers: SamplingParams<'static>,
}

#[derive(Debug)]
struct OwnPenalties {
    seen: Vec<Seen>,
    /// The numbers; its slice is empty.
    numbers: Penalties<'static>,
}

impl OwnTask {
    fn new(task: &SampleTask<'_>) -> Self {
        match task {
            SampleTask::Score(token) => Self::Score(*token),
            SampleTask::Draw(params) => Self::Draw(Box::new(OwnParams {
                banned: params.banned.to_vec(),
                bias: params.bias.to_vec(),
                penalties: params.penalties.as_ref().map(|penalties| OwnPenalties {
                    seen: penalties.seen.to_vec(),
                    numbers: Penalties { seen: &[], ..*penalties },
                }),
                numbers: SamplingParams { banned: &[], bias: &[], penalties: None, ..*params },
            })),
        }
    }

    fn task(&self) -> SampleTask<'_> {
        match self {
            Self::Score(token) => SampleTask::Score(*token),
            Self::Draw(own) => SampleTask::Draw(SamplingParams {
                banned: &own.banned,
                bias: &own.bias,
                penalties: own
                    .penalties
                    .as_ref()
                    .map(|penalties| Penalties { seen: &penalties.seen, ..penalties.numbers }),
                ..own.numbers
            }),
        }
    }
}

impl Results {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(Self {
            gpu: gpu.clone(),
            ready: gpu.context.new_event(None).during("making an event")?,
            rows: Vec::new(),
            vocabulary: 0,
            picked: None,
            tops: None,
            most_top: 0,
            top: Vec::new(),
            logits: None,
            taken: 0,
            output: StepOutput::default(),
        })
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.output.clear();
        self.taken = 0;
    }

    /// Takes the rows of a step, and tells `draws` of them. `token` finds a row's own token.
    pub(super) fn begin(
        &mut self,
        vocabulary: usize,
        rows: &[SampleRow<'_>],
        draws: &mut Draws,
        mut token: impl FnMut(u32) -> Result<u32>,
    ) -> Result<()> {
        self.vocabulary = vocabulary;
        draws.clear();
        let mut host_rows = 0;
        for row in rows {
            let task = draws.add(row, vocabulary);
            let own = (task == Task::Host).then(|| OwnTask::new(&row.task));
            host_rows += usize::from(own.is_some());
            let asks = own.is_some() && row.counts_own_token();
            let token = if asks { token(row.row)? } else { 0 };
            self.rows.push(Row { task, logprobs: row.logprobs, own, token, place: 0 });
        }
        let picked = rows.len().next_power_of_two() * PICKED_WORDS * 4;
        reserve(&self.gpu, &mut self.picked, picked)?;
        self.most_top = draws.most_top();
        if self.most_top > 0 {
            let tops = rows.len().next_power_of_two() * self.most_top * TOP_WORDS * 4;
            reserve(&self.gpu, &mut self.tops, tops)?;
        }
        let logits = host_rows.next_power_of_two().min(HOST_ROWS) * vocabulary * 4;
        if host_rows > 0 {
            reserve(&self.gpu, &mut self.logits, logits)?;
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_on_device(&self, row: usize) -> bool {
        self.rows[row].task != Task::Host
    }

    /// Where the device's results of some rows go.
    pub(super) fn picked_words(&mut self, first: usize, count: usize) -> &mut [u32] {
        let words = self.picked.as_mut().expect("reserved by `begin`").as_mut_slice::<u32>();
        &mut words[first * PICKED_WORDS..(first + count) * PICKED_WORDS]
    }

    /// Where the best tokens of some rows go.
    pub(super) fn top_words(&mut self, first: usize, count: usize) -> &mut [u32] {
        let words = self.tops.as_mut().expect("reserved by `begin`").as_mut_slice::<u32>();
        let each = self.most_top * TOP_WORDS;
        &mut words[first * each..(first + count) * each]
    }

    /// Whether all room for logits is taken.
    pub(super) fn is_full(&self) -> bool {
        let bytes = self.logits.as_ref().map_or(0, Pinned::bytes);
        (self.taken + 1) * self.vocabulary * 4 > bytes
    }

    /// Takes room for a row's logits.
    pub(super) fn logits_of(&mut self, row: usize) -> &mut [f32] {
        let place = self.taken;
        self.rows[row].place = place;
        self.taken += 1;
        let logits = self.logits.as_mut().expect("reserved by `begin`").as_mut_slice::<f32>();
        &mut logits[place * self.vocabulary..(place + 1) * self.vocabulary]
    }

    /// Everything queued so far is what has to be there before rows are read.
    pub(super) fn record(&self) -> Result<()> {
        self.ready.record(&self.gpu.compute).during("recording a step")
    }

    /// Whether the device is through with the step.
    pub(super) fn has_ended(&self) -> bool {
        !matches!(self.ready.try_is_complete(), Ok(false))
    }

    /// Reads the rows before `end` once they are there, and frees the room for logits.
    pub(super) fn advance(&mut self, end: usize, scratch: &mut SamplingScratch) -> Result<()> {
        if self.output.tokens.len() >= end {
            return Ok(());
        }
        self.ready.synchronize().during("waiting for a step")?;
        for index in self.output.tokens.len()..end {
            let row = &self.rows[index];
            match &row.own {
                None => {
                    let picked = self.picked.as_ref().expect("reserved by `begin`");
                    let words = &picked.as_slice::<u32>()[index * PICKED_WORDS..][..PICKED_WORDS];
                    let wanted = row.logprobs.is_some();
                    self.top.clear();
                    if let (Some(count @ 1..), Some(tops)) = (row.logprobs, &self.tops) {
                        let each = self.most_top * TOP_WORDS;
                        let tops = &tops.as_slice::<u32>()[index * each..][..each];
                        let log_sum = f32::from_bits(words[3]);
                        read_top(&tops[..count as usize * TOP_WORDS], log_sum, &mut self.top);
                    }
                    let sampled = Sampled {
                        token: words[0],
                        logprob: if wanted { f32::from_bits(words[1]) } else { f32::NAN },
                        rank: if wanted { words[2] } else { 0 },
                    };
                    self.output.push(sampled, &self.top);
                }
                Some(own) => {
                    let span = row.place * self.vocabulary..(row.place + 1) * self.vocabulary;
                    let logits = self.logits.as_mut().expect("reserved by `begin`");
                    let logits = &mut logits.as_mut_slice::<f32>()[span];
                    let wanted = SampleRow { row: 0, task: own.task(), logprobs: row.logprobs };
                    let sampled = sample_row(logits, &wanted, row.token, scratch);
                    self.output.push(sampled, scratch.top());
                }
            }
        }
        self.taken = 0;
        Ok(())
    }

    /// Reads all rows.
    pub(super) fn finish(&mut self, scratch: &mut SamplingScratch) -> Result<()> {
        self.advance(self.rows.len(), scratch)
    }

    pub(super) fn output(&self) -> &StepOutput {
        &self.output
    }
}

/// Best tokens with their log-probabilities, computed as `pick` computes the chosen token's.
fn read_top(words: &[u32], log_sum: f32, top: &mut Vec<(u32, f32)>) {
    let (found, _) = words.as_chunks::<TOP_WORDS>();
    let found = found.iter().take_while(|[token, _]| *token != u32::MAX);
    let best = f32::from_bits(words[1]);
    top.extend(found.map(|&[token, logit]| {
        let logit = f32::from_bits(logit);
        let distance = if logit == best { 0.0 } else { logit - best };
        (token, distance - log_sum)
    }));
}

/// Makes page-locked memory larger if it is too small.
fn reserve(gpu: &Arc<Gpu>, memory: &mut Option<Pinned>, bytes: usize) -> Result<()> {
    if memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
        *memory = Some(Pinned::new(gpu, bytes)?);
    }
    Ok(())
}
