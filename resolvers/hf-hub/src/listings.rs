//! What repositories hold, asked once for all names that want to know within a few seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loraplex_hub_client::{HubClient, HubError, Listing, RepoId, Revision};
use tokio::time::Instant;

/// Repositories and revisions that are remembered. Clients choose revisions, so there must be a limit.
const CAPACITY: usize = 64;

type Answer = Result<Arc<Listing>, HubError>;
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Answer)>>>;

/// The last answers.
#[derive(Debug)]
pub(crate) struct Listings {
    /// How long an answer counts.
    max_age: Duration,
    slots: Mutex<HashMap<(RepoId, Revision), Slot>>,
}

impl Listings {
    /// Remembers nothing yet.
    pub(crate) fn new(max_age: Duration) -> Self {
        Self { max_age, slots: Mutex::default() }
    }

    /// The files of `repo`, asked now or a moment ago. Those who ask at once share one answer.
    pub(crate) async fn get(
        &self,
        client: &HubClient,
        repo: &RepoId,
        revision: &Revision,
    ) -> Answer {
        let slot = self.slot((repo.clone(), revision.clone()));
        let mut slot = slot.lock().await;
        if let Some((since, answer)) = &*slot
            && since.elapsed() < self.max_age
        {
            return answer.clone();
        }
        let answer = client.listing(repo, revision).await.map(Arc::new);
        *slot = Some((Instant::now(), answer.clone()));
        answer
    }

    fn slot(&self, key: (RepoId, Revision)) -> Slot {
        // A std mutex: nothing awaits while it is held.
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= CAPACITY && !slots.contains_key(&key) {
            // Those that somebody waits for stay.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(key).or_default().clone()
    }
}
