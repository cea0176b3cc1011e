//! The OpenAI-compatible server over the engine.
//!
//! | module | holds |
//! |---|---|
//! | [`args`], [`config`] | what was typed, the environment and a file, to one checked [`config::ServerConfig`] |
//! | [`run`] | a configuration to a server that serves until a signal |
//! | [`routes`] | the whole API on one screen: path, who may call it, what answers |
//! | `chat`, `completions`, `inference`, [`sglang`], `models`, `tokenize`, `health` | one group of handlers each |
//! | [`openai`] | wire types, shapes only |
//! | `extract`, `body`, `object`, `lax`, `convert` | queries, paths and bodies to engine requests: the last place that can say 400 |
//! | [`control`] | adapters that come and go while the server runs |
//! | [`hub`] | models and adapters of the Hugging Face Hub |
//! | [`mod@bench`], [`mod@growth`] | loads for this server or another, and what they find; how the time of a step grows |
//! | [`demo`] | the model that comes with the server |
//! | [`chat_template`] | conversations to prompts |
//! | `generate`, `reply`, `sse` | engine outputs to answers and streams |
//! | [`auth`], `limits`, [`serve`] | keys, hosts, connections |
//! | [`error`] | kinds of failure to statuses and bodies |
//!
//! What this crate must never do: compute, or know what a model is made of. It alone knows HTTP, JSON wire types, arguments
//! and the environment.
#![forbid(unsafe_code)]

pub mod args;
pub mod auth;
pub mod bench;
mod body;
mod chat;
pub mod chat_template;
mod completions;
pub mod config;
pub mod control;
mod convert;
pub mod demo;
pub mod error;
mod extract;
mod generate;
pub mod growth;
mod health;
pub mod hub;
mod inference;
mod lax;
mod limits;
pub mod lora_modules;
mod models;
mod object;
pub mod openai;
mod progress;
mod reply;
pub mod routes;
pub mod run;
mod sanitize;
mod seconds;
pub mod serve;
pub mod sglang;
pub mod shutdown;
mod sse;
pub mod state;
mod tokenize;
