//! Adapters that change while tokens flow, judged token by token: the model of [`loraplex_tests::oracle`] says with
//! every token which weights drew it and whose KV it read. README.md beside this file says what the suite catches.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod answer;
mod dice;
mod explain;
mod history;
mod model;
mod storm;
mod world;
