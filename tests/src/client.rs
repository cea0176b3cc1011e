//! An HTTP client that says what came back: status, headers, JSON, events.

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// Talks to one server.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
    key: Option<String>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The `data:` of every event, without the closing `[DONE]`, which must be there.
    pub fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> =
            self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Client {
    /// A client for the server at `base`, such as `http://127.0.0.1:8000`.
    pub fn new(base: String) -> Self {
        // One that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { base, http: reqwest::Client::new(), key: None }
    }

    /// The same server with a key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// Where the server listens.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET, `None` where nobody answers.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        read(self.request(Method::GET, path)).await
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.unwrap_or_else(|| panic!("no answer from {path}"))
    }

    /// POST of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, "application/json", body.to_string()).await
    }

    /// POST of any body.
    pub async fn post_text(&self, path: &str, media: &str, body: impl Into<String>) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", media);
        let answer = read(request.body(body.into())).await;
        answer.unwrap_or_else(|| panic!("no answer from {path}"))
    }

    /// POST that must succeed; its JSON.
    pub async fn ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, 200, "{path} {body}\n{}", answer.text);
        answer.json()
    }

    /// A request to be changed and sent by hand.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

async fn read(request: reqwest::RequestBuilder) -> Option<Answer> {
    let response = request.send().await.ok()?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Some(Answer { status, headers, text: response.text().await.ok()? })
}
