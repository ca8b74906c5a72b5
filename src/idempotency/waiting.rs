//! Duplicates that wait for the first request's answer (`Prefer: wait=N`, RFC 7240), without a connection.
//!
//! All that wait for one key on this instance form a group. A group looks at the database once for all of
//! them: when the answer is made here, it's handed to them without a look; when another instance makes it,
//! that instance sends a notification, because the group has asked for one in the key's row; and every now
//! and then, in case the owner has died, which notifies nobody. When an attempt has ended without an answer, one of
//! the group tries to execute the request itself, while the others go on waiting.
//!
//! Promised: a wait holds no connection, and ends within a second after an answer was committed, whatever
//! got lost; as a rule at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use tokio::sync::{Notify, watch};

use crate::base::ids::MerchantId;
use crate::base::metrics::Counted;
use crate::storage::db::Db;

use super::key::IdempotencyKey;
use super::store::{self, Answer, AnswerState};

/// Half of the pause after a group's first look. It doubles with each look.
const PAUSE_MIN: Duration = Duration::from_millis(12);
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The same while the key is being claimed in a transaction that hasn't ended: no row asks for a notification then.
const PAUSE_MAX_CLAIMING: Duration = Duration::from_millis(100);
/// Shortest time between two of a group that try to execute the request themselves. However many wait, what fails is
/// tried at this rate and no faster.
const TRY_INTERVAL: Duration = Duration::from_secs(1);

/// How a wait ended.
#[derive(Clone, Debug)]
pub enum WaitResult {
    /// With an answer. Whether it's that of the same request is for the waiter to check.
    Answered(Arc<Answer>),
    /// Nobody works on the request any more: try again, to execute it.
    Free,
}

type Key = (MerchantId, String);
type Groups = Arc<Mutex<HashMap<Key, Arc<Group>>>>;

/// All who wait on this instance.
pub struct Waiters {
    groups: Groups,
    gauge: IntGauge,
    answers: IntCounterVec,
}

struct Group {
    merchant: MerchantId,
    key: IdempotencyKey,
    /// Under which the notification comes.
    digest: String,
    /// Makes the group look now.
    look: Notify,
    /// The answer, for all of them.
    answered: watch::Sender<Option<Arc<Answer>>>,
    /// Sends one of them off to execute the request.
    free: Notify,
}

impl Waiters {
    /// Nobody waits yet. `gauge` counts those who do, and `answers` what they got, by how a group learned of it.
    pub fn new(gauge: IntGauge, answers: IntCounterVec) -> Self {
        Self { groups: Arc::default(), gauge, answers }
    }

    /// Waits for the answer to a key's request, until `deadline`: then `None`.
    pub async fn wait(
        &self,
        db: &Db,
        merchant: MerchantId,
        key: &IdempotencyKey,
        deadline: Instant,
    ) -> Option<WaitResult> {
        let (group, mut answered) = self.join(db, merchant, key);
        let _counted = Counted::new(&self.gauge);
        let answered = pin!(answered.wait_for(Option::is_some));
        let free = pin!(group.free.notified());
        match tokio::time::timeout_at(deadline.into(), select(answered, free)).await {
            Ok(Either::Left((Ok(answer), _))) => answer.clone().map(WaitResult::Answered),
            // The group ended without a word: the server stops.
            Ok(Either::Left((Err(_), _))) => None,
            Ok(Either::Right(_)) => Some(WaitResult::Free),
            Err(_) => None,
        }
    }

    fn join(
        &self,
        db: &Db,
        merchant: MerchantId,
        key: &IdempotencyKey,
    ) -> (Arc<Group>, watch::Receiver<Option<Arc<Answer>>>) {
        let mut groups = self.groups.lock().expect("no holder panics");
        match groups.entry((merchant, key.as_str().to_owned())) {
            Entry::Occupied(group) => (Arc::clone(group.get()), group.get().answered.subscribe()),
            Entry::Vacant(entry) => {
                let (sender, receiver) = watch::channel(None);
                let group = Arc::new(Group {
                    merchant,
                    key: key.clone(),
                    digest: key.digest_for(merchant),
                    look: Notify::new(),
                    answered: sender,
                    free: Notify::new(),
                });
                entry.insert(Arc::clone(&group));
                let (groups, answers) = (Arc::clone(&self.groups), self.answers.clone());
                tokio::spawn(keep_looking(groups, Arc::clone(&group), db.clone(), answers));
                (group, receiver)
            }
        }
    }

    /// Hands an answer that was made on this instance to those who wait for it.
    pub fn answered(&self, merchant: MerchantId, key: &IdempotencyKey, answer: &Arc<Answer>) {
        let mut groups = self.groups.lock().expect("no holder panics");
        if groups.is_empty() {
            return;
        }
        if let Some(group) = groups.remove(&(merchant, key.as_str().to_owned())) {
            group.answered.send_replace(Some(Arc::clone(answer)));
            self.answers.with_label_values(&["here"]).inc();
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

    /// The same for the group of a key, whose attempt has just ended without an answer.
    pub fn freed(&self, merchant: MerchantId, key: &IdempotencyKey) {
        let groups = self.groups.lock().expect("no holder panics");
        if !groups.is_empty()
            && let Some(group) = groups.get(&(merchant, key.as_str().to_owned()))
        {
            group.look.notify_one();
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.groups.lock().expect("no holder panics").is_empty()
    }
}

/// Looks at the database for a group until its wait is over or nobody is left.
async fn keep_looking(groups: Groups, group: Arc<Group>, db: Db, answers: IntCounterVec) {
    let mut pause = PAUSE_MIN;
    let mut is_told = false;
    let mut last_try: Option<Instant> = None;
    while group.answered.borrow().is_none() {
        let looking = Arc::clone(&group);
        let state = db.run(move |conn| store::await_answer(conn, looking.merchant, &looking.key)).await;
        let (mut answer, mut pause_max) = (None, PAUSE_MAX);
        match state {
            Ok(AnswerState::Answered(found)) => answer = Some(found),
            Ok(AnswerState::Free) if last_try.is_none_or(|last| last.elapsed() >= TRY_INTERVAL) => {
                last_try = Some(Instant::now());
                group.free.notify_one();
            }
            Ok(AnswerState::Free | AnswerState::Running) => {}
            Ok(AnswerState::Claiming) => pause_max = PAUSE_MAX_CLAIMING,
            Err(error) => {
                log::warn!("looking for an answer that is waited for failed: {}", error.detailed());
            }
        }
        let found_by = answers.with_label_values(&[if is_told { "notification" } else { "look" }]);
        if end(&groups, &group, answer, &found_by) {
            return;
        }
        pause = (pause * 2).min(pause_max);
        is_told = tokio::time::timeout(pause, group.look.notified()).await.is_ok();
    }
}

/// Ends a group if there is an answer, which is counted unless the group has got one meanwhile, or nobody is left.
/// Nobody can join meanwhile.
fn end(groups: &Groups, group: &Arc<Group>, answer: Option<Arc<Answer>>, found_by: &IntCounter) -> bool {
    let mut groups = groups.lock().expect("no holder panics");
    if answer.is_none() && group.answered.receiver_count() > 0 {
        return false;
    }
    let slot = (group.merchant, group.key.as_str().to_owned());
    if groups.get(&slot).is_some_and(|other| Arc::ptr_eq(other, group)) {
        groups.remove(&slot);
    }
    group.answered.send_if_modified(|current| {
        let is_first = current.is_none() && answer.is_some();
        if is_first {
            found_by.inc();
            *current = answer;
        }
        is_first
    });
    true
}
