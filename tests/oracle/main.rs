//! Adapters that change while tokens flow, judged token by token: the model of [`loraplex_tests::oracle`] says with
//! every token which weights drew it and whose KV it read. README.md beside this file says what the suite catches.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod answer;
mod clients;
mod dice;
mod explain;
mod history;
mod model;
mod names;
mod reloads;
mod room;
mod storm;
mod versions;
mod world;
