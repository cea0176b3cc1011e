//! Puts a plan on a server: so many at once (closed loop), or each at its time (open loop).

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Reload};
use super::stats::Sample;
use super::workload::{Mix, Planned};

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of the requests that were answered.
    pub samples: Vec<Sample>,
    /// Why the others were not.
    pub errors: Vec<String>,
    /// Replacements in place.
    pub reloads: Vec<Reload>,
    /// From the first request's turn to the last one's end.
    pub duration: Duration,
    /// What this machine read from memory a second before and after, if that was measured.
    pub read_gb_s: Option<(f64, f64)>,
}

/// Whom requests go to.
#[derive(Debug)]
pub struct Target {
    /// The server.
    pub client: Client,
    /// The base's name.
    pub base: String,
    /// Names of adapters.
    pub adapters: Vec<String>,
    /// Requests in flight at most.
    pub concurrency: usize,
}

impl Target {
    /// Sends all of `plan`, and replaces an adapter meanwhile if `mix` says so.
    pub async fn drive(&self, mix: Mix, plan: Vec<Planned>, bar: &ProgressBar) -> Outcome {
        let Some((replaced, every)) = mix.replaces() else { return self.send(plan, bar).await };
        let over = CancellationToken::new();
        let mut reloads = Vec::new();
        let mut errors = Vec::new();
        let replacing = async {
            let name = &self.adapters[replaced];
            // One that is under way when the last request ends is waited for.
            while timeout(every, over.cancelled()).await.is_err() {
                match self.client.reload(name).await {
                    Ok(reload) => reloads.push(reload),
                    Err(error) => errors.push(format!("{name} is not replaced: {error:#}")),
                }
            }
        };
        let sending = async {
            let outcome = self.send(plan, bar).await;
            over.cancel();
            outcome
        };
        let (mut outcome, ()) = tokio::join!(sending, replacing);
        outcome.reloads = reloads;
        outcome.errors.extend(errors);
        outcome
    }

    /// Sends all of `plan`. A place in flight is taken in the plan's order, at the request's time.
    async fn send(&self, plan: Vec<Planned>, bar: &ProgressBar) -> Outcome {
        let places = Arc::new(Semaphore::new(self.concurrency));
        let mut running = JoinSet::new();
        let mut outcome = Outcome::default();
        let start = Instant::now();
        for planned in plan {
            tokio::time::sleep_until((start + planned.at).into()).await;
            let place = places.clone().acquire_owned().await.expect("nobody closes it");
            let model = planned.adapter.map_or(&self.base, |index| &self.adapters[index]).clone();
            let client = self.client.clone();
            let bar = bar.clone();
            running.spawn(async move {
                let result = client.complete(&model, &planned).await;
                drop(place);
                bar.inc(1);
                result
            });
        }
        while let Some(result) = running.join_next().await {
            match result {
                Ok(Ok(sample)) => outcome.samples.push(sample),
                Ok(Err(error)) => outcome.errors.push(format!("{error:#}")),
                Err(error) => outcome.errors.push(error.to_string()),
            }
        }
        outcome.duration = start.elapsed();
        outcome
    }
}
