//! Duplicates that wait for the first request's answer (`Prefer: wait=N`, RFC 7240), without a connection.
//!
//! All that wait for one key on this instance form a group. A group looks at the database once for all of
//! them: when the answer is made here, it's handed to them without a look; when another instance makes it,
//! that instance sends a notification, because the group has asked for one in the key's row; and every now
//! and then, in case the owner has died, which notifies nobody.
//!
//! Promised: a wait holds no connection, and ends within a second after an answer was committed, whatever
//! got lost; as a rule at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

use crate::db::Db;
use crate::ids::MerchantId;
use crate::metrics::Counted;

use super::IdempotencyKey;
use super::store::{self, Answer, Glimpse};

/// Pause after a group's first look. It doubles with each look.
const PAUSE_MIN: Duration = Duration::from_millis(25);
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How a wait ended.
#[derive(Clone, Debug)]
pub enum Woken {
    /// With the answer.
    Answered(Arc<Answer>),
    /// Nobody works on the request any more: try again, to execute it.
    Free,
}

type Key = (MerchantId, String);

/// All who wait on this instance.
pub struct Waiters {
    groups: Arc<Mutex<HashMap<Key, Arc<Group>>>>,
    gauge: IntGauge,
}

struct Group {
    merchant: MerchantId,
    key: IdempotencyKey,
    /// Under which the notification comes.
    digest: String,
    /// Makes the group look now.
    look: Notify,
    /// How the wait ended, for all of them.
    woken: watch::Sender<Option<Woken>>,
}

impl Waiters {
    /// Nobody waits yet. `gauge` counts those who do.
    pub fn new(gauge: IntGauge) -> Self {
        Self { groups: Arc::default(), gauge }
    }

    /// Waits for the answer to a key's request, until `deadline`: then `None`.
    pub async fn wait(
        &self,
        db: &Db,
        merchant: MerchantId,
        key: &IdempotencyKey,
        deadline: Instant,
    ) -> Option<Woken> {
        let mut woken = self.join(db, merchant, key);
        let _counted = Counted::new(&self.gauge);
        let ended = tokio::time::timeout_at(deadline.into(), woken.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(woken)) => woken.clone(),
            // The group ended without a word, when the server stops.
            Ok(Err(_)) => Some(Woken::Free),
            Err(_) => None,
        }
    }

    fn join(&self, db: &Db, merchant: MerchantId, key: &IdempotencyKey) -> watch::Receiver<Option<Woken>> {
        let mut groups = self.groups.lock().expect("no holder panics");
        match groups.entry((merchant, key.as_str().to_owned())) {
            Entry::Occupied(group) => group.get().woken.subscribe(),
            Entry::Vacant(place) => {
                let (sender, receiver) = watch::channel(None);
                let group = Arc::new(Group {
                    merchant,
                    key: key.clone(),
                    digest: key.digest_for(merchant),
                    look: Notify::new(),
                    woken: sender,
                });
                place.insert(Arc::clone(&group));
                actix_web::rt::spawn(keep_looking(Arc::clone(&self.groups), group, db.clone()));
                receiver
            }
        }
    }

    /// Hands an answer that was made on this instance to those who wait for it.
    pub fn answered(&self, merchant: MerchantId, key: &IdempotencyKey, answer: &Arc<Answer>) {
        self.wake(merchant, key, || Woken::Answered(Arc::clone(answer)));
    }

    /// Tells those who wait that the request's attempt ended without an answer.
    pub fn freed(&self, merchant: MerchantId, key: &IdempotencyKey) {
        self.wake(merchant, key, || Woken::Free);
    }

    fn wake(&self, merchant: MerchantId, key: &IdempotencyKey, woken: impl FnOnce() -> Woken) {
        let mut groups = self.groups.lock().expect("no holder panics");
        if groups.is_empty() {
            return;
        }
        if let Some(group) = groups.remove(&(merchant, key.as_str().to_owned())) {
            group.woken.send_replace(Some(woken()));
            group.look.notify_one();
        }
    }

    /// Makes the group look whose key has this digest, or all groups. Called when a notification comes, or
    /// may have been missed.
    pub fn look(&self, digest: Option<&str>) {
        for group in self.groups.lock().expect("no holder panics").values() {
            if digest.is_none_or(|digest| group.digest == digest) {
                group.look.notify_one();
            }
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.groups.lock().expect("no holder panics").is_empty()
    }
}

/// Looks at the database for a group until its wait is over or nobody is left.
async fn keep_looking(groups: Arc<Mutex<HashMap<Key, Arc<Group>>>>, group: Arc<Group>, db: Db) {
    let mut pause = PAUSE_MIN;
    while group.woken.borrow().is_none() {
        let looking = Arc::clone(&group);
        let glimpse = db.run(move |conn| store::await_answer(conn, looking.merchant, &looking.key)).await;
        let woken = match glimpse {
            Ok(Glimpse::Answered(answer)) => Some(Woken::Answered(answer)),
            Ok(Glimpse::Free) => Some(Woken::Free),
            Ok(Glimpse::Running) => None,
            Err(error) => {
                log::warn!("looking for an answer that is waited for failed: {}", error.detailed());
                None
            }
        };
        {
            let mut groups = groups.lock().expect("no holder panics");
            // Nobody can join while the lock is held.
            let is_over = woken.is_some() || group.woken.receiver_count() == 0;
            if is_over {
                let place = (group.merchant, group.key.as_str().to_owned());
                if groups.get(&place).is_some_and(|other| Arc::ptr_eq(other, &group)) {
                    groups.remove(&place);
                }
            }
            if let Some(woken) = woken {
                group.woken.send_if_modified(|current| {
                    let is_first = current.is_none();
                    current.get_or_insert(woken);
                    is_first
                });
            }
            if is_over {
                return;
            }
        }
        let _ = tokio::time::timeout(pause, group.look.notified()).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
