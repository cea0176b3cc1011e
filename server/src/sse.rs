//! Output streams to server-sent events. Dropping the body drops the streams, which aborts their requests.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, BoxStream, SelectAll, Stream, StreamExt};
use loraplex_core::{Output, OutputStream, Result};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{ApiError, ApiResult};
use crate::reply::Writer;

/// How long the headers wait for the first piece, so that a failure can still be a status.
const FIRST_PIECE: Duration = Duration::from_secs(5);
/// How long nothing is said until a comment is, so that nobody on the way takes the connection of a request that waits for dead:
/// proxies wait for a minute.
const QUIET: Duration = Duration::from_secs(45);
/// A line that clients skip.
const COMMENT: &[u8] = b": waiting\n\n";

type Piece = (usize, Result<Output>);

/// Answers with the pieces of all `outputs` as they come.
pub(crate) async fn answer(outputs: Vec<OutputStream>, writer: impl Writer) -> ApiResult<Response> {
    let outputs = outputs.into_iter().enumerate().map(|(index, output)| pieces(index, output));
    events(stream::select_all(outputs), writer).await
}

/// Answers with `pieces`. Fails if that is what the first of them does.
async fn events(
    mut pieces: SelectAll<BoxStream<'static, Piece>>,
    writer: impl Writer,
) -> ApiResult<Response> {
    let mut first = None;
    match timeout(FIRST_PIECE, pieces.next()).await {
        Ok(Some((_, Err(error)))) => return Err(error.into()),
        Ok(Some((index, Ok(piece)))) => first = Some((index, Ok(piece))),
        Ok(None) | Err(_) => {}
    }
    let pieces = stream::iter(first).chain(pieces);
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would hold events back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(frames(pieces, writer))).into_response())
}

fn pieces(index: usize, output: OutputStream) -> BoxStream<'static, Piece> {
    stream::unfold(output, move |mut output| async move {
        let piece = output.next().await?;
        Some(((index, piece), output))
    })
    .boxed()
}

/// The events of `pieces`: chunks, then `[DONE]`; or an error, and no `[DONE]`, so that nobody takes the answer for whole.
fn frames<W: Writer>(
    pieces: impl Stream<Item = Piece> + Send + Unpin + 'static,
    writer: W,
) -> impl Stream<Item = std::result::Result<Bytes, Infallible>> + Send {
    let state = (Some(pieces), writer, VecDeque::new());
    stream::unfold(state, |(mut pieces, mut writer, mut ready)| async move {
        let quiet_until = Instant::now() + QUIET;
        loop {
            if let Some(chunk) = ready.pop_front() {
                return Some((Ok(chunk), (pieces, writer, ready)));
            }
            let next = pieces.as_mut()?.next();
            let piece = match W::COMMENTS {
                true => timeout_at(quiet_until, next).await,
                false => Ok(next.await),
            };
            let Ok(piece) = piece else {
                ready.push_back(Bytes::from_static(COMMENT));
                continue;
            };
            match piece {
                Some((index, Ok(piece))) => {
                    ready.extend(writer.piece(index, piece).iter().map(|chunk| frame(chunk)));
                }
                Some((_, Err(error))) => {
                    let body = serde_json::to_string(&ApiError::from(error).body());
                    ready.push_back(frame(&body.expect("an error's body has string keys")));
                    // The other outputs of the call are of no use alone.
                    pieces = None;
                }
                None => {
                    ready.extend(writer.end().iter().map(|chunk| frame(chunk)));
                    ready.push_back(frame("[DONE]"));
                    pieces = None;
                }
            }
        }
    })
}

fn frame(data: &str) -> Bytes {
    // JSON has no raw line breaks, so that one `data` line holds any chunk.
    Bytes::from(format!("data: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loraplex_core::Error;

    struct Echo;

    impl Writer for Echo {
        fn piece(&mut self, index: usize, piece: Output) -> Vec<String> {
            if piece.text.is_empty() {
                return Vec::new();
            }
            vec![format!("{index}"), piece.text]
        }

        fn end(&mut self) -> Vec<String> {
            vec!["end".into()]
        }
    }

    fn says(index: usize, text: &str) -> Piece {
        (index, Ok(Output { text: text.into(), ..Output::default() }))
    }

    async fn body(pieces: Vec<Piece>) -> ApiResult<String> {
        let response = events(stream::select_all([stream::iter(pieces).boxed()]), Echo).await?;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream; charset=utf-8");
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn chunks_and_an_end() {
        let text = body(vec![says(1, "a"), says(0, ""), says(0, "b")]).await.unwrap();
        let frames = ["1", "a", "0", "b", "end", "[DONE]"];
        assert_eq!(text, frames.map(|data| format!("data: {data}\n\n")).concat());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_is_told_so() {
        // Pieces without text are no events.
        let late = stream::iter(["", "", "a"]).then(async |text| {
            tokio::time::sleep(QUIET - Duration::from_secs(1)).await;
            says(0, text)
        });
        let response = events(stream::select_all([late.boxed()]), Echo).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let frames = [": waiting", ": waiting", "data: 0", "data: a", "data: end", "data: [DONE]"];
        assert_eq!(text, frames.map(|line| format!("{line}\n\n")).concat());
    }

    #[tokio::test]
    async fn an_error_is_a_status_before_and_an_event_after_the_start() {
        let error = || (0, Err(Error::exhausted("no room")));
        assert_eq!(body(vec![error()]).await.unwrap_err().status(), 429);
        let text = body(vec![says(0, "a"), error(), says(0, "b")]).await.unwrap();
        let last =
            r#"{"error":{"message":"no room","type":"RateLimitError","param":null,"code":429}}"#;
        assert_eq!(text, format!("data: 0\n\ndata: a\n\ndata: {last}\n\n"));
    }
}
