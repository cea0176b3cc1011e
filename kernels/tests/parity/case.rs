//! What is run: model shapes, adapters, mixes of adapters over sequences, lengths and chunks.

use loraplex_kernels::{DType, Part};

/// Shape of a decoder of two layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
    pub(crate) window: Option<u32>,
    /// Bias of q, k and v (Qwen2).
    pub(crate) bias: bool,
    /// Norms of q and k (Qwen3).
    pub(crate) qk_norm: bool,
}

/// How a sequence goes through the steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    /// First step that it takes part in.
    pub(crate) arrives: usize,
    pub(crate) prompt: usize,
    /// Rows a step until the prompt is done.
    pub(crate) chunk: usize,
    /// Steps of one row after the prompt.
    pub(crate) decode: usize,
}

impl Life {
    pub(crate) const fn tokens(&self) -> usize {
        self.prompt + self.decode
    }
}

/// Which sequence uses which adapter: Punica's workloads (Chen et al. 2023) and a few more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// No adapter.
    Base,
    /// All the same.
    Identical,
    /// Each its own.
    Distinct,
    /// As many adapters as the root of the number of sequences, equally popular.
    Uniform,
    /// Each adapter is 1.5 times as popular as the next.
    Skewed,
    /// The popularity of adapter i is 1/(i + 1).
    Zipf,
    /// Every third sequence has none.
    Gaps,
}

/// Ranks of the parts, in the order of [`Part::ALL`]; 0 leaves a part alone.
pub(crate) type Ranks = [usize; 7];

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    /// Type of the weights as uploaded.
    pub(crate) host: DType,
    /// Weights of the base are rounded to 8 bits before they are uploaded.
    pub(crate) int8: bool,
    pub(crate) block_size: usize,
    pub(crate) adapters: Vec<Ranks>,
    pub(crate) mix: Mix,
    pub(crate) lives: Vec<Life>,
    /// Rows of one adapter are neighbours, as the engine sends them; otherwise sequences come in order of arrival.
    pub(crate) sorted: bool,
    /// A step is submitted before the results of the one before are fetched.
    pub(crate) one_behind: bool,
}

pub(crate) const SMALL: Shape = Shape {
    hidden: 64,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    ffn: 96,
    vocab: 48,
    window: None,
    bias: false,
    qk_norm: false,
};

/// Prompts in one piece and in chunks, decodes, arrivals in the middle.
const LIVES: [Life; 6] = [
    Life { arrives: 0, prompt: 5, chunk: 5, decode: 3 },
    Life { arrives: 0, prompt: 19, chunk: 7, decode: 2 },
    Life { arrives: 1, prompt: 1, chunk: 1, decode: 4 },
    Life { arrives: 1, prompt: 33, chunk: 16, decode: 1 },
    Life { arrives: 2, prompt: 8, chunk: 8, decode: 3 },
    Life { arrives: 3, prompt: 16, chunk: 3, decode: 0 },
];

pub(crate) fn base(name: impl Into<String>) -> Case {
    Case {
        name: name.into(),
        shape: SMALL,
        host: DType::Bf16,
        int8: false,
        block_size: 16,
        adapters: vec![[8; 7], [4; 7], [2; 7]],
        mix: Mix::Uniform,
        lives: LIVES.to_vec(),
        sorted: true,
        one_behind: false,
    }
}

/// All cases: each family changes one thing, so that a failure's name says where to look.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = shapes();
    cases.extend(ranks());
    cases.extend(sites());
    cases.extend(workloads());
    cases.extend(cache());
    cases.extend(int8());
    cases
}

/// Weights in 8 bits: whole blocks and parts of them, few rows and many.
fn int8() -> Vec<Case> {
    let wide = Shape { hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, ffn: 1536, ..SMALL };
    let odd = Shape { hidden: 72, heads: 3, kv_heads: 1, head_dim: 32, ffn: 136, ..SMALL };
    let all = Shape { bias: true, qk_norm: true, vocab: 1003, ..SMALL };
    let long = Life { arrives: 0, prompt: 150, chunk: 64, decode: 2 };
    let cases = [
        Case { mix: Mix::Base, ..base("base") },
        Case { adapters: vec![[1; 7], [64; 7], [3; 7]], mix: Mix::Distinct, ..base("mixed ranks") },
        Case { shape: all, host: DType::F32, ..base("bias and norms, from f32") },
        Case { shape: odd, ..base("parts of blocks") },
        Case { shape: wide, lives: vec![LIVES[2], LIVES[4]], ..base("hidden 576, ffn 1536") },
        Case { lives: vec![long, LIVES[0], LIVES[2]], ..base("a long prompt beside decodes") },
    ];
    let named = |case: Case| Case { int8: true, name: format!("int8, {}", case.name), ..case };
    cases.into_iter().map(named).collect()
}

fn shapes() -> Vec<Case> {
    let sizes = [
        // hidden, heads, kv heads, head dim, ffn
        (64, 4, 4, 16, 128),
        (72, 3, 1, 32, 136),
        (96, 4, 1, 64, 72),
        (128, 2, 2, 128, 200),
        (200, 5, 5, 80, 264),
        (320, 9, 3, 32, 512),
        (576, 9, 3, 64, 1536),
    ];
    let mut cases: Vec<Case> = sizes
        .into_iter()
        .map(|(hidden, heads, kv_heads, head_dim, ffn)| {
            let name =
                format!("hidden {hidden}, {heads}/{kv_heads} heads of {head_dim}, ffn {ffn}");
            let shape = Shape { hidden, heads, kv_heads, head_dim, ffn, ..SMALL };
            // Wide models take their time; a prompt beside two decodes shows as much.
            let lives = if hidden < 200 { LIVES.to_vec() } else { vec![LIVES[2], LIVES[4]] };
            Case { shape, lives, ..base(name) }
        })
        .collect();
    let bias = Shape { bias: true, ..SMALL };
    let qk_norm = Shape { qk_norm: true, ..SMALL };
    let wide_vocab = Shape { vocab: 1003, ..SMALL };
    cases.push(Case { shape: bias, ..base("bias") });
    cases.push(Case { shape: qk_norm, ..base("norms of q and k") });
    cases.push(Case { shape: Shape { bias: true, ..qk_norm }, ..base("bias and norms") });
    cases.push(Case { shape: wide_vocab, ..base("vocabulary of 1003") });
    cases.push(Case { host: DType::F32, ..base("weights in f32") });
    cases.push(Case { host: DType::F16, ..base("weights in f16") });
    cases
}

fn ranks() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 2, 3, 4, 7, 8, 16, 33, 64]
        .into_iter()
        .map(|rank| Case { adapters: vec![[rank; 7]], ..base(format!("rank {rank}")) })
        .collect();
    let mixed = vec![[1; 7], [64; 7], [3; 7], [8; 7], [16; 7], [7; 7]];
    cases.push(Case { adapters: mixed, mix: Mix::Distinct, ..base("ranks mixed over adapters") });
    let within = vec![[1, 16, 3, 8, 7, 2, 64], [5, 5, 8, 1, 16, 16, 4]];
    cases.push(Case { adapters: within.clone(), ..base("ranks mixed within an adapter") });
    // Nothing is a multiple of a vector's width or of a cache line.
    for (hidden, head_dim, ffn) in [(72, 32, 136), (200, 80, 264)] {
        let shape = Shape { hidden, heads: 3, kv_heads: 1, head_dim, ffn, ..SMALL };
        let adapters = [vec![[1, 3, 7, 5, 1, 2, 3], [7; 7]], within.clone()].concat();
        let name = format!("odd ranks, hidden {hidden}");
        cases.push(Case { shape, adapters, lives: LIVES[..3].to_vec(), ..base(name) });
    }
    cases
}

fn sites() -> Vec<Case> {
    let only = |parts: &[Part]| {
        let mut ranks = [0; 7];
        for part in parts {
            ranks[*part as usize] = 8;
        }
        ranks
    };
    let qv = only(&[Part::Q, Part::V]);
    let mut cases = vec![
        Case { adapters: vec![qv], ..base("only q and v") },
        Case { adapters: vec![qv, only(&[Part::Down])], ..base("q and v, or down") },
        Case { adapters: vec![[0; 7], qv], ..base("an adapter without parts") },
    ];
    for part in Part::ALL {
        cases.push(Case { adapters: vec![only(&[part])], ..base(format!("only {part:?}")) });
    }
    cases
}

fn workloads() -> Vec<Case> {
    let many: Vec<Ranks> = (0..12).map(|i| [[8; 7], [4; 7], [16; 7], [1; 7]][i % 4]).collect();
    let lives: Vec<Life> = (0..12)
        .map(|i| Life { arrives: i % 3, prompt: 1 + i % 5, chunk: 4, decode: 2 + i % 2 })
        .collect();
    let mut cases = Vec::new();
    for mix in
        [Mix::Base, Mix::Identical, Mix::Distinct, Mix::Uniform, Mix::Skewed, Mix::Zipf, Mix::Gaps]
    {
        for sorted in [true, false] {
            let name = format!("{mix:?}, {}", if sorted { "sorted" } else { "by arrival" });
            let (adapters, lives) = (many.clone(), lives.clone());
            cases.push(Case { mix, sorted, adapters, lives, ..base(name) });
        }
    }
    cases.push(Case { one_behind: true, ..base("one step in flight") });
    let decodes = Life { arrives: 0, prompt: 1, chunk: 1, decode: 20 };
    cases.push(Case { lives: vec![decodes], ..base("one sequence, row by row") });
    let long = Life { arrives: 0, prompt: 150, chunk: 64, decode: 2 };
    cases.push(Case {
        lives: vec![long, LIVES[0], LIVES[2]],
        ..base("a long prompt beside decodes")
    });
    cases
}

fn cache() -> Vec<Case> {
    let mut cases = Vec::new();
    for block_size in [1, 8, 16, 32] {
        cases.push(Case { block_size, ..base(format!("blocks of {block_size}")) });
    }
    for window in [1, 4, 16, 17, 1000] {
        let shape = Shape { window: Some(window), ..SMALL };
        cases.push(Case { shape, ..base(format!("window of {window}")) });
    }
    // Whole, a prompt of so many rows shares what it reads of the cache; in chunks it does not.
    let lives = vec![Life { arrives: 0, prompt: 135, chunk: 33, decode: 2 }, LIVES[2]];
    for (block_size, window) in [(8, None), (32, Some(20)), (16, Some(70)), (1, None)] {
        let shape = Shape { window, heads: 6, head_dim: 20, ..SMALL };
        let name = format!("a long prompt in blocks of {block_size}, window of {window:?}");
        cases.push(Case { shape, block_size, lives: lives.clone(), ..base(name) });
    }
    cases
}
