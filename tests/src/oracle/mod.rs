//! A model whose tokens say which weights made them.
//!
//! A [`Label`] is a number of two digits; 0 is the base, and every load of an adapter takes one of the others. A token
//! is two labels, `own` and `read`, and its text is both, such as `42.17`:
//!
//! - `own` is written by the adapter of the row that drew the token: its tens in layer 0, by `o_proj`, and its units in
//!   layer 1, by `down_proj`. A step that took its layers from two generations names a label that neither has.
//! - `read` is what the row found in the KV cache. Keys and values carry the label of whoever computed them, tens in
//!   layer 0 and units in layer 1, and queries avoid their own label: attention spreads evenly while every position has
//!   it, and goes to the others as soon as a single position has another. So `read` equals `own` exactly when the whole
//!   context was computed with the weights that drew the token, and names a foreign label otherwise (where several
//!   are foreign, each digit is the one that most of them have).
//!
//! What the tokens are does not matter to the weights: any prompt will do. The weights are written by hand; every digit
//! wins by a margin that no rounding reaches.

mod adapter;
mod model;
mod tensors;

pub use adapter::AdapterFiles;
pub use model::write_model;

/// Labels, the base's included: two digits of ten.
pub const LABELS: u32 = 100;
/// Tokens of the vocabulary: pairs of labels.
pub const VOCAB: u32 = LABELS * LABELS;

/// Which weights: 0 is the base, 1 to 99 are adapters'.
pub type Label = u32;

/// What a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Who drew it.
    pub own: Label,
    /// Whom its context is from.
    pub read: Label,
}

impl Said {
    /// What `token` says.
    pub fn by(token: u32) -> Self {
        Self { own: token / LABELS, read: token % LABELS }
    }
}

/// Tens and units.
fn digits(label: Label) -> [usize; 2] {
    [label as usize / 10, label as usize % 10]
}

/// Where things lie in the residual stream and in a head; the rest is zero.
mod place {
    /// Width of the residual stream.
    pub(super) const HIDDEN: usize = 64;
    /// The same for every token: what weights read to write a label.
    pub(super) const ONE: usize = 0;
    /// Ten places for each digit of `own`, then for each of `read`.
    pub(super) const OWN: [usize; 2] = [1, 11];
    pub(super) const READ: [usize; 2] = [21, 31];
    /// Width of the only head.
    pub(super) const HEAD: usize = 32;
    /// Keys and queries: ten places whose rotation is too slow to be seen.
    pub(super) const KEY: usize = 6;
    /// Values: ten places for a digit, then one that is 1 at every position.
    pub(super) const VALUE_ONE: usize = 10;
    /// Width of the MLP.
    pub(super) const FFN: usize = 32;
}
