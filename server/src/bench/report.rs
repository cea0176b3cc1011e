//! Outcomes to what is written: JSON, and a table for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;

use super::drive::Outcome;
use super::stats::{Figures, Ratio, Sample, Spread, median};
use super::workload::Mix;

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of this layout; a field that changes its meaning raises it.
    pub schema: u32,
    /// The server that was measured.
    pub server: String,
    /// The base's name.
    pub base_model: String,
    /// As typed.
    pub shape: String,
    /// Requests of a mix in one round.
    pub requests: usize,
    /// Rounds.
    pub rounds: usize,
    /// Requests in flight at most; `null` where there is no limit.
    pub concurrency: Option<usize>,
    /// Arrivals a second; `null` in a closed loop.
    pub request_rate: Option<f64>,
    /// Of everything that was drawn.
    pub seed: u64,
    /// The base first.
    pub mixes: Vec<MixReport>,
}

/// One mix over all rounds.
#[derive(Debug, Serialize)]
pub struct MixReport {
    /// As typed.
    pub mix: String,
    /// Distinct adapters that it may ask.
    pub adapters: usize,
    /// Of all rounds together: percentiles over all requests, rates over the sum of the rounds' times.
    pub all: Figures,
    /// Of each round.
    pub rounds: Vec<Figures>,
    /// Against the base.
    pub ratio_to_base: Ratios,
    /// Replacements in place, from asking for one to its answer; `null` where there were none.
    pub reload_ms: Option<Spread>,
    /// How many.
    pub reloads: usize,
    /// What the server says its stages took of that, medians; empty where it does not.
    pub reload_stages_ms: BTreeMap<String, f64>,
    /// What this machine read from memory a second, before and after each round; empty where it was not measured.
    pub read_gb_s: Vec<(f64, f64)>,
    /// One of the failures, if there were any.
    pub error: Option<String>,
    /// Every request's end-to-end time in ms, in order of size; for the picture.
    #[serde(skip)]
    pub e2e_ms: Vec<f64>,
}

/// Medians of a mix against those of the base, with the spread over rounds.
#[derive(Debug, Default, Serialize)]
pub struct Ratios {
    /// Output tokens a second; above 1 is faster than the base.
    pub output_tokens_per_s: Ratio,
    /// Prompt and output tokens a second.
    pub total_tokens_per_s: Ratio,
    /// Median time to the first token; above 1 is slower than the base.
    pub ttft: Ratio,
    /// Median time between chunks.
    pub itl: Ratio,
    /// 99th percentile of the time between chunks.
    pub itl_p99: Ratio,
    /// Median time per token after the first.
    pub tpot: Ratio,
    /// Median end-to-end time.
    pub e2e: Ratio,
}

/// Sums up: `outcomes` holds a mix's rounds, the base's first.
pub fn mixes(outcomes: Vec<(Mix, Vec<Outcome>)>) -> Vec<MixReport> {
    let mut reports: Vec<MixReport> = outcomes.into_iter().map(|(m, o)| sum(m, o)).collect();
    let Some(base) = reports.first().map(|base| base.rounds.clone()) else { return reports };
    for report in &mut reports {
        let ratio = |value: fn(&Figures) -> f64| {
            let values = |rounds: &[Figures]| rounds.iter().map(value).collect::<Vec<_>>();
            Ratio::of(&values(&report.rounds), &values(&base))
        };
        report.ratio_to_base = Ratios {
            output_tokens_per_s: ratio(|figures| figures.output_tokens_per_s),
            total_tokens_per_s: ratio(|figures| figures.total_tokens_per_s),
            ttft: ratio(|figures| figures.ttft_ms.median),
            itl: ratio(|figures| figures.itl_ms.median),
            itl_p99: ratio(|figures| figures.itl_ms.p99),
            tpot: ratio(|figures| figures.tpot_ms.median),
            e2e: ratio(|figures| figures.e2e_ms.median),
        };
    }
    reports
}

fn sum(mix: Mix, outcomes: Vec<Outcome>) -> MixReport {
    let rounds: Vec<Figures> = outcomes
        .iter()
        .map(|outcome| Figures::of(&outcome.samples, outcome.errors.len(), outcome.duration))
        .collect();
    let duration = outcomes.iter().map(|outcome| outcome.duration).sum();
    let failed = outcomes.iter().map(|outcome| outcome.errors.len()).sum();
    let error = outcomes.iter().find_map(|outcome| outcome.errors.first().cloned());
    let all = || outcomes.iter().flat_map(|outcome| &outcome.reloads);
    let reloads: Vec<f64> = all().map(|reload| reload.took.as_secs_f64() * 1e3).collect();
    let stages: BTreeSet<&String> = all().flat_map(|reload| reload.stages.keys()).collect();
    let of = |stage: &String| median(all().filter_map(|reload| reload.stages.get(stage).copied()));
    let reload_stages_ms = stages.into_iter().map(|stage| (stage.clone(), of(stage))).collect();
    let read_gb_s = outcomes.iter().filter_map(|outcome| outcome.read_gb_s).collect();
    let samples: Vec<Sample> = outcomes.into_iter().flat_map(|outcome| outcome.samples).collect();
    let mut e2e_ms: Vec<f64> = samples.iter().map(|s| s.e2e.as_secs_f64() * 1e3).collect();
    e2e_ms.sort_by(f64::total_cmp);
    MixReport {
        mix: mix.name(),
        adapters: mix.adapters(),
        all: Figures::of(&samples, failed, duration),
        rounds,
        ratio_to_base: Ratios::default(),
        reloads: reloads.len(),
        reload_stages_ms,
        reload_ms: (!reloads.is_empty()).then(|| Spread::of(reloads)),
        read_gb_s,
        error,
        e2e_ms,
    }
}

impl Report {
    /// For a terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let loop_ = match (self.request_rate, self.concurrency) {
            (Some(rate), _) => format!("{rate} requests/s"),
            (None, at_once) => format!("{} at once", at_once.unwrap_or(self.requests)),
        };
        let _ = writeln!(
            text,
            "{} on {}: shape {}, {loop_}, {} rounds of {} requests each\n\n\
             {:<14} {:>8} {:>8}  {:<20} {:>22} {:>20} {:>20} {:>25} {:>6}",
            self.base_model,
            self.server,
            self.shape,
            self.rounds,
            self.requests,
            "mix",
            "out t/s",
            "all t/s",
            "out, share of base",
            "TTFT ms 50/90/99%",
            "ITL ms 50/90/99%",
            "TPOT ms 50/90/99%",
            "E2E ms 50/90/99%",
            "failed"
        );
        for mix in &self.mixes {
            let share = mix.ratio_to_base.output_tokens_per_s;
            let three = |spread: Spread| {
                format!("{:.1} {:.1} {:.1}", spread.median, spread.p90, spread.p99)
            };
            let _ = writeln!(
                text,
                "{:<14} {:>8.1} {:>8.1}  {:<20} {:>22} {:>20} {:>20} {:>25} {:>6}",
                mix.mix,
                mix.all.output_tokens_per_s,
                mix.all.total_tokens_per_s,
                format!("{:.3} ({:.3}-{:.3})", share.of_medians, share.min, share.max),
                three(mix.all.ttft_ms),
                three(mix.all.itl_ms),
                three(mix.all.tpot_ms),
                three(mix.all.e2e_ms),
                mix.all.failed
            );
        }
        let is_backlog = |at_once| at_once >= self.requests && self.request_rate.is_none();
        if self.concurrency.is_some_and(is_backlog) {
            // A backlog: who comes last matters as much as how many come a second.
            for mix in self.mixes.iter().filter(|mix| mix.all.ttft_ms.median > 0.0) {
                let waits = mix.all.ttft_ms;
                let _ = writeln!(
                    text,
                    "{}: nobody waited longer than {:.1} times the median for a first token",
                    mix.mix,
                    waits.max / waits.median
                );
            }
        }
        for mix in &self.mixes {
            if let Some(took) = &mix.reload_ms {
                let _ = writeln!(text, "{}", mix.replacements(took));
            }
            if !mix.read_gb_s.is_empty() {
                let read = median(mix.read_gb_s.iter().flat_map(|&(a, b)| [a, b]));
                let _ = writeln!(text, "{}: memory read {read:.1} GB/s beside it", mix.mix);
            }
            if let Some(error) = &mix.error {
                let _ = writeln!(text, "{} failed with: {error}", mix.mix);
            }
        }
        text
    }
}

impl MixReport {
    /// What `took` so long, and what others noticed of it.
    fn replacements(&self, took: &Spread) -> String {
        let ratios = &self.ratio_to_base;
        let stages = self.reload_stages_ms.iter().map(|(stage, ms)| format!("{stage} {ms:.1}"));
        let stages = match &stages.collect::<Vec<_>>()[..] {
            [] => String::new(),
            stages => format!(" (in the server {})", stages.join(", ")),
        };
        format!(
            "{}: {} replacements, ms 50/90/99% {:.1} {:.1} {:.1}{stages}; ITL 50% {:.2} and 99% {:.2} of the base's",
            self.mix,
            self.reloads,
            took.median,
            took.p90,
            took.p99,
            ratios.itl.of_medians,
            ratios.itl_p99.of_medians
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_mix_is_measured_against_the_base_of_its_round() {
        let outcome = |ms: u64| Outcome {
            samples: vec![Sample {
                e2e: Duration::from_millis(ms),
                output_tokens: 10,
                ..Sample::default()
            }],
            errors: Vec::new(),
            reloads: Vec::new(),
            read_gb_s: None,
            duration: Duration::from_millis(ms),
        };
        let reports = mixes(vec![
            (Mix::Base, vec![outcome(100), outcome(200)]),
            (Mix::One, vec![outcome(200), outcome(200)]),
        ]);
        let share = reports[1].ratio_to_base.output_tokens_per_s;
        // 50 and 50 tokens/s against 100 and 50.
        assert!((share.of_medians - 50.0 / 75.0).abs() < 1e-9);
        assert!((share.min - 0.5).abs() < 1e-9 && (share.max - 1.0).abs() < 1e-9);
        assert!((reports[0].ratio_to_base.e2e.of_medians - 1.0).abs() < 1e-9);
        assert_eq!(reports[1].e2e_ms, [200.0, 200.0]);
    }

    #[test]
    fn a_backlog_says_how_long_its_last_one_waited() {
        let sample = |ms| Sample { ttft: Duration::from_millis(ms), ..Sample::default() };
        let outcome = Outcome { samples: [10, 10, 30].map(sample).to_vec(), ..Outcome::default() };
        let mut report = Report {
            schema: 1,
            server: "here".into(),
            base_model: "base".into(),
            shape: "even".into(),
            requests: 3,
            rounds: 1,
            concurrency: Some(3),
            request_rate: None,
            seed: 0,
            mixes: mixes(vec![(Mix::Base, vec![outcome])]),
        };
        let line = "base: nobody waited longer than 3.0 times the median for a first token";
        assert!(report.table().contains(line), "{}", report.table());
        report.concurrency = Some(2);
        assert!(!report.table().contains("nobody waited"));
    }
}
