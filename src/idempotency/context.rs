//! The context of an operation's execution.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::PgConnection;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::trace::TraceContext;
use crate::error::failure::Failure;

use super::envelope::Envelope;
use super::host::{Host, HostError};
use super::key::IdempotencyKey;
use super::policy::Policy;
use super::reply::Reply;
use super::store::{self, Claim};

/// One execution of a request.
pub struct Context<'a, H> {
    pub(super) envelope: &'a Envelope,
    pub(super) claim: &'a Claim,
    pub(super) now: DateTime<Utc>,
    pub(super) policy: &'a Policy,
    pub(super) host: &'a H,
}

impl<'a, H: Host> Context<'a, H> {
    /// The service.
    pub fn host(&self) -> &'a H {
        self.host
    }

    /// The merchant whose request it is.
    pub fn merchant(&self) -> MerchantId {
        self.envelope.merchant
    }

    /// Time of the key's first claim: the same in every attempt.
    pub fn claimed_at(&self) -> DateTime<Utc> {
        self.claim.created_at
    }

    /// Number of the attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.claim.attempt
    }

    /// The span of this attempt, in the trace of the first request with the key.
    pub fn trace(&self) -> &TraceContext {
        &self.claim.trace
    }

    /// Time of the effects, by the database's clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Id of the resource: allocated with the first claim or named by the request, and the same in every
    /// attempt.
    pub fn resource_id(&self) -> Result<Uuid, Failure> {
        self.claim.resource_id.ok_or_else(|| Failure::internal("the claim has no resource"))
    }

    /// The operation's policy.
    pub fn policy(&self) -> &Policy {
        self.policy
    }

    /// Name of the operator who sent the request.
    pub fn actor(&self) -> &str {
        self.envelope.actor.as_deref().unwrap_or("unknown")
    }

    /// Id of the message, if the request is one.
    pub fn message_id(&self) -> Result<&'a str, Failure> {
        self.envelope.message_id.as_deref().ok_or_else(|| Failure::internal("the request is no message"))
    }

    /// The body as received.
    pub fn raw_body(&self) -> &[u8] {
        &self.envelope.content.raw_body
    }

    /// Canonical bodies of the merchant's latest requests for `operation` that are being executed and began
    /// within `window`, except this one.
    pub fn others_in_progress(
        &self,
        conn: &mut PgConnection,
        operation: &'static str,
        window: Duration,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        store::others_in_progress(conn, self.claim, operation, window)
    }

    /// Whether this request has this key of this merchant.
    pub fn is_of_key(&self, merchant: MerchantId, key: &IdempotencyKey) -> bool {
        self.envelope.merchant == merchant && self.envelope.key == *key
    }

    /// Makes `error` the answer to this request.
    pub fn problem(&self, error: &H::Error) -> Result<Reply, Failure> {
        error.reply(&self.envelope.request_id, &self.envelope.content.path)
    }

    /// The idempotency key for one step of this request at the processor: the same in every attempt, and
    /// different for every other request.
    ///
    /// It derives from (merchant, key, generation), rather than being passed through, so that two merchants with
    /// the same key stay apart. The generation counts how often the key was executed and then forgotten.
    ///
    /// Promised:
    ///
    /// * A claim that is *lost* (a standby that hadn't got it took over, or a backup was restored) comes back
    ///   with the client's retry, as a new claim of the same generation. The processor recognizes its key and
    ///   answers with what it has done, as long as it remembers keys.
    /// * A key that was *forgotten* (its tombstone's time is over, or the policy executes expired keys) and comes
    ///   back is a new payment for the processor, too, however long that remembers keys: when the row of a key is
    ///   deleted, a trigger keeps its generation for good (`forgotten_idempotency_keys`), and the next claim has
    ///   the next one.
    ///
    /// Nothing cheaper keeps both promises. A derivation from any time, however coarse, differs between a lost
    /// claim and its retry if that time passes in between; and the database can't tell a key that it has never
    /// seen from one whose every trace was deleted. The trace is some hundred bytes per key with its index, a
    /// small part of what a payment leaves in the books for good.
    ///
    /// Not promised: that a lost claim's retry has the same resource id, which the processor keeps as the
    /// reference of the first; by this key, reconciliation still knows whose operation it is. And when the
    /// database is set back to a time before a key was forgotten, its next generation is an old one.
    ///
    /// Without a generation it derives from the time of the claim: in claims of earlier releases, which their
    /// instances may still take over, and in those without a client's key, which nobody repeats. An instance of
    /// a release without generations can't take over a claim that has one, and so never derives another key for
    /// it: a trigger knows it by the takeover that it doesn't count (`idempotency_keys_takeover`).
    pub fn derived_key(&self, step: &str) -> String {
        derived_key(self.claim, step)
    }
}

fn derived_key(claim: &Claim, step: &str) -> String {
    match claim.generation {
        Some(generation) => processor_key(claim.merchant, claim.key.as_str(), generation, step),
        None => key_from(
            claim.merchant,
            &claim.created_at.timestamp_micros().to_be_bytes(),
            claim.key.as_str(),
            step,
        ),
    }
}

/// The processor's key for one step of the request that has this key in this generation: what
/// [`Context::derived_key`] is for the attempts at it. By it, an operation in the processor's books can be told to be
/// that of a request, also of one that was lost and came again.
pub fn processor_key(merchant: MerchantId, key: &str, generation: i32, step: &str) -> String {
    // No time of a claim has these bytes.
    let origin = [b"generation".as_slice(), &generation.to_be_bytes()].concat();
    key_from(merchant, &origin, key, step)
}

fn key_from(merchant: MerchantId, origin: &[u8], key: &str, step: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(merchant.0.as_bytes());
    hash.update(origin);
    hash.update(key);
    format!("{}:{step}", hex::encode(&hash.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use uuid::Uuid;

    use super::*;

    fn claim(merchant: u128, key: &str, generation: Option<i32>, micros: i64) -> Claim {
        let created_at = DateTime::from_timestamp_micros(micros).unwrap();
        Claim {
            merchant: MerchantId(Uuid::from_u128(merchant)),
            key: IdempotencyKey::bare(key).unwrap(),
            token: Uuid::new_v4(),
            resource_id: None,
            attempt: 1,
            recoveries: 0,
            generation,
            trace: TraceContext::begin(),
            created_at,
            taken_at: (created_at, Instant::now()),
        }
    }

    /// Requests in flight during an upgrade go on under these keys.
    #[test]
    fn the_keys_of_claims_without_a_generation_stay_what_they_were() {
        let micros = 1_800_000_000_123_456;
        let key = derived_key(&claim(1, "order-1", None, micros), "capture");
        let mut bytes = Uuid::from_u128(1).as_bytes().to_vec();
        bytes.extend(micros.to_be_bytes());
        bytes.extend(b"order-1");
        assert_eq!(key, format!("{}:capture", hex::encode(&Sha256::digest(bytes)[..16])));
    }

    #[test]
    fn a_generation_has_the_same_keys_whenever_it_is_claimed_and_each_other_ones() {
        let key = |merchant, key, generation, micros| {
            derived_key(&claim(merchant, key, generation, micros), "capture")
        };
        assert_eq!(key(1, "a", Some(0), 1), key(1, "a", Some(0), 2));
        let all = [
            key(1, "a", Some(0), 1),
            key(1, "a", Some(1), 1),
            key(1, "a", None, 1),
            key(1, "b", Some(0), 1),
            key(2, "a", Some(0), 1),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }
}
