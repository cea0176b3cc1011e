//! Q5: pauses, loads, aborts and resumes in every order, held against a model of what they mean.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Counting, engine_of, request};
use crate::adapter::testing::adapter;
use crate::engine::{EngineHandle, OutputStream, PauseMode};
use crate::error::{ErrorKind, Result};
use crate::kv_cache::BlockManager;
use crate::request::{FinishReason, GenerateRequest, Output, UpdatePolicy};

/// What a trainer can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Pause(PauseMode),
    Load,
    Abort,
    Resume,
}

const OPS: [Op; 6] = [
    Op::Pause(PauseMode::Keep),
    Op::Pause(PauseMode::Wait),
    Op::Pause(PauseMode::Abort),
    Op::Load,
    Op::Abort,
    Op::Resume,
];

/// What the engine should be. One request runs whenever nothing keeps it from running; it never ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Model {
    pause: Option<PauseMode>,
    /// A pause has been asked for and does not hold yet.
    pending: bool,
    alive: bool,
    generation: u64,
}

impl Model {
    /// The next state, and how the pending pause was answered, if it was.
    fn after(mut self, op: Op) -> (Self, Option<bool>) {
        let was_pending = std::mem::take(&mut self.pending);
        let mut answer = was_pending.then_some(false);
        match op {
            Op::Pause(mode) => {
                self.pause = Some(mode);
                self.alive &= mode != PauseMode::Abort;
                self.pending = mode == PauseMode::Wait && self.alive;
            }
            Op::Load => {
                self.generation += 1;
                (self.pending, answer) = (was_pending, None);
            }
            Op::Abort => {
                self.alive = false;
                answer = was_pending.then_some(true);
            }
            Op::Resume => (self.pause, self.alive) = (None, true),
        }
        (self, answer)
    }

    fn frozen(&self) -> bool {
        self.pause == Some(PauseMode::Keep)
    }
}

/// The engine, its endless request, and the pause that has not been answered.
struct Trial {
    engine: EngineHandle,
    stream: Option<OutputStream>,
    pending: Option<BoxFuture<'static, Result<()>>>,
    /// The request's tokens count up from here.
    next: u32,
    model: Model,
}

const FIRST: u32 = 2000;
/// Tokens of a sequence at most, more than any of these draws.
const MOST: usize = 1 << 18;

#[test]
fn every_order_of_pause_load_abort_and_resume_does_what_it_means() {
    check_orders(false, 5);
}

#[test]
fn so_it_does_with_steps_that_run_ahead() {
    check_orders(true, 4);
}

/// Every order of so many.
fn check_orders(ahead: bool, length: u32) {
    super::wait(async {
        let runner = Counting { pace: Duration::from_micros(1), ..Counting::default() };
        let engine = engine_of(runner, |options| {
            options.scheduler.run_ahead = Some(ahead);
            options.max_model_len = MOST + 1;
            options.vocab_size = MOST;
            options.blocks = BlockManager::new(MOST, 4, true);
        });
        let model = Model { pause: None, pending: false, alive: false, generation: 1 };
        let mut trial = Trial { engine, stream: None, pending: None, next: 0, model };
        for order in 0..OPS.len().pow(length) {
            trial.obey(Op::Resume).await;
            let ops: Vec<Op> =
                (0..length).map(|at| OPS[order / OPS.len().pow(at) % OPS.len()]).collect();
            for &op in &ops {
                trial.obey(op).await;
                assert!(trial.agrees(), "{:?} in {ops:?}", trial.model);
            }
            // A shorter order is one that opens with a resume, which does nothing.
            assert!(trial.greets().await, "{:?} after {ops:?}", trial.model);
        }
        trial.obey(Op::Abort).await;
        trial.obey(Op::Resume).await;
        trial.obey(Op::Abort).await;
        assert!(trial.engine.reset_prefix_cache().await.unwrap(), "a block is still in use");
    });
}

impl Trial {
    async fn obey(&mut self, op: Op) {
        let before = self.model;
        let (model, answer) = before.after(op);
        self.model = model;
        match op {
            Op::Pause(mode) => {
                let engine = self.engine.clone();
                let mut pause = async move { engine.pause(mode, false, None).await }.boxed();
                // Sent by the first poll, so that it comes before whatever is sent next.
                let early = (&mut pause).now_or_never();
                let old = self.pending.take();
                self.settle(old, answer).await;
                match (model.pending, early) {
                    (true, early) => {
                        assert!(early.is_none(), "a request runs: {early:?}");
                        self.pending = Some(pause);
                        // Commands are obeyed in order: once this one is answered, the pause has been taken.
                        self.engine.release_adapters().await.unwrap();
                    }
                    (false, Some(held)) => held.unwrap(),
                    (false, None) => pause.await.unwrap(),
                }
            }
            Op::Load => {
                let new = adapter("x", model.generation, 10);
                self.engine.replace(new).await.unwrap();
            }
            Op::Abort => {
                let ended = self.engine.abort_requests(None).await.unwrap();
                assert_eq!(ended, usize::from(before.alive));
            }
            Op::Resume => self.engine.resume().await.unwrap(),
        }
        if answer.is_some() && !matches!(op, Op::Pause(_)) {
            let old = self.pending.take();
            self.settle(old, answer).await;
        }
        self.follow(before).await;
    }

    /// An earlier pause is answered as the model says.
    async fn settle(
        &mut self,
        pause: Option<BoxFuture<'static, Result<()>>>,
        answer: Option<bool>,
    ) {
        let Some(pause) = pause else { return };
        match (answer, pause.await) {
            (Some(true), held) => held.unwrap(),
            (_, held) => assert_eq!(held.unwrap_err().kind, ErrorKind::Conflict),
        }
    }

    /// Reads what the request has to show for it.
    async fn follow(&mut self, before: Model) {
        let model = self.model;
        if !model.alive {
            while let Some(piece) = self.read().await {
                if let Some(finish) = piece.finish {
                    assert_eq!(finish.reason, FinishReason::Abort, "with the tokens so far");
                    self.stream = None;
                }
            }
            return;
        }
        if !before.alive {
            let mut request = endless();
            request.adapter = Some(adapter("x", model.generation, 10));
            (self.stream, self.next) = (Some(self.engine.submit(request).unwrap()), FIRST + 1);
        }
        if model.frozen() {
            // What it had drawn before it stood still; from then on there is nothing to read.
            while !before.frozen() && self.read_now() {}
            return;
        }
        loop {
            let piece = self.read().await.expect("it runs");
            assert_eq!(piece.finish, None);
            let newest = piece.tokens.last().and_then(|token| token.version);
            if newest.is_some_and(|version| version.generation == model.generation) {
                return;
            }
        }
    }

    /// Tokens follow each other, whatever happened between them.
    fn check(&mut self, piece: &Output) {
        for token in &piece.tokens {
            assert_eq!(token.id, self.next);
            self.next += 1;
            let generation = token.version.map(|version| version.generation);
            assert!(generation <= Some(self.model.generation));
        }
    }

    async fn read(&mut self) -> Option<Output> {
        let piece = self.stream.as_mut()?.next().await?.unwrap();
        self.check(&piece);
        Some(piece)
    }

    fn read_now(&mut self) -> bool {
        let next = self.stream.as_mut().and_then(|stream| stream.next().now_or_never());
        let Some(piece) = next else { return false };
        let piece = piece.expect("it is alive").unwrap();
        assert_eq!(piece.finish, None);
        self.check(&piece);
        true
    }

    /// What can be seen from outside.
    fn agrees(&mut self) -> bool {
        let moved = self.model.frozen() && self.read_now();
        self.engine.is_paused() == self.model.pause.is_some()
            && self.stream.is_some() == self.model.alive
            && !moved
    }

    /// Whether a newcomer fares as it should: it queues, is turned away, or is served.
    async fn greets(&mut self) -> bool {
        let newcomer = self.engine.submit(request(20, 1)).unwrap().collect();
        match self.model.pause {
            Some(PauseMode::Keep) => newcomer.now_or_never().is_none(),
            Some(_) => newcomer.await.is_err_and(|error| error.kind == ErrorKind::Unavailable),
            None => newcomer.await.is_ok_and(|output| output.tokens.len() == 1),
        }
    }
}

fn endless() -> GenerateRequest {
    GenerateRequest { update_policy: UpdatePolicy::Follow, ..request(FIRST, MOST as u32 / 2) }
}
