//! Operations as the engine sees them: their input and their duties.

use std::borrow::Cow;
use std::str::FromStr;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::PgConnection;
use serde_json::Value;
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::error::failure::Failure;

use super::context::Context;
use super::descriptor::Descriptor;
use super::host::Host;
use super::policy::Policy;
use super::reply::Reply;

/// The error type of the operation `O`.
pub type ErrorOf<O> = <<O as Operation>::Host as Host>::Error;

/// A mutating operation.
pub trait Operation: Sized + Send + Sync + 'static {
    /// The service that the operation belongs to.
    type Host: Host;

    /// Description of the operation.
    const DESCRIPTOR: Descriptor<<Self::Host as Host>::Caller>;

    /// Reads the operation from a request. Depends only on the input, so that a stored request can be read
    /// again without its client.
    fn read(input: &Input<'_, Self::Host>) -> Result<Self, ErrorOf<Self>>;
}

/// The input from which an operation is read.
pub struct Input<'a, H> {
    /// Path pattern of the operation.
    pub pattern: &'static str,
    /// Concrete path of the request.
    pub path: &'a str,
    /// Query of the request, as sent. The fingerprint covers it. A host may refuse parameters that the descriptor doesn't name.
    pub query: &'a str,
    /// The body.
    pub body: &'a Value,
    /// The service, for settings that affect reading.
    pub host: &'a H,
}

impl<'a, H> Input<'a, H> {
    /// Returns a parameter of the path, percent-decoded.
    pub fn parameter(&self, name: &str) -> Cow<'a, str> {
        super::descriptor::parameter(self.pattern, self.path, name)
    }

    /// Returns a parameter of the path as an id. `None` if it isn't one, so that it finds nothing.
    pub fn id<T: FromStr>(&self, name: &str) -> Option<T> {
        self.parameter(name).parse().ok()
    }
}

/// An operation that changes only our own database.
pub trait LocalOperation: Operation {
    /// Does the work, inside the engine's transaction. Any error rolls it back. A final one (see
    /// [`HostError::is_final`](super::HostError::is_final)) is then stored as the answer.
    fn execute(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
    ) -> Result<Reply, ErrorOf<Self>>;
}

/// An operation that calls the payment processor.
///
/// ```text
/// one transaction   claim, reserve        reserve what the call will use, or refuse for good
///   (a takeover: take over, then resume)
/// no transaction    call_processor
/// one transaction   lock (fence), commit  write what follows, release the reservation, store the answer
/// ```
#[async_trait]
pub trait ExternalOperation: Operation {
    /// The part of the reservation that the call and the commit need.
    type Reservation: Send + Sync + 'static;

    /// The part of the processor's answer that the commit needs.
    type Outcome: Send + Sync + 'static;

    /// Checks whether the operation is allowed and reserves what it needs (money, the right to change an
    /// object), in the transaction of the first claim. So of two requests that compete for the same thing,
    /// only one gets through to the processor. A final error is stored as the answer, and the processor is
    /// never called; any other error rolls the claim back.
    fn reserve(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
    ) -> Result<Self::Reservation, ErrorOf<Self>>;

    /// Reads the reservation of an earlier attempt, in a transaction after a takeover.
    fn resume(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
    ) -> Result<Self::Reservation, ErrorOf<Self>>;

    /// Calls the processor, without an open transaction. May run again after a crash, so each call must use a
    /// key from [`Context::derived_key`]. A decline is an outcome; an error means that there is no outcome
    /// yet.
    async fn call_processor(
        &self,
        context: &Context<'_, Self::Host>,
        reservation: &Self::Reservation,
    ) -> Result<Self::Outcome, ErrorOf<Self>>;

    /// Writes the effects of the outcome, or returns them to be written, inside the engine's transaction,
    /// which holds a lock on the key's row. Errors as with [`LocalOperation::execute`], except that the claim
    /// stays.
    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
        reservation: &Self::Reservation,
        outcome: &Self::Outcome,
    ) -> Result<Commit, ErrorOf<Self>>;

    /// Releases what [`reserve`](Self::reserve) has set aside, in the transaction in which an operator ends a
    /// request that can't be finished. The default suits operations that reserve nothing.
    fn abandon(_conn: &mut PgConnection, _abandoned: &Abandoned) -> Result<(), ErrorOf<Self>> {
        Ok(())
    }
}

/// A request that an operator ends.
#[derive(Clone, Debug)]
pub struct Abandoned {
    /// The merchant whose request it is.
    pub merchant: MerchantId,
    pub(super) resource_id: Option<Uuid>,
    /// Time of the end, by the database's clock.
    pub now: DateTime<Utc>,
}

impl Abandoned {
    /// Id of the resource, as in [`Context::resource_id`].
    pub fn resource_id(&self) -> Result<Uuid, Failure> {
        self.resource_id.ok_or_else(|| Failure::internal("the request has no resource"))
    }
}

/// An external operation whose requests can be claimed and completed in batches, by the SQL of its
/// descriptor's [`Batching`](super::Batching), if they need nothing else of the database.
pub trait BatchedOperation: ExternalOperation {
    /// Whether [`reserve`](ExternalOperation::reserve) does more for this request than read the input of
    /// [`reservation_from`](Self::reservation_from). If not, requests are claimed in batches.
    fn needs_reservation(&self, policy: &Policy) -> bool;

    /// Makes the result of [`reserve`](ExternalOperation::reserve) from what the batching's `select_sql` has
    /// read.
    fn reservation_from(&self, read: Option<Value>) -> Result<Self::Reservation, ErrorOf<Self>>;

    /// Returns the effects of the outcome, and the answer. They don't depend on the database, so that requests are
    /// completed in batches.
    fn effects(
        &self,
        context: &Context<'_, Self::Host>,
        reservation: &Self::Reservation,
        outcome: &Self::Outcome,
    ) -> Result<(Effects, Reply), ErrorOf<Self>>;

    /// Adds to an answer what the batching's `note_sql` has found while the effects were written, if it isn't null. It isn't
    /// stored, so only the first client gets it.
    fn note(&self, _context: &Context<'_, Self::Host>, reply: Reply, _found: Value) -> Reply {
        reply
    }
}

/// The effects of a request, without its answer: a document for the batching's `write_sql`.
pub type Effects = Value;

/// Result of an external operation's commit.
pub enum Commit {
    /// All effects are written.
    Written(Reply),
    /// The batching's `write_sql` must write these effects, together with the answer.
    Effects(Effects, Reply),
}

impl From<Reply> for Commit {
    fn from(reply: Reply) -> Self {
        Self::Written(reply)
    }
}
