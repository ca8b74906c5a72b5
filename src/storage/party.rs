//! The party for which work is done.
//!
//! Where requests wait for the database, parties take [turns](super::turns): a merchant with a thousand requests
//! delays another one's by one of them, not by a thousand. The party belongs to the request's task, as its
//! [deadline](super::deadline) does, so that no function has to pass it on.

use std::cell::Cell;

use crate::base::ids::MerchantId;

tokio::task_local! {
    static PARTY: Cell<Party>;
}

/// A party that shares the database with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// What goes before all others: the statements that many requests share, the work of requests that have claimed
    /// their key, since what has begun should end, and the health check. There is only so much of it: claims pass the
    /// queue first, and of the rest there is little at a time.
    First,
    /// The service's workers.
    Service,
    /// All senders that haven't proved who they are. A key may name any merchant, so until it has been checked, its
    /// request waits among strangers and not among that merchant's.
    Strangers,
    /// A caller: a merchant, or the id under which the host keeps the keys of its other callers.
    Caller(MerchantId),
}

/// Runs `work` for `party`, until [`belongs_to`] names another one.
pub fn within<F: Future>(party: Party, work: F) -> impl Future<Output = F::Output> {
    PARTY.scope(Cell::new(party), work)
}

/// Says that the current request is `party`'s.
pub fn belongs_to(party: Party) {
    let _ = PARTY.try_with(|current| current.set(party));
}

/// The party of the current request. [`Party::Service`] outside of a request.
pub fn current() -> Party {
    PARTY.try_with(Cell::get).unwrap_or(Party::Service)
}
