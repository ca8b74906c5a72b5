//! The adapter that a request is served with.
//!
//! Reading a request takes a word of the adapter: whether it knows a payment method, what a message says. The adapter belongs
//! to the request's task, as its deadline does, so that nobody has to pass it on.

use super::Adapter;

tokio::task_local! {
    static CURRENT: Adapter;
}

/// Runs `work`, in which [`adapter`] returns this one.
pub async fn with<F: Future>(adapter: Adapter, work: F) -> F::Output {
    CURRENT.scope(adapter, work).await
}

/// The adapter of the request; `None` outside of one, where what is read was read in a request before.
pub fn adapter() -> Option<Adapter> {
    CURRENT.try_with(Adapter::clone).ok()
}
