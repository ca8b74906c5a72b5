//! The request or the piece of background work that is under way: what each of its log lines and spans names.
//!
//! The scope belongs to a task, so that no function has to pass it on. It follows the work to other tasks
//! ([`inherited`]) and to threads for blocking work ([`carried`]). It doesn't follow into a batch, which works
//! for several requests; where that does the work of one of them, it [enters](entered) that one's.
//!
//! Costs a request one allocation. Everything that only a line of the log needs is made when one is written.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::future::Either;

use super::ids::MerchantId;
use super::trace::TraceContext;

tokio::task_local! {
    static SCOPE: Arc<Scope>;
}

/// Target in the log of what becomes of requests that change something.
pub const REQUESTS: &str = "oncepay::request";

/// A request's key, as logs may show it.
pub trait HashedKey: Send + Sync {
    /// Digest that stands for the key.
    fn key_hash(&self) -> String;
}

/// A request, or a piece of background work.
pub struct Scope {
    id: Id,
    trace: TraceContext,
    operation: OnceLock<&'static str>,
    merchant: OnceLock<MerchantId>,
    key: OnceLock<Arc<dyn HashedKey>>,
    original: OnceLock<TraceContext>,
    decision: Mutex<Decision>,
}

/// What is under way.
enum Id {
    Request(String),
    Event(String),
}

/// The engine's decision on a request, for its closing line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decision {
    /// The last outcome: `executed`, `replayed` and so on.
    pub outcome: Option<&'static str>,
    /// What the engine would have done, if its policy only observes.
    pub observed: Option<&'static str>,
    /// Number of the attempt that executed the request.
    pub attempt: Option<u32>,
    /// Whether the closing line is written, or will never be.
    is_closed: bool,
}

impl Scope {
    /// Makes the scope of a request whose own span is `trace`. Its closing line is still to come.
    pub fn of_request(request_id: String, trace: TraceContext) -> Self {
        Self::new(Id::Request(request_id), trace)
    }

    /// Makes the scope of an event's delivery, or other treatment, whose own span is `trace`.
    pub fn of_event(event_id: String, trace: TraceContext) -> Self {
        Self::new(Id::Event(event_id), trace)
    }

    fn new(id: Id, trace: TraceContext) -> Self {
        Self {
            id,
            trace,
            operation: OnceLock::new(),
            merchant: OnceLock::new(),
            key: OnceLock::new(),
            original: OnceLock::new(),
            decision: Mutex::default(),
        }
    }

    /// Name and value of the id: `request_id` or `event_id`.
    pub fn id(&self) -> (&'static str, &str) {
        match &self.id {
            Id::Request(id) => ("request_id", id),
            Id::Event(id) => ("event_id", id),
        }
    }

    /// The span of this request or work.
    pub fn trace(&self) -> &TraceContext {
        &self.trace
    }

    /// Names the operation. The first name stays.
    pub fn set_operation(&self, operation: &'static str) {
        let _ = self.operation.set(operation);
    }

    /// Names the merchant. The first one stays.
    pub fn set_merchant(&self, merchant: MerchantId) {
        let _ = self.merchant.set(merchant);
    }

    /// Names the key. The first one stays.
    pub fn set_key(&self, key: Arc<dyn HashedKey>) {
        let _ = self.key.set(key);
    }

    /// Notes that the request goes on with, or repeats, what another request has begun, in the trace
    /// `original`.
    pub fn set_original(&self, original: &TraceContext) {
        if original.trace_id() != self.trace.trace_id() {
            let _ = self.original.set(original.clone());
        }
    }

    /// The operation.
    pub fn operation(&self) -> Option<&'static str> {
        self.operation.get().copied()
    }

    /// The merchant.
    pub fn merchant(&self) -> Option<MerchantId> {
        self.merchant.get().copied()
    }

    /// Digest of the key.
    pub fn key_hash(&self) -> Option<String> {
        self.key.get().map(|key| key.key_hash())
    }

    /// The trace that the request's effects belong to, if that isn't its own: the trace of the first request with
    /// its key.
    pub fn original(&self) -> Option<&TraceContext> {
        self.original.get()
    }

    /// The last outcome, as the engine names it.
    pub fn outcome(&self) -> Option<&'static str> {
        self.decision().outcome
    }

    /// Notes a decision for the closing line. False if none is to come.
    pub fn decide(&self, outcome: &'static str, attempt: Option<u32>) -> bool {
        let mut decision = self.decision();
        if outcome.starts_with("observed_") {
            decision.observed = Some(outcome);
        } else {
            decision.outcome = Some(outcome);
        }
        decision.attempt = attempt.or(decision.attempt);
        !decision.is_closed
    }

    /// Returns the decision so far. Later ones are logged by themselves.
    pub fn close(&self) -> Decision {
        let mut decision = self.decision();
        decision.is_closed = true;
        *decision
    }

    fn decision(&self) -> MutexGuard<'_, Decision> {
        // Each change is atomic, so a panic elsewhere can't have left a partial one.
        self.decision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` in `scope`.
pub fn within<F: Future>(scope: Arc<Scope>, work: F) -> impl Future<Output = F::Output> {
    SCOPE.scope(scope, work)
}

/// Runs `work`, perhaps in a task of its own, in the scope of the caller of this function.
pub fn inherited<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match current() {
        Some(scope) => Either::Left(within(scope, work)),
        None => Either::Right(work),
    }
}

/// Makes a function that calls `work`, perhaps on another thread, in the scope of the caller of this function.
pub fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let scope = current();
    move || entered(scope.as_ref(), work)
}

/// Calls `work`, which was taken over from elsewhere, in the scope from which it comes.
pub fn entered<T>(scope: Option<&Arc<Scope>>, work: impl FnOnce() -> T) -> T {
    match scope {
        Some(scope) => SCOPE.sync_scope(Arc::clone(scope), work),
        None => work(),
    }
}

/// The current scope.
pub fn current() -> Option<Arc<Scope>> {
    SCOPE.try_with(Arc::clone).ok()
}

/// Calls `use_it` with the current scope, or without one.
pub fn with_current<T>(use_it: impl FnOnce(Option<&Scope>) -> T) -> T {
    match current() {
        Some(scope) => use_it(Some(&scope)),
        None => use_it(None),
    }
}

/// Reads or changes the current scope, if there is one.
pub fn with<T>(use_it: impl FnOnce(&Scope) -> T) -> Option<T> {
    SCOPE.try_with(|scope| use_it(scope)).ok()
}

/// The span that effects of the current work on `merchant`'s objects belong to: one of the original trace, else its
/// own. Work without a scope begins a trace. What tracing systems have added goes to the merchant whose request it came
/// with, and to nobody else.
pub fn trace_of_effects(merchant: MerchantId) -> TraceContext {
    with(|scope| {
        let trace = scope.original().unwrap_or(scope.trace()).clone();
        if scope.merchant() == Some(merchant) { trace } else { trace.without_state() }
    })
    .unwrap_or_else(TraceContext::begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_follows_the_work_and_ends_with_it() {
        let (id, threads) = actix_web::rt::System::new().block_on(async {
            let scope = Arc::new(Scope::of_request("req_1".to_owned(), TraceContext::begin()));
            within(scope, async {
                let id = || with(|scope| scope.id().1.to_owned());
                let blocking = actix_web::rt::task::spawn_blocking(carried(id)).await.unwrap();
                let alone = tokio::spawn(async move { id() }).await.unwrap();
                let task = tokio::spawn(inherited(async move { id() })).await.unwrap();
                (id(), [blocking, task, alone])
            })
            .await
        });
        assert_eq!(id.as_deref(), Some("req_1"));
        assert_eq!(threads, [id.clone(), id, None]);
        assert!(current().is_none());
    }

    #[test]
    fn effects_belong_to_the_first_requests_trace() {
        let (first, retry) = (TraceContext::begin(), TraceContext::begin());
        let merchant = MerchantId(uuid::Uuid::nil());
        let scope = Arc::new(Scope::of_request("req_2".to_owned(), retry.clone()));
        SCOPE.sync_scope(Arc::clone(&scope), || {
            scope.set_original(&retry.child());
            assert_eq!(trace_of_effects(merchant), retry);
            scope.set_original(&first);
            assert_eq!(trace_of_effects(merchant), first);
        });
    }

    #[test]
    fn what_tracing_systems_add_goes_to_the_merchant_who_sent_it() {
        let (sender, other) = (MerchantId(uuid::Uuid::nil()), MerchantId(uuid::Uuid::max()));
        let parent = TraceContext::begin().to_string();
        let trace = TraceContext::stored(Some(&parent), Some("a=1")).expect("it's valid");
        let scope = Arc::new(Scope::of_request("req_4".to_owned(), trace));
        scope.set_merchant(sender);
        SCOPE.sync_scope(scope, || {
            assert_eq!(trace_of_effects(sender).state(), Some("a=1"));
            assert_eq!(trace_of_effects(other).state(), None);
        });
    }

    #[test]
    fn decisions_after_the_closing_line_are_logged_by_themselves() {
        let scope = Scope::of_request("req_3".to_owned(), TraceContext::begin());
        assert!(scope.decide("observed_would_replay", None));
        assert!(scope.decide("executed", Some(1)));
        let decision = scope.close();
        assert_eq!((decision.outcome, decision.observed), (Some("executed"), Some("observed_would_replay")));
        assert!(!scope.decide("executed", Some(2)));
    }
}
