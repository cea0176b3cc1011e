//! Wire types: what OpenAI's, and vLLM's, clients send and read. Shapes only; `convert` checks what they say.

pub mod call;
pub mod chat;
pub mod completion;
pub mod error;
pub mod inference;
pub mod input;
pub mod logprobs;
pub mod model;
pub mod sampling;
pub mod tokenize;
pub mod unsupported;
pub mod usage;
pub mod weights;
