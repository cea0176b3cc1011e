//! A request's output on the client's side: tokens become text here, and stop texts are found here.

use tokio::sync::mpsc::UnboundedReceiver;

use super::handle::{EngineHandle, Place};
use super::outputs::Event;
use crate::error::{Error, ErrorKind, Result};
use crate::request::{
    Finish, FinishReason, GenerateRequest, Output, OutputToken, StopReason, TextOptions,
    TokenLogprobs,
};
use crate::scheduler::{Ending, SeqId};
use crate::tokenizer::TokenStream;

/// The output of one request, piece by piece. Dropping it aborts the request.
#[derive(Debug)]
pub struct OutputStream {
    engine: EngineHandle,
    id: SeqId,
    events: UnboundedReceiver<Event>,
    text: TextStream,
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    ended: bool,
    _place: Place,
}

impl OutputStream {
    pub(super) fn new(
        engine: EngineHandle,
        id: SeqId,
        place: Place,
        events: UnboundedReceiver<Event>,
        request: &GenerateRequest,
    ) -> Self {
        let tokens =
            TokenStream::continuing(engine.tokenizer().clone(), request.text.skip_special_tokens);
        Self {
            engine,
            id,
            events,
            text: TextStream::new(tokens, request.text.clone()),
            prompt_logprobs: request.prompt_logprobs.map(|_| vec![None]),
            ended: false,
            _place: place,
        }
    }

    /// The next piece: everything that has come since the last one. `None` after the piece that has `finish` set, and
    /// after an error.
    pub async fn next(&mut self) -> Option<Result<Output>> {
        if self.ended {
            return None;
        }
        let mut output = Output::default();
        let mut event = self.events.recv().await;
        loop {
            let Some(next) = event else {
                self.ended = true;
                let gone = Error::new(ErrorKind::Internal, "the engine ended without an answer");
                return Some(Err(gone));
            };
            if let Err(error) = self.take(next, &mut output) {
                self.ended = true;
                return Some(Err(error));
            }
            if output.finish.is_some() {
                self.ended = true;
                break;
            }
            match self.events.try_recv() {
                Ok(next) => event = Some(next),
                // Nothing to show yet: a prompt that is being read.
                Err(_) if output.tokens.is_empty() => event = self.events.recv().await,
                Err(_) => break,
            }
        }
        Some(Ok(output))
    }

    /// Gathers the whole output.
    pub async fn collect(mut self) -> Result<Output> {
        let mut whole = Output::default();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            whole.text.push_str(&piece.text);
            whole.tokens.extend(piece.tokens);
            whole.cached_tokens += piece.cached_tokens;
            whole.prompt_logprobs = whole.prompt_logprobs.or(piece.prompt_logprobs);
            whole.finish = piece.finish;
        }
        Ok(whole)
    }

    fn take(&mut self, event: Event, output: &mut Output) -> Result<()> {
        match event {
            Event::Started { cached_tokens } => output.cached_tokens = cached_tokens,
            Event::Scored(scores) => {
                self.prompt_logprobs.get_or_insert_default().extend(scores.into_iter().map(Some));
            }
            Event::Token { id, logprobs, version, ending } => {
                if output.prompt_logprobs.is_none() {
                    output.prompt_logprobs = self.prompt_logprobs.take();
                }
                let stop = self.text.push(id, ending.as_ref(), &mut output.text);
                let logprobs = logprobs.map(|boxed| *boxed);
                output.tokens.push(OutputToken { id, logprobs, version });
                output.finish = match stop {
                    Some(text) => {
                        let stop = Some(StopReason::Text(text));
                        Some(Finish { reason: FinishReason::Stop, stop })
                    }
                    None => ending.map(|(reason, stop)| Finish { reason, stop }),
                };
                if output.finish.is_some() && self.text.stopped_early {
                    self.engine.abort(self.id);
                }
            }
            Event::Ended(reason) => {
                output.text.push_str(&self.text.flush());
                output.finish = Some(Finish { reason, stop: None });
            }
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.abort(self.id);
        }
    }
}

/// Tokens to text with stop texts: text that may be the start of a stop is held back until it is decided.
#[derive(Debug)]
struct TextStream {
    tokens: TokenStream,
    options: TextOptions,
    /// Decoded and not handed out.
    held: String,
    /// A stop text ended the output before the engine did.
    stopped_early: bool,
}

impl TextStream {
    fn new(tokens: TokenStream, options: TextOptions) -> Self {
        Self { tokens, options, held: String::new(), stopped_early: false }
    }

    /// Appends what `token` adds to `out`. Returns the stop text that it completed.
    fn push(&mut self, token: u32, ending: Option<&Ending>, out: &mut String) -> Option<String> {
        let by_stop_token = matches!(ending, Some((FinishReason::Stop, _)));
        if (!by_stop_token || self.options.include_stop)
            && let Some(text) = self.tokens.push(token)
        {
            self.held.push_str(&text);
        }
        if ending.is_some() {
            self.held.push_str(&self.tokens.flush().unwrap_or_default());
        }
        if let Some((at, stop)) = self.first_stop() {
            let end = if self.options.include_stop { at + stop.len() } else { at };
            let stop = stop.to_owned();
            self.held.truncate(end);
            out.push_str(&std::mem::take(&mut self.held));
            self.stopped_early = ending.is_none();
            return Some(stop);
        }
        let keep = if ending.is_some() { 0 } else { self.undecided() };
        out.extend(self.held.drain(..self.held.len() - keep));
        None
    }

    /// What is left when the output ends without a token.
    fn flush(&mut self) -> String {
        let mut rest = std::mem::take(&mut self.held);
        rest.push_str(&self.tokens.flush().unwrap_or_default());
        rest
    }

    /// The stop text that occurs first in what is held, and where.
    fn first_stop(&self) -> Option<(usize, &str)> {
        self.options
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop.as_str())))
            .min_by_key(|&(at, stop)| (at, std::cmp::Reverse(stop.len())))
    }

    /// Length of the longest tail that could still become a stop text.
    fn undecided(&self) -> usize {
        let starts_stop = |tail: &str| self.options.stop.iter().any(|stop| stop.starts_with(tail));
        self.held
            .char_indices()
            .map(|(at, _)| &self.held[at..])
            .find(|tail| starts_stop(tail))
            .map_or(0, str::len)
    }
}
