//! A request's output on the client's side: tokens become text here, and stop texts are found here.

use std::iter::repeat_n;

use super::handle::{EngineHandle, Place};
use super::mailbox::{End, Inbox, Piece};
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
    inbox: Inbox,
    /// Empty between calls: its memory serves the next piece.
    piece: Piece,
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
        inbox: Inbox,
        request: &GenerateRequest,
    ) -> Self {
        let tokens =
            TokenStream::continuing(engine.tokenizer().clone(), request.text.skip_special_tokens);
        Self {
            engine,
            id,
            inbox,
            piece: Piece::default(),
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
        // There is nothing to show while a prompt is being read.
        while output.tokens.is_empty() && output.finish.is_none() {
            let taken = match self.inbox.take(&mut self.piece).await {
                true => self.unpack(&mut output),
                false => Err(Error::new(ErrorKind::Internal, "the engine ended without an answer")),
            };
            if let Err(error) = taken {
                self.ended = true;
                return Some(Err(error));
            }
        }
        self.ended = output.finish.is_some();
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

    /// Moves what has come into `output`. What lies behind the end is dropped.
    fn unpack(&mut self, output: &mut Output) -> Result<()> {
        let piece = &mut self.piece;
        output.cached_tokens = piece.cached_tokens.unwrap_or(output.cached_tokens);
        if let Some(prompt) = &mut self.prompt_logprobs {
            prompt.extend(piece.scored.drain(..).map(Some));
        }
        if !piece.tokens.is_empty() {
            output.prompt_logprobs = self.prompt_logprobs.take();
        }
        let end = piece.end.take();
        let versions = piece.versions.iter().flat_map(|&(version, n)| repeat_n(version, n));
        let mut logprobs = piece.logprobs.drain(..);
        for (index, (&id, version)) in piece.tokens.iter().zip(versions).enumerate() {
            let is_last = index + 1 == piece.tokens.len();
            let ending = match &end {
                Some(End::Drawn(ending)) if is_last => Some(ending),
                _ => None,
            };
            let stop = self.text.push(id, ending, &mut output.text);
            output.tokens.push(OutputToken { id, logprobs: logprobs.next(), version });
            output.finish = match stop {
                Some(text) => {
                    let stop = Some(StopReason::Text(text));
                    Some(Finish { reason: FinishReason::Stop, stop })
                }
                None => ending.cloned().map(|(reason, stop)| Finish { reason, stop }),
            };
            if output.finish.is_some() {
                break;
            }
        }
        drop(logprobs);
        piece.clear();
        match end {
            _ if output.finish.is_some() => {
                if self.text.stopped_early {
                    self.engine.abort(self.id);
                }
            }
            Some(End::Stopped(reason)) => {
                output.text.push_str(&self.text.flush());
                output.finish = Some(Finish { reason, stop: None });
            }
            Some(End::Failed(error)) => return Err(error),
            Some(End::Drawn(_)) | None => {}
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
