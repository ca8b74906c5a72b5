//! Runs a mutating request at most once per (merchant, idempotency key), and answers every retry with the
//! first answer's bytes.
//!
//! # The stages of a request
//!
//! 1. [`IdempotentRequest`] reads the request: the caller, the key, the operation, and the [`Policy`] of that
//!    operation. A mutating handler gets its body only from it, so idempotency can't be forgotten.
//! 2. [`Engine`] decides: replay, refuse, wait, take over or execute. It claims a key with an insert; the
//!    primary key `(merchant_id, key)` decides between concurrent claims.
//! 3. The operation runs in one of two shapes:
//!    * [`LocalOperation`] changes only our own database. Claim, work and answer are one transaction; a crash
//!      leaves nothing behind.
//!    * [`ExternalOperation`] also calls the payment processor, which must not happen inside a transaction.
//!      The claim commits first, together with a reservation of what the operation needs. Then the engine
//!      calls the processor with a key derived from ours. Then one transaction checks that the claim still
//!      owns the key (the *fence*), writes everything and stores the answer.
//!
//! # The life of a key
//!
//! ```text
//!                claim                        complete (fenced)
//!   (no row) ───────────────▶ in_progress ───────────────────────▶ completed
//!      ▲                      │    ▲   │                               │ ttl_seconds later
//!      │     lease runs out,  └────┘   │ failed without an outcome:    ▼
//!      │     another attempt           │ the lease is given up      expired: a tombstone; the key is
//!      │     takes over                ▼                               │     refused, not executed again
//!      │     (new token)      in_progress, free to take over           │
//!      │                               │ the recovery worker           │ tombstone_seconds later
//!      │                               ▼ has failed too often          │
//!      │                      parked, for an operator                  │
//!      └───────────────────────────────────────────────────────────────┘ forgotten: the key is free
//! ```
//!
//! The times in the row decide, whether or not the [reaper](workers::reaper) has processed it: the reaper
//! only makes the table smaller. With the policy `on_expired: execute`, an expired key is free at once.
//!
//! A request in progress never expires. These may finish it, in this order: its owner while the lease lives;
//! its client's retry when the lease has expired or was released; the [recovery](workers::recovery) worker of
//! any instance; an operator's [retry](status::retry) or [release](status::release).
//!
//! # Duplicates of a running request
//!
//! The engine refuses them with 409, or lets them wait if they ask for it (`Prefer: wait=N`). They wait in
//! async code, without a connection; the commit itself wakes those on the same instance, and a notification
//! those on others (see the module `waiting`). A claim in an open transaction is invisible, so a request that
//! has waited is compared with the answered one before it gets that answer.
//!
//! # Batches
//!
//! Concurrent requests share statements if they need the database only for their claims and for writing their
//! effects (an operation's [`Batching`] has the SQL). Each still claims its own key and is fenced by its own
//! token: a request that loses is left out of the statement and doesn't make it fail. If a statement fails
//! for all of them, each is retried alone. So is a request that needs more than a claim: a takeover, a key
//! that is free again, a row that another request has locked.
//!
//! A request that is alone in its batch claims its key at once, as long as nearly all keys are new, and looks it up
//! only if it can't have it. All others look first.
//!
//! Requests that read and lock more share transactions, if their operation [says so](Descriptor::sharing_transactions): one
//! look-up, one claim, one statement for the answers, and one commit for all, and the work of each behind a savepoint (see the
//! module `sharing` of the engine). Who fails goes alone, in a transaction as above.
//!
//! # Retries
//!
//! The engine counts how old each key is that comes back, and what the request finds under it, in memory and then in a
//! table (see the module `retries`). `oncepay policies recommend` derives TTLs from that.
//!
//! # Staged rollout
//!
//! A policy's `enforcement` goes from `off` through `observe` to `enforce`, and `rollout_percent` says for
//! how many merchants. With `observe`, the engine executes each request as if it had no key, and counts what
//! it would have done. The first request of each key claims it all the same, so keys are protected from the
//! moment of enforcement, and the retry of an interrupted request resumes it. Where keys have no effect, the
//! engine executes a request under a unique key of its own. That request survives crashes, too, and the
//! recovery worker finishes it. Its client can't send it again without the risk of doing it twice, so whenever
//! it may have taken effect, the answer is `outcome_unknown` and not an invitation to retry (see the module
//! `progress`).
//!
//! # Promised
//!
//! * At most one execution's effects per (merchant, key) while the key is remembered, whatever is killed at
//!   any time: effects and answer commit in one transaction, under a lock on the key's row, by the holder of
//!   the claim token.
//! * An answer that a client got is durable, and every retry gets the same status, body bytes and
//!   allow-listed headers, until `Idempotency-Expires`. The database refuses to change it before.
//! * A request that is refused or waits for its turn holds no database connection.
//! * An abandoned request is finished, with its client or without, within a bounded time while processor and
//!   database work.
//!
//! `tests/protocol.rs` checks the first two on a model of this protocol, in every order of its steps. It
//! names the function here for each step of the model.
//!
//! # Not promised
//!
//! * That a key is unique to one operation: it's unique per merchant, and any other use of it is refused.
//! * That the processor is *called* once. It may be called again after a crash or a lost answer; its own
//!   idempotency, under our derived key, makes that harmless.
//!
//! The shapes follow Brandur Leach's "Implementing Stripe-like Idempotency Keys in Postgres" and Airbnb's
//! "Avoiding Double Payments in a Distributed Payments System"; the header follows the IETF draft
//! draft-ietf-httpapi-idempotency-key-header, and waiting RFC 7240.

mod batching;
mod context;
mod decision;
mod descriptor;
mod engine;
mod envelope;
mod extract;
mod fingerprint;
mod host;
mod key;
mod limits;
pub mod metrics;
mod operation;
pub(crate) mod policies;
pub(crate) mod policy;
mod progress;
mod registry;
mod reply;
mod request;
pub(crate) mod resolution;
pub(crate) mod retries;
mod settings;
pub(crate) mod status;
mod store;
mod waiting;
pub mod workers;

pub use context::{Context, processor_key};
pub use descriptor::{Batching, Descriptor, ResourceKind, Scope, Target, parameter};
pub use engine::{Engine, Response};
pub use envelope::Envelope;
pub use extract::{BODY_BYTES_MAX, HttpHost, Identity};
pub use fingerprint::{Fingerprint, Recipe, RequestContent};
pub use host::{Host, HostError};
pub use key::{IdempotencyKey, KEY_LENGTH_MAX};
pub use limits::RateLimitFields;
pub use operation::{
    Abandoned, BatchedOperation, Commit, Effects, ErrorOf, ExternalOperation, Input, LocalOperation,
    Operation,
};
pub use policy::{OwnSettings, Policy, PolicySetting, SettingKind, SettingValue};
pub use registry::RegisteredOperation;
pub use reply::{KeptHeader, Reply, SEALED};
pub use request::IdempotentRequest;
pub use settings::{Recovery, Settings, Timing};
