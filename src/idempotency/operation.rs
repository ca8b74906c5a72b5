//! What an operation is to the engine: what it gets, and what it must do.

use std::borrow::Cow;
use std::str::FromStr;

use async_trait::async_trait;
use diesel::PgConnection;
use serde_json::Value;

use super::context::Context;
use super::descriptor::Descriptor;
use super::host::Host;
use super::policy::Policy;
use super::reply::Reply;

/// Why a request for the operation `O` can fail.
pub type ErrorOf<O> = <<O as Operation>::Host as Host>::Error;

/// Something that a mutating request asks for.
pub trait Operation: Sized + Send + Sync + 'static {
    /// The service that it's an operation of.
    type Host: Host;

    /// What there is to know of it.
    const DESCRIPTOR: Descriptor<<Self::Host as Host>::Caller>;

    /// Reads it from a request. Depends on nothing but the input, so that a stored request can be read again without its
    /// client.
    fn read(input: &Input<'_, Self::Host>) -> Result<Self, ErrorOf<Self>>;
}

/// What an operation is read from.
pub struct Input<'a, H> {
    /// Path pattern of the operation.
    pub pattern: &'static str,
    /// Concrete path of the request.
    pub path: &'a str,
    /// The body.
    pub body: &'a Value,
    /// The service, for settings that reading depends on.
    pub host: &'a H,
}

impl<'a, H> Input<'a, H> {
    /// A parameter of the path, percent-decoded.
    pub fn parameter(&self, name: &str) -> Cow<'a, str> {
        super::descriptor::parameter(self.pattern, self.path, name)
    }

    /// The same as an id; `None` if it isn't one, so that nothing can be found by it.
    pub fn id<T: FromStr>(&self, name: &str) -> Option<T> {
        self.parameter(name).parse().ok()
    }
}

/// An operation that changes only our own database.
pub trait LocalOperation: Operation {
    /// Does the work, inside the engine's transaction, which any error undoes. A final one (see
    /// [`HostError::is_final`](super::HostError::is_final)) is then kept as the answer.
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
    /// What calling and committing need to know of the reservation.
    type Reservation: Send + Sync + 'static;

    /// What the processor said, as far as committing needs it.
    type Outcome: Send + Sync + 'static;

    /// Checks whether the operation is allowed and reserves what it needs (money, the right to change an
    /// object), in the transaction of the first claim: so that two requests can't both be let through to
    /// the processor where there is room for one. A final error is kept as the answer, and the
    /// processor is never called; any other undoes the claim.
    fn reserve(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
    ) -> Result<Self::Reservation, ErrorOf<Self>>;

    /// Finds the reservation of an earlier attempt again, in a transaction after a takeover.
    fn resume(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
    ) -> Result<Self::Reservation, ErrorOf<Self>>;

    /// Calls the processor, with no transaction open. May run again after a crash, so each call must go
    /// out under a key from [`Context::derived_key`]. A decline is an outcome; an error means that
    /// there is none yet.
    async fn call_processor(
        &self,
        context: &Context<'_, Self::Host>,
        reservation: &Self::Reservation,
    ) -> Result<Self::Outcome, ErrorOf<Self>>;

    /// Writes what follows from the outcome or says what is to be written, inside the engine's transaction, which
    /// holds a lock on the key's row. Errors as with [`LocalOperation::execute`], except that the claim stays.
    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_, Self::Host>,
        reservation: &Self::Reservation,
        outcome: &Self::Outcome,
    ) -> Result<Commit, ErrorOf<Self>>;
}

/// An external operation whose requests can be claimed and completed many at a time, by the SQL of its descriptor's
/// [`Batching`](super::Batching), where they need nothing else of the database.
pub trait BatchedOperation: ExternalOperation {
    /// Whether [`reserve`](ExternalOperation::reserve) does more for this request than to read what
    /// [`reservation_from`](Self::reservation_from) takes. Without that requests are claimed together.
    fn needs_reservation(&self, policy: &Policy) -> bool;

    /// What [`reserve`](ExternalOperation::reserve) would return, from what the batching's `select_sql` has read.
    fn reservation_from(&self, read: Option<Value>) -> Result<Self::Reservation, ErrorOf<Self>>;

    /// What follows from the outcome, if that takes no look at the database: then requests are completed together.
    /// `None`: [`commit`](ExternalOperation::commit) has to find out.
    fn effects(
        &self,
        context: &Context<'_, Self::Host>,
        reservation: &Self::Reservation,
        outcome: &Self::Outcome,
    ) -> Result<Option<(Effects, Reply)>, ErrorOf<Self>>;
}

/// What is to be written for a request, beside its answer: a document that the batching's `write_sql` takes apart.
pub type Effects = Value;

/// What an external operation has come to.
pub enum Commit {
    /// Everything is written.
    Written(Reply),
    /// This is to be written, by the batching's `write_sql`, together with the answer.
    Effects(Effects, Reply),
}

impl From<Reply> for Commit {
    fn from(reply: Reply) -> Self {
        Self::Written(reply)
    }
}
