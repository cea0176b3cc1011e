//! Answers of `/v1/chat/completions`.

use loraplex_core::Output;

use super::spans::Spans;
use super::{Head, Tally, Writer, finish_reason, json, logprobs, stop_reason};
use crate::convert::Echo;
use crate::openai::chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatMessage, ChatResponse,
};
use crate::openai::usage::Usage;

const ROLE: &str = "assistant";

/// The whole answer.
pub(crate) fn whole(head: Head, outputs: Vec<Output>) -> ChatResponse {
    let tally = Tally::of(&head, &outputs);
    let prompt_logprobs = logprobs::of_prompt(&head, &outputs);
    let reply = &head.reply;
    let versions = |output: &Output| {
        let mut spans = Spans::default();
        spans.add(&output.tokens);
        reply.weight_versions.then(|| spans.take())
    };
    let choice = |(index, output): (usize, Output)| ChatChoice {
        index,
        weight_versions: versions(&output),
        logprobs: reply.logprobs.map(|_| logprobs::chat(&head.names, &output.tokens)),
        token_ids: reply.token_ids.then(|| output.tokens.iter().map(|token| token.id).collect()),
        message: ChatMessage {
            role: ROLE,
            content: match &reply.echo {
                Echo::Text(text) => format!("{text}{}", output.text),
                _ => output.text,
            },
            refusal: None,
        },
        finish_reason: output.finish.as_ref().map(finish_reason),
        stop_reason: output.finish.and_then(stop_reason),
    };
    ChatResponse {
        choices: outputs.into_iter().enumerate().map(choice).collect(),
        object: "chat.completion",
        created: head.created,
        usage: tally.usage(&head),
        prompt_logprobs,
        prompt_token_ids: reply.token_ids.then(|| head.prompts[0].tokens.clone()),
        model: head.model.clone(),
        id: head.id.clone(),
    }
}

/// The chunks of a streamed answer.
#[derive(Debug)]
pub(crate) struct ChatWriter {
    head: Head,
    started: Vec<bool>,
    spans: Vec<Spans>,
    tally: Tally,
}

impl ChatWriter {
    pub(crate) fn new(head: Head) -> Self {
        let (started, spans) = (vec![false; head.n], vec![Spans::default(); head.n]);
        Self { started, spans, head, tally: Tally::default() }
    }

    fn chunk(&self, choice: ChatChunkChoice) -> ChatChunk {
        let continuous = self.head.streaming().continuous_usage;
        let usage = continuous.then(|| self.tally.usage(&self.head));
        self.bare_chunk(vec![choice], usage)
    }

    fn bare_chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage,
            prompt_token_ids: None,
        }
    }

    /// The chunk with the role, and the one with what the answer repeats.
    fn begin(&self, index: usize) -> Vec<String> {
        let say = |role: Option<&'static str>, text: &str| ChatChunkChoice {
            index,
            delta: ChatDelta { role, content: Some(text.to_owned()) },
            ..ChatChunkChoice::default()
        };
        let mut role = self.chunk(say(Some(ROLE), ""));
        if self.head.reply.token_ids {
            role.prompt_token_ids = Some(self.head.prompt(index).tokens.clone());
        }
        let mut chunks = vec![json(&role)];
        if let Echo::Text(text) = &self.head.reply.echo {
            chunks.push(json(&self.chunk(say(None, text))));
        }
        chunks
    }
}

impl Writer for ChatWriter {
    fn piece(&mut self, index: usize, piece: Output) -> Vec<String> {
        let first = !std::mem::replace(&mut self.started[index], true);
        let mut chunks = if first { self.begin(index) } else { Vec::new() };
        self.tally.add(&self.head, index, &piece);
        let reply = &self.head.reply;
        let mut weight_versions = None;
        if reply.weight_versions {
            self.spans[index].add(&piece.tokens);
            weight_versions = piece.finish.is_some().then(|| self.spans[index].take());
        }
        let details = reply.logprobs.is_some() || reply.token_ids;
        if piece.text.is_empty() && piece.finish.is_none() && !details {
            return chunks;
        }
        let choice = ChatChunkChoice {
            index,
            weight_versions,
            logprobs: reply.logprobs.map(|_| logprobs::chat(&self.head.names, &piece.tokens)),
            token_ids: reply.token_ids.then(|| piece.tokens.iter().map(|token| token.id).collect()),
            delta: ChatDelta {
                role: None,
                content: (!piece.text.is_empty()).then_some(piece.text),
            },
            finish_reason: piece.finish.as_ref().map(finish_reason),
            stop_reason: piece.finish.and_then(stop_reason),
        };
        chunks.push(json(&self.chunk(choice)));
        chunks
    }

    fn end(&mut self) -> Vec<String> {
        if !self.head.streaming().usage {
            return Vec::new();
        }
        let usage = self.tally.usage(&self.head);
        vec![json(&self.bare_chunk(Vec::new(), Some(usage)))]
    }
}
