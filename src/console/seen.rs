//! What this instance sees: the last requests that change something, in memory.
//!
//! The database keeps what a request did, once. That it came again, and what it was told then, is known to the instance that
//! answered, as long as it remembers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::base::ids::MerchantId;
use crate::idempotency::IdempotencyKey;

/// Number of requests that are remembered: some 5 MB.
const REMEMBERED: usize = 20_000;

/// A request that changes something, after its answer.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Time of the answer.
    pub at: DateTime<Utc>,
    /// The merchant, if it's known.
    pub merchant: Option<MerchantId>,
    /// [Digest](IdempotencyKey::digest_for) of the key.
    pub key_hash: Option<String>,
    /// Name of the operation.
    pub operation: &'static str,
    /// The engine's word for what became of it.
    pub outcome: &'static str,
    /// HTTP status of the answer.
    pub status: u16,
    /// Code of the problem, if it was one.
    pub code: Option<&'static str>,
    /// Id of the request, as in the log.
    pub request_id: String,
    /// Time from the request's arrival to its answer.
    pub duration: Duration,
}

/// Kinds of outcomes, as the charts tell them apart: name, and what it means for the client.
pub const KINDS: [(&str, &str); 7] = [
    ("executed", "done, for the first time"),
    ("replayed", "the first answer again"),
    ("conflict", "the first request was still under way"),
    ("mismatch", "the key was another request's"),
    ("expired", "the key was too old"),
    ("refused", "not begun: nothing was done"),
    ("failed", "an error of the service"),
];

impl Seen {
    /// Number of the kind among [`KINDS`].
    pub fn kind(&self) -> usize {
        match (self.outcome, self.status) {
            (_, 500..) => 6,
            ("replayed" | "mismatch_replayed", _) => 1,
            ("in_progress", _) => 2,
            ("mismatch", _) => 3,
            ("expired", _) => 4,
            ("refused" | "missing" | "invalid" | "client_gone", _) => 5,
            _ => 0,
        }
    }

    /// What the answer meant.
    pub fn meaning(&self) -> &'static str {
        KINDS[self.kind()].1
    }
}

/// The last requests, oldest first.
#[derive(Debug, Default)]
pub struct Live {
    seen: Mutex<VecDeque<Arc<Seen>>>,
}

impl Live {
    /// Remembers a request.
    pub fn remember(&self, seen: Seen) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == REMEMBERED {
            all.pop_front();
        }
        all.push_back(Arc::new(seen));
    }

    /// The requests since `from`, newest first, of one merchant or all.
    pub fn since(&self, from: DateTime<Utc>, merchant: Option<MerchantId>) -> Vec<Arc<Seen>> {
        let all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = all.iter().rev().take_while(|seen| seen.at >= from);
        recent.filter(|seen| merchant.is_none() || seen.merchant == merchant).cloned().collect()
    }

    /// The requests with these keys that didn't execute anything, oldest first, each with its key.
    pub fn of_keys<'a>(
        &self,
        merchant: MerchantId,
        keys: impl Iterator<Item = &'a str>,
    ) -> Vec<(&'a str, Arc<Seen>)> {
        let hashed = |key: &'a str| Some((IdempotencyKey::bare(key)?.digest_for(merchant), key));
        let hashes: BTreeMap<_, _> = keys.filter_map(hashed).collect();
        // Requests wait for the lock to be remembered, so this looks through all of them once.
        let all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let repeat = |seen: &Arc<Seen>| {
            let key = hashes.get(seen.key_hash.as_ref().filter(|_| seen.outcome != "executed")?)?;
            Some((*key, Arc::clone(seen)))
        };
        all.iter().filter_map(repeat).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::base::time;

    fn seen(outcome: &'static str, status: u16, key: &str, merchant: MerchantId) -> Seen {
        Seen {
            at: time::now(),
            merchant: Some(merchant),
            key_hash: IdempotencyKey::bare(key).map(|key| key.digest_for(merchant)),
            operation: "charges.create",
            outcome,
            status,
            code: None,
            request_id: "req_1".to_owned(),
            duration: Duration::from_millis(1),
        }
    }

    #[test]
    fn only_so_many_requests_are_remembered() {
        let live = Live::default();
        let merchant = MerchantId(Uuid::from_u128(1));
        for number in 0..REMEMBERED + 10 {
            live.remember(seen("replayed", 201, if number < 10 { "old" } else { "new" }, merchant));
        }
        assert_eq!(live.of_keys(merchant, ["old"].into_iter()).len(), 0);
        assert_eq!(live.of_keys(merchant, ["new"].into_iter()).len(), REMEMBERED);
    }

    #[test]
    fn repeats_of_a_key_are_those_of_its_merchant_without_the_execution() {
        let live = Live::default();
        let [one, other] = [1, 2].map(|number| MerchantId(Uuid::from_u128(number)));
        live.remember(seen("executed", 201, "k", one));
        live.remember(seen("replayed", 201, "k", one));
        live.remember(seen("mismatch", 422, "k", one));
        live.remember(seen("replayed", 201, "k", other));
        let outcomes: Vec<_> =
            live.of_keys(one, ["k"].into_iter()).iter().map(|(_, seen)| seen.outcome).collect();
        assert_eq!(outcomes, ["replayed", "mismatch"]);
    }

    #[test]
    fn each_outcome_has_its_kind() {
        let merchant = MerchantId(Uuid::from_u128(1));
        for (outcome, status, kind) in [
            ("executed", 201, "executed"),
            ("executed", 402, "executed"),
            ("replayed", 402, "replayed"),
            ("mismatch_replayed", 201, "replayed"),
            ("in_progress", 409, "conflict"),
            ("mismatch", 422, "mismatch"),
            ("expired", 422, "expired"),
            ("refused", 422, "refused"),
            ("refused", 503, "failed"),
        ] {
            assert_eq!(KINDS[seen(outcome, status, "k", merchant).kind()].0, kind, "{outcome} {status}");
        }
    }
}
