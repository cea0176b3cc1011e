//! A golden case: what to ask, and what may differ.

use loraplex_tests::{Client, fixture, json};
use serde_json::{Value, json};

/// One prompt for one model.
#[derive(Debug)]
pub(crate) struct Case {
    model: String,
    index: usize,
    golden: Value,
}

/// How far bf16 activations may lead from the f32 answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerance {
    /// Tokens are equal up to the first position where the two best are closer than this, in log-probability.
    pub(crate) gap: f64,
    /// Of the first token's three best.
    pub(crate) probability: f64,
}

/// How near answers are to the golden ones.
#[derive(Debug)]
pub(crate) struct Agreement {
    /// Share of answers with the same tokens.
    pub(crate) texts: f64,
    /// Share of tokens before the first that differs.
    pub(crate) tokens: f64,
    /// Mean difference of the log-probabilities of those tokens.
    pub(crate) difference: f64,
}

impl Agreement {
    pub(crate) fn of(cases: &[Case], answers: &[Got]) -> Self {
        let (mut texts, mut same, mut tokens, mut difference) = (0, 0, 0, 0.0);
        for (case, got) in cases.iter().zip(answers) {
            let wanted = case.ids("token_ids");
            let equal = wanted.iter().zip(&got.tokens).take_while(|(a, b)| a == b).count();
            let golden = case.golden["logprobs"].as_array().unwrap();
            for (golden, found) in golden.iter().zip(&got.logprobs).take(equal) {
                difference += (golden.as_f64().unwrap() - found).abs();
            }
            texts += usize::from(wanted == got.tokens);
            same += equal;
            tokens += wanted.len();
        }
        Self {
            texts: texts as f64 / cases.len() as f64,
            tokens: same as f64 / tokens as f64,
            difference: difference / same as f64,
        }
    }
}

/// An answer. Equal answers are equal to the last bit of every log-probability.
#[derive(Debug, PartialEq)]
pub(crate) struct Got {
    prompt: Vec<u64>,
    tokens: Vec<u64>,
    logprobs: Vec<f64>,
    first_top: Vec<(String, f64)>,
    finish: String,
}

/// All cases of the base and of these adapters.
pub(crate) fn cases(base: &str, adapters: &[&str]) -> Vec<Case> {
    let models = std::iter::once((base, "base")).chain(adapters.iter().map(|&name| (name, name)));
    let mut cases = Vec::new();
    for (model, file) in models {
        let golden = json(&fixture(&format!("smollm2/golden/{file}.json")));
        for (index, golden) in golden["cases"].as_array().unwrap().iter().enumerate() {
            cases.push(Case { model: model.to_owned(), index, golden: golden.clone() });
        }
    }
    assert!(cases.len() > 40, "{} cases", cases.len());
    cases
}

impl Case {
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.model, self.index)
    }

    pub(crate) async fn ask(&self, client: &Client) -> Got {
        let body = json!({
            "model": self.model,
            "messages": self.golden["messages"],
            "max_tokens": self.ids("token_ids").len(),
            "temperature": 0,
            "logprobs": true,
            "top_logprobs": 5,
            "return_token_ids": true,
        });
        let answer = client.ok("/v1/chat/completions", &body).await;
        assert_eq!(answer["model"], self.model);
        let choice = &answer["choices"][0];
        let content = choice["logprobs"]["content"].as_array().unwrap();
        let top = content[0]["top_logprobs"].as_array().unwrap();
        Got {
            prompt: ids(&answer["prompt_token_ids"]),
            tokens: ids(&choice["token_ids"]),
            logprobs: content.iter().map(|token| token["logprob"].as_f64().unwrap()).collect(),
            first_top: top
                .iter()
                .map(|t| (text(&t["token"]), t["logprob"].as_f64().unwrap()))
                .collect(),
            finish: text(&choice["finish_reason"]),
        }
    }

    pub(crate) fn check(&self, got: &Got, tolerance: Tolerance) {
        let name = self.name();
        assert_eq!(got.prompt, self.ids("prompt_token_ids"), "{name}: prompt");
        let wanted = self.ids("token_ids");
        let gaps = self.golden["gap_top1_top2"].as_array().unwrap();
        let sure = gaps
            .iter()
            .position(|gap| gap.as_f64().unwrap() < tolerance.gap)
            .unwrap_or(wanted.len());
        let compared = sure.min(wanted.len());
        assert_eq!(
            got.tokens.get(..compared),
            Some(&wanted[..compared]),
            "{name}: tokens up to the first close call"
        );
        if sure >= wanted.len() && self.golden["finish_reason"] == "stop" {
            assert_eq!(got.finish, "stop", "{name}");
        }
        for best in self.golden["first_token_top5"].as_array().unwrap().iter().take(3) {
            let token = text(&best["token"]);
            let wanted = best["logprob"].as_f64().unwrap().exp();
            let found = got.first_top.iter().find(|(text, _)| *text == token);
            // A token far down may have left the five best.
            let found = found.map_or(0.0, |(_, logprob)| logprob.exp());
            assert!(
                (wanted - found).abs() <= tolerance.probability,
                "{name}: {token:?} has probability {found}, golden {wanted}"
            );
        }
    }

    fn ids(&self, key: &str) -> Vec<u64> {
        ids(&self.golden[key])
    }
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
