//! One streamed request to an OpenAI-compatible server, timed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use reqwest::header::ACCEPT;
use serde_json::{Map, Value, json};

use super::stats::Sample;
use super::workload::Planned;

/// Bytes without the end of an event at most.
const MAX_EVENT: usize = 16 << 20;

/// A server under load.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    text_prompts: bool,
    bodies: Arc<Bodies>,
}

/// A replacement in place.
#[derive(Debug)]
pub struct Reload {
    /// From asking for it to its answer.
    pub took: Duration,
    /// Milliseconds of its stages, where the server says them.
    pub stages: BTreeMap<String, f64>,
}

/// What requests to a model have in their bodies beside the rest, by the model's name.
pub type Bodies = HashMap<String, Map<String, Value>>;

/// Reads `NAME={...}`, one of each name.
pub fn bodies(texts: &[String]) -> Result<Bodies> {
    let mut found = Bodies::new();
    for text in texts {
        let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, json) = parts.with_context(|| format!("--body {text}: it is NAME=JSON"))?;
        let members = serde_json::from_str(json)
            .with_context(|| format!("--body {text}: {json} is no JSON object"))?;
        ensure!(found.insert(name.into(), members).is_none(), "--body: {name} stands there twice");
    }
    Ok(found)
}

impl Client {
    /// For the server at `url`, with or without `/v1`.
    pub fn new(url: &str, key: Option<String>, text_prompts: bool, bodies: Bodies) -> Self {
        // Fails where one is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let bodies = Arc::new(bodies);
        Self { http: reqwest::Client::new(), url, key, text_prompts, bodies }
    }

    /// Names of the base models and of the adapters that it serves.
    pub async fn models(&self) -> Result<(Vec<String>, Vec<String>)> {
        let request = self.authorized(self.http.get(format!("{}/v1/models", self.url)));
        let response =
            request.send().await.with_context(|| format!("no answer from {}", self.url))?;
        ensure!(response.status().is_success(), "/v1/models answers {}", response.status());
        let models: Value = response.json().await.context("/v1/models is no JSON")?;
        let cards = models["data"].as_array().context("/v1/models has no `data`")?;
        let (adapters, bases): (Vec<&Value>, Vec<&Value>) =
            cards.iter().partition(|card| card["parent"].is_string());
        let names = |cards: Vec<&Value>| {
            cards.iter().filter_map(|card| Some(card["id"].as_str()?.to_owned())).collect()
        };
        Ok((names(bases), names(adapters)))
    }

    /// Loads an adapter again from its folder, in place.
    pub async fn reload(&self, name: &str) -> Result<Reload> {
        let card = self.http.get(format!("{}/v1/models/{name}", self.url));
        let card: Value = self.authorized(card).send().await?.json().await?;
        let folder = card["root"].as_str().context("/v1/models does not say where it lies")?;
        let body = json!({ "lora_name": name, "lora_path": folder, "load_inplace": true });
        let request = self.http.post(format!("{}/v1/load_lora_adapter", self.url)).json(&body);
        let request = request.header(ACCEPT, "application/json");
        let start = Instant::now();
        let response = self.authorized(request).send().await?;
        let took = start.elapsed();
        let (status, answer) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{status}: {answer}");
        // Other servers answer with a text.
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let stages = answer["timings_ms"].as_object().into_iter().flatten();
        let stages = stages.filter_map(|(stage, ms)| Some((stage.clone(), ms.as_f64()?)));
        Ok(Reload { took, stages: stages.collect() })
    }

    /// Sends `planned` for `model` and reads its stream to the end.
    pub async fn complete(&self, model: &str, planned: &Planned) -> Result<Sample> {
        let mut body = json!({
            "model": model,
            "prompt": if self.text_prompts { words(&planned.prompt).into() } else { json!(planned.prompt) },
            "max_tokens": planned.output,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        for (member, value) in self.bodies.get(model).into_iter().flatten() {
            body[member] = value.clone();
        }
        let send = || {
            let request = self.http.post(format!("{}/v1/completions", self.url)).json(&body);
            self.authorized(request).send()
        };
        let start = Instant::now();
        let response = match send().await {
            // Some servers close a kept connection just as the next request goes out on it.
            Err(error) if error.is_request() => send().await?,
            response => response?,
        };
        if !response.status().is_success() {
            let status = response.status();
            let text: String = response.text().await?.chars().take(300).collect();
            bail!("{status}: {text}");
        }
        let (mut events, mut chunks) = (Events::default(), Chunks::new(start));
        let mut bytes = response.bytes_stream();
        while let Some(part) = bytes.next().await {
            for event in events.push(&part?)? {
                chunks.take(&event, Instant::now())?;
            }
        }
        chunks.end()
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

/// One short word a token id; how many tokens that makes, the server's `usage` says.
fn words(prompt: &[u32]) -> String {
    const WORDS: [&str; 16] = [
        "time", "house", "water", "small", "light", "under", "seven", "green", "paper", "music",
        "stone", "river", "often", "table", "night", "cloud",
    ];
    let words: Vec<&str> = prompt.iter().map(|&id| WORDS[id as usize % WORDS.len()]).collect();
    words.join(" ")
}

/// Bytes to the `data` of server-sent events, however the bytes are cut.
#[derive(Debug, Default)]
struct Events {
    rest: Vec<u8>,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>> {
        self.rest.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(&self.rest[start..start + length]);
            // Each `data` line is an event here: JSON has no raw line breaks.
            if let Some(data) = line.trim_end_matches('\r').strip_prefix("data:") {
                found.push(data.trim_start().to_owned());
            }
            start += length + 1;
        }
        self.rest.drain(..start);
        ensure!(self.rest.len() <= MAX_EVENT, "an event of the stream is over {MAX_EVENT} bytes");
        Ok(found)
    }
}

/// Events to a sample.
#[derive(Debug)]
struct Chunks {
    start: Instant,
    last: Option<Instant>,
    sample: Sample,
    usage: bool,
    done: bool,
}

impl Chunks {
    fn new(start: Instant) -> Self {
        Self { start, last: None, sample: Sample::default(), usage: false, done: false }
    }

    fn take(&mut self, event: &str, now: Instant) -> Result<()> {
        if event == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(event).context("an event is no JSON")?;
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            bail!("the stream ends with {error}");
        }
        if chunk["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
            match self.last.replace(now) {
                None => self.sample.ttft = now - self.start,
                Some(last) => self.sample.gaps.push(now - last),
            }
            self.sample.e2e = now - self.start;
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage = true;
            self.sample.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0);
            self.sample.output_tokens = usage["completion_tokens"].as_u64().unwrap_or(0);
        }
        Ok(())
    }

    fn end(self) -> Result<Sample> {
        ensure!(self.done && self.last.is_some(), "the stream ended early");
        ensure!(self.usage, "the server reports no `usage`, so that tokens cannot be counted");
        Ok(self.sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text = "data: {\"a\":\"\u{e9}\"}\n\n: ping\r\ndata:[DONE]\r\n\r\n";
        for cut in 0..text.len() {
            let mut events = Events::default();
            let mut found = events.push(&text.as_bytes()[..cut]).unwrap();
            found.extend(events.push(&text.as_bytes()[cut..]).unwrap());
            assert_eq!(found, ["{\"a\":\"\u{e9}\"}", "[DONE]"], "{cut}");
        }
    }

    #[test]
    fn bodies_are_objects_of_names() {
        let read = |texts: &[&str]| bodies(&texts.iter().map(|t| (*t).into()).collect::<Vec<_>>());
        let found = read(&[r#"a={"lora": [1], "n": 2}"#, "b={}"]).unwrap();
        assert_eq!(found["a"]["lora"], json!([1]));
        assert!(found["b"].is_empty());
        for texts in [&["a"][..], &["={}"], &["a=1"], &["a={"], &["a={}", "a={}"]] {
            assert!(read(texts).is_err(), "{texts:?}");
        }
    }

    #[test]
    fn times_by_hand() {
        let start = Instant::now();
        let mut chunks = Chunks::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        chunks.take(r#"{"choices":[{"text":"a"}]}"#, at(30)).unwrap();
        chunks.take(r#"{"choices":[{"text":"b"}],"usage":null}"#, at(50)).unwrap();
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}"#;
        chunks.take(usage, at(90)).unwrap();
        chunks.take("[DONE]", at(95)).unwrap();
        let sample = chunks.end().unwrap();
        assert_eq!(sample.ttft, Duration::from_millis(30));
        assert_eq!(sample.gaps, [Duration::from_millis(20)]);
        assert_eq!(sample.e2e, Duration::from_millis(50));
        assert_eq!((sample.prompt_tokens, sample.output_tokens), (4, 2));
    }

    #[test]
    fn a_stream_that_fails_is_no_sample() {
        let mut chunks = Chunks::new(Instant::now());
        assert!(chunks.take(r#"{"error":{"message":"no room"}}"#, Instant::now()).is_err());
        chunks.take(r#"{"choices":[{}]}"#, Instant::now()).unwrap();
        assert!(chunks.end().is_err(), "no [DONE]");
    }
}
