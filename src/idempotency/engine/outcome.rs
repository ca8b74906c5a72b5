//! Outcomes that aren't known, for requests that no key protects (see the module `progress`).

use diesel::{Connection, PgConnection};

use crate::error::failure::{AsFailure, Failure};
use crate::idempotency::descriptor::Descriptor;
use crate::idempotency::host::HostError;
use crate::idempotency::operation::{ErrorOf, Operation};
use crate::idempotency::progress::Progress;
use crate::idempotency::request::IdempotentRequest;
use crate::storage::db::{Silence, is_outcome_open};

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

/// Runs `work` in a transaction.
///
/// Errors: those of `work` and of the database. If a request without a protecting key loses its connection
/// during the commit, `outcome_unknown`, so that nobody runs it again: its own claim may be there.
pub(super) fn transact<O: Operation, T>(
    conn: &mut PgConnection,
    request: &IdempotentRequest<O>,
    work: impl FnOnce(&mut PgConnection) -> Result<T, ErrorOf<O>>,
) -> Result<T, ErrorOf<O>> {
    let mut is_committing = false;
    let ended = conn.transaction(|conn| {
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
