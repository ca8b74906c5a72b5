//! Duplicates that wait for the first request's answer (`Prefer: wait=N`, RFC 7240), without a connection.
//!
//! All duplicates of one key that wait on this instance form a group. A group looks at the database once for
//! all of them. When this instance makes the answer, it wakes the group without a look. When another instance
//! makes it, that instance sends a notification, because the group has asked for one in the key's row. The
//! group also looks every now and then, in case the owner has died, since that notifies nobody. When an
//! attempt has ended without an answer, one of the group tries to execute the request itself, while the others
//! go on waiting.
//!
//! A group learns *that* there is an answer, not which: each member then looks its key up like any other
//! duplicate, which checks its API key and its request. Both may have become wrong while it waited. A member
//! whose wait ends without an answer is checked in the same way before it's told so.
//!
//! Promised: a wait holds no connection, and ends within a second after an answer is committed, whatever gets
//! lost; as a rule it ends at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use tokio::sync::{Notify, watch};

use crate::base::ids::MerchantId;
use crate::base::metrics::GaugeGuard;
use crate::storage::db::Db;
use crate::storage::party::{self, Party};

use super::key::IdempotencyKey;
use super::store::{self, AnswerState};

/// Half of the pause after a group's first look. It doubles with each look.
const PAUSE_MIN: Duration = Duration::from_millis(12);
/// Maximum pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The same while a transaction that hasn't ended is claiming the key: no row asks for a notification then.
const PAUSE_MAX_CLAIMING: Duration = Duration::from_millis(100);
/// Minimum time between two members of a group that try to execute the request themselves. However many wait,
/// a failing request is retried at this rate and no faster.
const TRY_INTERVAL: Duration = Duration::from_secs(1);

/// Result of a wait.
#[derive(Clone, Copy, Debug)]
pub enum WaitResult {
    /// There is an answer: look it up.
    Answered,
    /// No attempt works on the request any more: try again, to execute it.
    Free,
}

type Key = (MerchantId, String);
type Groups = Arc<Mutex<HashMap<Key, Arc<Group>>>>;

/// All waiting duplicates of this instance.
pub struct Waiters {
    groups: Groups,
    gauge: IntGauge,
    answers: IntCounterVec,
    /// Whether the instance is stopping, so that nobody waits any longer.
    is_stopping: watch::Sender<bool>,
}

struct Group {
    merchant: MerchantId,
    key: IdempotencyKey,
    /// Digest of the key, which the notification carries.
    digest: String,
    /// Makes the group look now.
    look: Notify,
    /// Whether there is an answer, for all members.
    answered: watch::Sender<bool>,
    /// Sends one member off to execute the request.
    free: Notify,
}

impl Waiters {
    /// Makes an empty set. `gauge` counts the waiters, and `answers` what they got, by how the group learned
    /// of it.
    pub fn new(gauge: IntGauge, answers: IntCounterVec) -> Self {
        Self { groups: Arc::default(), gauge, answers, is_stopping: watch::Sender::new(false) }
    }

    /// Ends all waits now, and those to come at once: the instance is stopping.
    pub fn stop(&self) {
        self.is_stopping.send_replace(true);
    }

    /// Whether waits end at once.
    pub fn is_stopping(&self) -> bool {
        *self.is_stopping.borrow()
    }

    /// Waits for the answer to a key's request, until `deadline` or until the instance stops. `None` after that.
    pub async fn wait(
        &self,
        db: &Db,
        merchant: MerchantId,
        key: &IdempotencyKey,
        deadline: Instant,
    ) -> Option<WaitResult> {
        let mut stopping = self.is_stopping.subscribe();
        if *stopping.borrow() {
            return None;
        }
        let (group, mut answered) = self.join(db, merchant, key);
        let _counted = GaugeGuard::new(&self.gauge);
        let answered = pin!(answered.wait_for(|is_answered| *is_answered));
        let free = pin!(group.free.notified());
        let waited = tokio::select! {
            waited = tokio::time::timeout_at(deadline.into(), select(answered, free)) => waited,
            _ = stopping.wait_for(|is_stopping| *is_stopping) => return None,
        };
        match waited {
            Ok(Either::Left((Ok(_), _))) => Some(WaitResult::Answered),
            // The group ended without a result: the server is stopping.
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
    ) -> (Arc<Group>, watch::Receiver<bool>) {
        let mut groups = self.groups.lock().expect("no holder panics");
        match groups.entry((merchant, key.as_str().to_owned())) {
            Entry::Occupied(group) => (Arc::clone(group.get()), group.get().answered.subscribe()),
            Entry::Vacant(entry) => {
                let (sender, receiver) = watch::channel(false);
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
                let looking = keep_looking(groups, Arc::clone(&group), db.clone(), answers);
                // For the merchant that waits, or its waiting would slow down everybody's work.
                tokio::spawn(party::within(Party::Caller(merchant), looking));
                (group, receiver)
            }
        }
    }

    /// Wakes those who wait for an answer that was made on this instance.
    pub fn answered(&self, merchant: MerchantId, key: &IdempotencyKey) {
        let mut groups = self.groups.lock().expect("no holder panics");
        if groups.is_empty() {
            return;
        }
        if let Some(group) = groups.remove(&(merchant, key.as_str().to_owned())) {
            group.answered.send_replace(true);
            self.answers.with_label_values(&["here"]).inc();
            group.look.notify_one();
        }
    }

    /// Makes the group of the key with this digest look, or all groups. Called when a notification arrives,
    /// or may have been missed.
    pub fn look(&self, digest: Option<&str>) {
        for group in self.groups.lock().expect("no holder panics").values() {
            if digest.is_none_or(|digest| group.digest == digest) {
                group.look.notify_one();
            }
        }
    }

    /// Makes the group of a key look, whose attempt has just ended without an answer.
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
    while !*group.answered.borrow() {
        let looking = Arc::clone(&group);
        let state = db.run(move |conn| store::await_answer(conn, looking.merchant, &looking.key)).await;
        let (mut is_answered, mut pause_max) = (false, PAUSE_MAX);
        match state {
            Ok(AnswerState::Answered) => is_answered = true,
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
        if end(&groups, &group, is_answered, &found_by) {
            return;
        }
        pause = (pause * 2).min(pause_max);
        is_told = tokio::time::timeout(pause, group.look.notified()).await.is_ok();
    }
}

/// Ends a group if there is an answer or nobody is left. Counts the answer, unless the group has learned of it
/// meanwhile. Nobody can join meanwhile.
fn end(groups: &Groups, group: &Arc<Group>, is_answered: bool, found_by: &IntCounter) -> bool {
    let mut groups = groups.lock().expect("no holder panics");
    if !is_answered && group.answered.receiver_count() > 0 {
        return false;
    }
    let slot = (group.merchant, group.key.as_str().to_owned());
    if groups.get(&slot).is_some_and(|other| Arc::ptr_eq(other, group)) {
        groups.remove(&slot);
    }
    group.answered.send_if_modified(|current| {
        let is_first = is_answered && !*current;
        if is_first {
            found_by.inc();
            *current = true;
        }
        is_first
    });
    true
}
