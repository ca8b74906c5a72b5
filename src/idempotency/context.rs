//! The context of an operation's execution.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::PgConnection;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::base::ids::MerchantId;
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
    /// The key is derived rather than passed through, so that two merchants with the same key stay apart. It
    /// includes the time of the first claim: when a key is used again after it was forgotten, that is a new
    /// payment for the processor, too.
    pub fn derived_key(&self, step: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.claim.merchant.0.as_bytes());
        hash.update(self.claim.created_at.timestamp_micros().to_be_bytes());
        hash.update(self.claim.key.as_str());
        format!("{}:{step}", hex::encode(&hash.finalize()[..16]))
    }
}
