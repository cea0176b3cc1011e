//! Spans of tokens by the weights that drew them.

use loraplex_core::OutputToken;

use crate::openai::weights::WeightSpan;

/// The spans of one output so far: contiguous, from its first token to its last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spans(Vec<WeightSpan>);

impl Spans {
    pub(crate) fn add(&mut self, tokens: &[OutputToken]) {
        for token in tokens {
            let generation = token.version.map(|version| version.generation);
            let policy_version = token.version.and_then(|version| version.policy_version);
            let start = self.0.last().map_or(0, |span| span.end);
            match self.0.last_mut() {
                Some(span) if span.generation == generation => span.end += 1,
                _ => {
                    self.0.push(WeightSpan { generation, policy_version, start, end: start + 1 });
                }
            }
        }
    }

    pub(crate) fn take(&mut self) -> Vec<WeightSpan> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loraplex_core::Version;

    #[test]
    fn spans_cover_every_token_once() {
        let token = |generation: u64| OutputToken {
            id: 0,
            logprobs: None,
            version: (generation > 0)
                .then_some(Version { generation, policy_version: Some(generation * 10) }),
        };
        let mut spans = Spans::default();
        spans.add(&[token(1), token(1)]);
        spans.add(&[token(1), token(2), token(0)]);
        let found: Vec<_> =
            spans.take().iter().map(|s| (s.generation, s.policy_version, s.start, s.end)).collect();
        assert_eq!(
            found,
            [(Some(1), Some(10), 0, 3), (Some(2), Some(20), 3, 4), (None, None, 4, 5)]
        );
    }
}
