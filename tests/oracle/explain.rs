//! What every token of an answer came from, or why nothing explains it.

use std::collections::HashMap;

use loraplex_tests::oracle::{Label, Said};

use crate::answer::{Answer, Span};
use crate::history::Change;

/// All changes, by name.
#[derive(Debug)]
pub(crate) struct Record(HashMap<String, Vec<Change>>);

/// What an answer turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Explained {
    /// The generations that drew it, in order; none for the base.
    pub(crate) generations: Vec<u64>,
    /// Tokens whose context was computed with other weights than theirs.
    pub(crate) mixed: usize,
}

/// Loads that an answer can have used.
type Candidates<'a> = Vec<(u64, &'a Change)>;

impl Record {
    pub(crate) fn new(changes: Vec<Change>) -> Self {
        let mut record = HashMap::<String, Vec<Change>>::new();
        for change in changes {
            record.entry(change.name.clone()).or_default().push(change);
        }
        Self(record)
    }

    fn of(&self, name: &str) -> &[Change] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Explains every token of `answer`, and holds what the server says about it against that.
    pub(crate) fn explain(&self, answer: &Answer) -> Result<Explained, String> {
        let explained = match (answer.status, answer.ask.model.as_str()) {
            (200, "base") => explain_base(answer),
            (200, name) => self.explain_adapter(answer, name),
            (404, name) => self.explain_absence(answer, name),
            (status, _) => Err(format!("status {status}: {}", answer.error)),
        };
        explained
            .map_err(|reason| format!("{reason}\nin {answer:?}\nwith {:#?}", self.around(answer)))
    }

    /// What happened to the answer's name around it, for people.
    fn around(&self, answer: &Answer) -> Vec<String> {
        let changes = self.of(&answer.ask.model).iter();
        let near = changes.filter(|change| {
            change.began < answer.ended && change.ended.saturating_add(2000) > answer.sent
        });
        near.map(|change| format!("{change:?}")).collect()
    }

    fn explain_adapter(&self, answer: &Answer, name: &str) -> Result<Explained, String> {
        let changes = self.of(name);
        // A load that had been acknowledged when the request was sent hides everything before it.
        let acknowledged = changes.iter().filter(|change| change.ended < answer.sent);
        let floor = acknowledged.filter_map(|change| change.generation).max().unwrap_or(0);
        let mut loads: Candidates<'_> = changes
            .iter()
            .filter(|change| change.began < answer.ended)
            .filter_map(|change| Some((change.generation?, change)))
            .filter(|(generation, _)| *generation >= floor)
            .collect();
        loads.sort_unstable_by_key(|(generation, _)| *generation);
        if loads.is_empty() || self.is_loaded(answer, name) == Some(false) {
            return Err("an answer of an adapter that was not loaded".into());
        }

        let mut explained = Explained::default();
        let mut at = loads.first().map_or(0, |(generation, _)| *generation);
        for (index, &token) in answer.tokens.iter().enumerate() {
            let said = Said::by(token);
            // The oldest that fits: whatever explains the rest is not older.
            let from = loads.iter().find(|(g, load)| *g >= at && load.label == Some(said.own));
            let Some(&(generation, _)) = from else {
                return Err(format!("token {index} says {said:?}: none of this adapter's weights"));
            };
            at = generation;
            if explained.generations.last() != Some(&generation) {
                explained.generations.push(generation);
            }
            if said.read != said.own {
                explained.mixed += 1;
                let older: Vec<Label> =
                    loads.iter().filter(|(g, _)| *g <= at).filter_map(|(_, l)| l.label).collect();
                let known = |digit: fn(Label) -> Label| {
                    older.iter().any(|&label| digit(label) == digit(said.read))
                };
                if !answer.ask.follow || !known(|label| label / 10) || !known(|label| label % 10) {
                    return Err(format!("token {index} says {said:?}: it read foreign KV"));
                }
            }
        }
        if !answer.ask.follow && explained.generations.len() > 1 {
            return Err(format!("a pinned answer is of {:?}", explained.generations));
        }
        check_spans(answer, |generation, token| {
            let load = loads.iter().find(|(g, _)| Some(*g) == generation);
            load.is_some_and(|(_, load)| load.label == Some(Said::by(token).own))
        })?;
        Ok(explained)
    }

    /// 404 is right while the name is not loaded, or where that changes while the request is under way.
    fn explain_absence(&self, answer: &Answer, name: &str) -> Result<Explained, String> {
        if self.is_loaded(answer, name) == Some(true) {
            return Err("a loaded adapter is said to be absent".into());
        }
        Ok(Explained::default())
    }

    /// Whether the name was loaded for as long as the request was on its way; `None` where that changed meanwhile.
    fn is_loaded(&self, answer: &Answer, name: &str) -> Option<bool> {
        let changes = self.of(name);
        let before = changes.iter().rfind(|change| change.ended < answer.sent);
        let changing =
            changes.iter().any(|change| change.began < answer.ended && change.ended > answer.sent);
        (!changing).then(|| before.is_some_and(|change| change.label.is_some()))
    }
}

fn explain_base(answer: &Answer) -> Result<Explained, String> {
    let adapted = answer.tokens.iter().position(|&token| token != 0);
    if let Some(at) = adapted {
        return Err(format!("the base's token {at} says {:?}", Said::by(answer.tokens[at])));
    }
    check_spans(answer, |generation, _| generation.is_none())?;
    Ok(Explained::default())
}

/// Spans cover the tokens once, rise, and `is_from` holds for each token.
fn check_spans(answer: &Answer, is_from: impl Fn(Option<u64>, u32) -> bool) -> Result<(), String> {
    let complete = answer.finish.is_some();
    let Some(spans) = &answer.spans else {
        let missing = answer.ask.spans && complete;
        return if missing { Err("no spans".into()) } else { Ok(()) };
    };
    let mut end = 0;
    let mut last: Option<&Span> = None;
    for span in spans {
        let rises = last.is_none_or(|last| last.generation < span.generation);
        if span.start != end || span.end <= span.start || !rises || span.end > answer.tokens.len() {
            return Err(format!("spans do not follow each other: {spans:?}"));
        }
        for index in span.start..span.end {
            let token = answer.tokens[index];
            let version = span.generation.map(|_| u64::from(Said::by(token).own));
            if !is_from(span.generation, token) || span.policy_version != version {
                let said = Said::by(token);
                return Err(format!("token {index} says {said:?}, the server says {span:?}"));
            }
        }
        end = span.end;
        last = Some(span);
    }
    if end != answer.tokens.len() {
        return Err(format!("spans of {end} tokens, there are {}", answer.tokens.len()));
    }
    Ok(())
}
