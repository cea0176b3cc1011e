//! A request and what came of it.

use futures::StreamExt;
use loraplex_tests::Client;
use reqwest::Method;
use serde_json::{Value, json};

use crate::history::{History, Moment};

/// What a request asks for.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// `base` or an adapter.
    pub(crate) model: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) follow: bool,
    pub(crate) spans: bool,
    pub(crate) stream: bool,
    pub(crate) leave: Leave,
    /// Names the request.
    pub(crate) id: String,
}

/// Whether the client stays to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It does.
    Never,
    /// Closes the connection after so many events of a stream.
    After(usize),
    /// Has the server abort it after the first event.
    Abort,
}

/// Tokens that the server says to be of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) generation: Option<u64>,
    pub(crate) policy_version: Option<u64>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) ask: Ask,
    pub(crate) sent: Moment,
    pub(crate) ended: Moment,
    pub(crate) status: u16,
    /// As far as the client listened.
    pub(crate) tokens: Vec<u32>,
    /// Prompt tokens whose KV was found; of whole answers alone.
    pub(crate) cached: u64,
    pub(crate) spans: Option<Vec<Span>>,
    /// `None` where the client left.
    pub(crate) finish: Option<String>,
    /// The body of a refusal.
    pub(crate) error: String,
}

impl Ask {
    /// A request for `model`, to its end, greedy.
    pub(crate) fn new(model: &str, prompt: &[u32], max_tokens: usize) -> Self {
        Self {
            model: model.to_owned(),
            prompt: prompt.to_vec(),
            max_tokens,
            follow: false,
            spans: true,
            stream: false,
            leave: Leave::Never,
            id: String::new(),
        }
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model, "prompt": self.prompt, "max_tokens": self.max_tokens,
            "temperature": 0, "return_token_ids": true, "stream": self.stream,
            "lora_update_policy": if self.follow { "follow" } else { "pin" },
        });
        if self.spans {
            body["return_weight_versions"] = true.into();
        }
        if !self.id.is_empty() {
            body["request_id"] = self.id.as_str().into();
        }
        body
    }

    /// Sends it and reads the answer for as long as the client stays.
    pub(crate) async fn send(self, client: &Client, history: &History) -> Answer {
        let sent = history.now();
        let request = client.request(Method::POST, "/v1/completions").json(&self.body());
        let response = request.send().await.unwrap_or_else(|error| panic!("no answer: {error}"));
        let mut answer = Answer {
            status: response.status().as_u16(),
            ask: self,
            sent,
            ended: sent,
            tokens: Vec::new(),
            cached: 0,
            spans: None,
            finish: None,
            error: String::new(),
        };
        if answer.status != 200 {
            answer.error = response.text().await.unwrap();
        } else if answer.ask.stream {
            answer.read_stream(response, client).await;
        } else {
            let body: Value = response.json().await.unwrap();
            answer.add(&body["choices"][0]);
            let details = &body["usage"]["prompt_tokens_details"];
            answer.cached = details["cached_tokens"].as_u64().unwrap_or(0);
        }
        answer.ended = history.now();
        answer
    }
}

impl Answer {
    async fn read_stream(&mut self, response: reqwest::Response, client: &Client) {
        let mut bytes = response.bytes_stream();
        let (mut rest, mut events) = (Vec::new(), 0);
        while let Some(chunk) = bytes.next().await {
            rest.extend_from_slice(&chunk.unwrap_or_else(|error| panic!("cut off: {error}")));
            while let Some(end) = rest.windows(2).position(|two| two == b"\n\n") {
                let frame: Vec<u8> = rest.drain(..end + 2).collect();
                let frame = String::from_utf8(frame).unwrap();
                if frame.starts_with(':') {
                    continue;
                }
                let data = frame.trim().strip_prefix("data: ").unwrap();
                if data == "[DONE]" {
                    return;
                }
                let event: Value = serde_json::from_str(data).unwrap();
                assert!(event["error"].is_null(), "{event}");
                self.add(&event["choices"][0]);
                events += 1;
                match self.ask.leave {
                    Leave::After(most) if events >= most => return,
                    Leave::Abort if events == 1 => {
                        let body = json!({"request_ids": [self.ask.id]});
                        client.ok("/abort_requests", &body).await;
                    }
                    _ => {}
                }
            }
        }
        panic!("a stream ends without [DONE]");
    }

    fn add(&mut self, choice: &Value) {
        let ids = choice["token_ids"].as_array().unwrap();
        self.tokens.extend(ids.iter().map(|id| id.as_u64().unwrap() as u32));
        if let Some(spans) = choice["weight_versions"].as_array() {
            self.spans = Some(spans.iter().map(Span::read).collect());
        }
        self.finish = choice["finish_reason"].as_str().map(str::to_owned);
    }
}

impl Span {
    fn read(span: &Value) -> Self {
        let index = |key: &str| span[key].as_u64().unwrap() as usize;
        Self {
            generation: span["generation"].as_u64(),
            policy_version: span["policy_version"].as_u64(),
            start: index("start"),
            end: index("end"),
        }
    }
}
