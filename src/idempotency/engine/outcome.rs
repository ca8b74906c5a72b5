//! Transactions of requests, and their outcomes: errors that are answers, and what isn't known, for requests that no key
//! protects (see the module `progress`).

use std::sync::Arc;

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::{Connection, PgConnection};

use crate::error::failure::{AsFailure, Failure};
use crate::idempotency::decision::Lookup;
use crate::idempotency::descriptor::Descriptor;
use crate::idempotency::host::{Host, HostError};
use crate::idempotency::operation::{ErrorOf, Operation};
use crate::idempotency::progress::Progress;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::store::{self, Answer};
use crate::storage::db::{Silence, is_outcome_open};
use crate::storage::shape;

use super::Engine;

/// Converts the error that ends a request to the one for its client: `outcome_unknown` for a request that may
/// have taken effect and that no key protects.
pub(super) fn for_client<O: Operation>(request: &IdempotentRequest<O>, error: ErrorOf<O>) -> ErrorOf<O> {
    let is_unknown = match error.failure() {
        Some(Failure::OutcomeUnknown { .. }) => true,
        Some(Failure::DatabaseUnavailable(cause)) if cause.is::<Silence>() => true,
        // Also when the caller's key was revoked after the claim: the request was the caller's by then.
        _ => request.progress.is_claimed(),
    };
    if request.is_protected() || !is_unknown {
        return error;
    }
    let location = location(&O::DESCRIPTOR, &request.envelope.content.path, &request.progress);
    Failure::OutcomeUnknown { cause: error.detailed().into(), location }.into()
}

/// Path of the resource of a request for `path`. `None` if it has none, or if its id isn't known.
fn location<C: Copy>(descriptor: &Descriptor<C>, path: &str, progress: &Progress) -> Option<String> {
    let kind = descriptor.target.kind()?;
    let id = progress.resource_id().or_else(|| descriptor.resource(path).existing())?;
    Some(kind.url_below(path, id))
}

/// How long a transaction waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as its session does.
    Much,
    /// As short a time as suits one on whose end others wait. Most transactions that it meets take less.
    Little,
}

/// Runs `work` in a transaction. Errors: those of `work` and of the database.
pub(super) fn transaction<T, E: From<diesel::result::Error>>(
    conn: &mut PgConnection,
    patience: Patience,
    work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    let begin = match patience {
        // What the session is set to counts on the coordinator only.
        Patience::Much if shape::is_distributed() => "BEGIN; SET LOCAL lock_timeout = '2s'",
        Patience::Much => return conn.transaction(work),
        Patience::Little => "BEGIN; SET LOCAL lock_timeout = '50ms'",
    };
    // In one round trip. The rest is as in Diesel's own.
    AnsiTransactionManager::begin_transaction_sql(conn, begin)?;
    match work(conn) {
        Ok(done) => {
            AnsiTransactionManager::commit_transaction(conn)?;
            Ok(done)
        }
        Err(error) => match AnsiTransactionManager::rollback_transaction(conn) {
            Ok(()) | Err(diesel::result::Error::BrokenTransactionManager) => Err(error),
            Err(failure) => Err(failure.into()),
        },
    }
}

/// Runs `work` for a request in a transaction.
///
/// Errors: those of `work` and of the database. If a request without a protecting key loses its connection
/// during the commit, `outcome_unknown`, so that nobody runs it again: its own claim may be there.
pub(super) fn transact<O: Operation, T>(
    conn: &mut PgConnection,
    request: &IdempotentRequest<O>,
    patience: Patience,
    work: impl FnOnce(&mut PgConnection) -> Result<T, ErrorOf<O>>,
) -> Result<T, ErrorOf<O>> {
    let mut is_committing = false;
    let ended = transaction(conn, patience, |conn| {
        let done = work(conn)?;
        is_committing = true;
        Ok(done)
    });
    ended.map_err(|error| if is_committing { not_to_be_repeated(request, error) } else { error })
}

/// Converts the error of a commit, or of a statement that commits by itself: `outcome_unknown` if the request has no
/// protecting key and the connection was lost, so that nobody runs it again.
pub(super) fn not_to_be_repeated<O: Operation>(
    request: &IdempotentRequest<O>,
    error: ErrorOf<O>,
) -> ErrorOf<O> {
    match error.failure() {
        Some(failure) if !request.is_protected() && is_outcome_open(failure) => {
            Failure::outcome_unknown(failure.detailed()).into()
        }
        _ => error,
    }
}

impl<H: Host> Engine<H> {
    /// Stores a final error as the answer to a request whose transaction it has rolled back.
    ///
    /// Uses a transaction of its own: the rolled back one has undone what was written before the error. A
    /// savepoint around the work would cost every request two round trips. A request that claims the key in
    /// between executes instead.
    pub(super) fn refuse<O: Operation<Host = H>>(
        &self,
        conn: &mut PgConnection,
        request: &IdempotentRequest<O>,
        afresh: bool,
        error: &H::Error,
    ) -> Result<Lookup<Arc<Answer>>, H::Error> {
        transact(conn, request, Patience::Much, |conn| {
            let Some(claim) = self.claim(conn, request, afresh)? else {
                return Ok(Lookup::Again);
            };
            let reply = self.inner.context(request, &claim, claim.created_at).problem(error)?;
            Ok(Lookup::Ours(Arc::new(store::complete(conn, &claim, reply, &request.envelope.request_id)?)))
        })
    }
}
