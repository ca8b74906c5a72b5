//! What an operation is to the engine: what it gets, and what it must do.

use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::PgConnection;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::base::derived_secrets::{Purpose, Vault};
use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::host::metrics::Metrics;
use crate::processor::{Processor, ProcessorCall};

use super::key::IdempotencyKey;
use super::policy::Policy;
use super::reply::Reply;
use super::request::{Envelope, Operation};
use super::store::{self, Claim, Effects};

/// What an operation gets to know about its execution.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub(super) envelope: &'a Envelope,
    pub(super) claim: &'a Claim,
    pub(super) now: DateTime<Utc>,
    pub(super) policy: &'a Policy,
    pub(super) vault: &'a Vault,
    pub(super) metrics: &'a Metrics,
}

impl Context<'_> {
    /// Whose request it is.
    pub fn merchant(&self) -> MerchantId {
        self.envelope.merchant
    }

    /// When the key was first claimed: the same in every attempt.
    pub fn claimed_at(&self) -> DateTime<Utc> {
        self.claim.created_at
    }

    /// Time of the effects, by the database's clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Id of the resource: allocated with the first claim or named by the request, and the same in every
    /// attempt.
    pub fn resource_id(&self) -> Result<Uuid, Error> {
        self.claim.resource_id.ok_or_else(|| Error::internal("the claim has no resource"))
    }

    /// The secret for `purpose` of the object `id`, to be handed out in a [sealed](Reply::seal) reply.
    pub fn secret(&self, purpose: Purpose, id: Uuid) -> SecretString {
        self.vault.derive(purpose, id)
    }

    /// The operation's policy.
    pub fn policy(&self) -> &Policy {
        self.policy
    }

    /// Who asks, if that is an operator.
    pub fn actor(&self) -> &str {
        self.envelope.actor.as_deref().unwrap_or("unknown")
    }

    /// Id of the acquirer's message that this is about.
    pub fn event_id(&self) -> Result<&str, Error> {
        self.envelope.event_id.as_deref().ok_or_else(|| Error::internal("the request is no message"))
    }

    /// The body as it came.
    pub fn raw_body(&self) -> &[u8] {
        &self.envelope.content.raw_body
    }

    /// Where the service counts.
    pub fn metrics(&self) -> &Metrics {
        self.metrics
    }

    /// Canonical bodies of the latest requests of this merchant for `operation` that are being executed and were begun
    /// within `window`, except this one.
    pub fn others_in_progress(
        &self,
        conn: &mut PgConnection,
        operation: &'static str,
        window: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        store::others_in_progress(conn, self.claim, operation, window)
    }

    /// Whether this request has this key of this merchant.
    pub fn is_of_key(&self, merchant: MerchantId, key: &IdempotencyKey) -> bool {
        self.envelope.merchant == merchant && self.envelope.key == *key
    }

    /// `error` as an answer to this request.
    pub fn problem(&self, error: &Error) -> Result<Reply, Error> {
        Reply::problem(error, &self.envelope.request_id, &self.envelope.content.path)
    }

    /// Names one step of this request towards the processor: the same in every attempt, another for
    /// every other request.
    ///
    /// The processor's key is derived rather than passed through, so that two merchants with the same
    /// key stay apart. The time of the first claim is part of it: when a key is used again after it has
    /// been forgotten, that is a new payment for the processor too.
    ///
    /// `reference` is the object that the call is for.
    pub fn processor_call(&self, step: &str, reference: impl Display) -> ProcessorCall {
        let mut hash = Sha256::new();
        hash.update(self.claim.merchant.0.as_bytes());
        hash.update(self.claim.created_at.timestamp_micros().to_be_bytes());
        hash.update(self.claim.key.as_str());
        ProcessorCall {
            key: format!("{}:{step}", hex::encode(&hash.finalize()[..16])),
            merchant: self.claim.merchant,
            reference: reference.to_string(),
            attempt: self.claim.attempt,
        }
    }
}

/// An operation that changes only our own database.
pub trait LocalOperation: Operation {
    /// Does the work, inside the engine's transaction, which any error undoes. A final one (see
    /// [`Error::is_final`]) is then kept as the answer.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error>;
}

/// SQL that lets requests of one operation be claimed and finished many at a time, where they need nothing else of the
/// database.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    /// What preparing needs to know: an expression of type `jsonb` over the claim's new row (`idempotency_keys`).
    pub reads: &'static str,
    /// What writes [`Effects`]: further parts of a `WITH` (see `store::complete_all`).
    pub writes: &'static str,
}

/// An operation that calls the payment processor.
///
/// ```text
/// one transaction   claim, prepare        reserve what the call will use, or refuse for good
///   (a takeover: take over, then resume)
/// no transaction    perform               call the processor
/// one transaction   lock (fence), finish  write what follows, release the reservation, store the answer
/// ```
#[async_trait]
pub trait ExternalOperation: Operation {
    /// What performing and finishing need to know of the reservation.
    type Prepared: Send + Sync + 'static;

    /// What the processor said, as far as finishing needs it.
    type Outcome: Send + Sync + 'static;

    /// How requests are claimed and finished many at a time. `None`: each needs transactions of its own.
    const TOGETHER: Option<Together> = None;

    /// Whether [`prepare`](Self::prepare) does more than to read what [`Together::reads`] reads. Without that requests
    /// are claimed together.
    fn reserves(&self, _policy: &Policy) -> bool {
        true
    }

    /// What [`prepare`](Self::prepare) would return, from what [`Together::reads`] has read.
    fn prepared(&self, _read: Option<serde_json::Value>) -> Result<Self::Prepared, Error> {
        Err(Error::internal("this operation reads nothing with its claim"))
    }

    /// Checks whether the operation is allowed and reserves what it needs (money, the right to change an
    /// object), in the transaction of the first claim: so that two requests can't both be let through to
    /// the processor where there is room for one. A final error is kept as the answer, and the
    /// processor is never called; any other undoes the claim.
    fn prepare(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Self::Prepared, Error>;

    /// Finds the reservation of an earlier attempt again, in a transaction after a takeover.
    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Self::Prepared, Error>;

    /// Calls the processor, with no transaction open. May run again after a crash, so each call must go
    /// out under a key from [`Context::processor_call`]. A decline is an outcome; an error means that
    /// there is none yet.
    async fn perform(
        &self,
        processor: &dyn Processor,
        context: &Context<'_>,
        prepared: &Self::Prepared,
    ) -> Result<Self::Outcome, Error>;

    /// Says what follows from the outcome, if that takes no look at the database: then requests are finished many at
    /// a time. `None`: [`finish`](Self::finish) has to.
    fn conclude(
        &self,
        _context: &Context<'_>,
        _prepared: &Self::Prepared,
        _outcome: &Self::Outcome,
    ) -> Result<Option<(Effects, Reply)>, Error> {
        Ok(None)
    }

    /// Writes what follows from the outcome or says what is to be written, inside the engine's transaction, which
    /// holds a lock on the key's row. Errors as with [`LocalOperation::execute`], except that the claim stays.
    fn finish(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        prepared: &Self::Prepared,
        outcome: &Self::Outcome,
    ) -> Result<Finished, Error>;
}

/// What an external operation has come to.
pub enum Finished {
    /// Everything is written.
    Written(Reply),
    /// This is to be written, by [`Together::writes`], together with the answer.
    ToWrite(Effects, Reply),
}

impl From<Reply> for Finished {
    fn from(reply: Reply) -> Self {
        Self::Written(reply)
    }
}
