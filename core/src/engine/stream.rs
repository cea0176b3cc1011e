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
            text: TextStream::new(tokens, request.text.clone(), request.params.min_tokens),
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
    /// Tokens whose text ends nothing, still to come.
    unstoppable: u32,
    /// Decoded and not handed out.
    held: String,
    /// Bytes of `held` in which no stop text may end: they are of unstoppable tokens.
    passed: usize,
    /// A stop text ended the output before the engine did.
    stopped_early: bool,
}

impl TextStream {
    fn new(tokens: TokenStream, options: TextOptions, min_tokens: u32) -> Self {
        Self {
            tokens,
            options,
            unstoppable: min_tokens,
            held: String::new(),
            passed: 0,
            stopped_early: false,
        }
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
        if self.unstoppable > 0 {
            self.unstoppable -= 1;
            self.passed = self.held.len();
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
        let decided = self.held.len() - keep;
        out.extend(self.held.drain(..decided));
        self.passed = self.passed.saturating_sub(decided);
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
            .filter_map(|stop| {
                // One that ends in what has passed begins before this.
                let from =
                    self.held.ceil_char_boundary((self.passed + 1).saturating_sub(stop.len()));
                self.held[from..].find(stop.as_str()).map(|at| (from + at, stop.as_str()))
            })
            .min_by_key(|&(at, stop)| (at, std::cmp::Reverse(stop.len())))
    }

    /// Length of the longest tail that could still become a stop text.
    fn undecided(&self) -> usize {
        // A whole one is decided: it has passed.
        let starts_stop = |tail: &str| {
            self.options.stop.iter().any(|stop| stop.len() > tail.len() && stop.starts_with(tail))
        };
        self.held
            .char_indices()
            .map(|(at, _)| &self.held[at..])
            .find(|tail| starts_stop(tail))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn no_stop_text_ends_an_output_before_its_least_length() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/smollm2/tokenizer");
        let tokenizer = Arc::new(Tokenizer::from_folder(folder.as_ref()).unwrap());
        // One token a character.
        let read = |text: &str, stops: &[&str], min_tokens: u32| {
            let stop = stops.iter().map(|&stop| stop.to_owned()).collect();
            let options = TextOptions { stop, ..TextOptions::default() };
            let tokens = TokenStream::continuing(tokenizer.clone(), true);
            let mut stream = TextStream::new(tokens, options, min_tokens);
            let mut out = String::new();
            let last = text.chars().count() - 1;
            for (index, character) in text.chars().enumerate() {
                let ids = tokenizer.encode(&character.to_string(), false).unwrap();
                assert_eq!(ids.len(), 1, "{character}");
                let ending = (index == last).then_some((FinishReason::Length, None));
                if let Some(stop) = stream.push(ids[0], ending.as_ref(), &mut out) {
                    return (out, stop);
                }
            }
            (out, String::new())
        };
        for (text, stops, min_tokens, out, stop) in [
            ("a,b,c,d", &[","][..], 0, "a", ","),
            ("a,b,c,d", &[","], 1, "a", ","),
            ("a,b,c,d", &[","], 2, "a,b", ","),
            ("a,b,c,d", &[","], 5, "a,b,c", ","),
            ("a,b,c,d", &[","], 7, "a,b,c,d", ""),
            ("a,b,c,d", &["d"], 7, "a,b,c,d", ""),
            ("a,b,c,d", &["d"], 6, "a,b,c,", "d"),
            // What begins among the first tokens and ends behind them stops.
            ("a,b,c,d", &[",b,c"], 3, "a", ",b,c"),
            ("a,b,c,d", &["b,c", ","], 4, "a,", "b,c"),
            ("a,b,c,d", &["b,cx", ","], 4, "a,b,c", ","),
            ("aaaa", &["aa"], 2, "a", "aa"),
            ("éé,é", &["é,"], 2, "é", "é,"),
            ("éé,é", &["é"], 3, "éé,", "é"),
        ] {
            let read = read(text, stops, min_tokens);
            assert_eq!(read, (out.into(), stop.into()), "{text} {stops:?} {min_tokens}");
        }
    }
}
