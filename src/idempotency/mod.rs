//! Runs a mutating request at most once per (merchant, idempotency key), and answers every retry with
//! the first answer's bytes.
//!
//! # What a request goes through
//!
//! 1. [`IdempotentRequest`] reads it at the door: who, which key, what to do, and how its operation treats keys
//!    (its [`Policy`]). It's the only way for a mutating handler to get its body, so that idempotency can't be
//!    forgotten.
//! 2. [`Engine`] decides: replay, refuse, wait, take over or execute. It claims a key with an insert that the
//!    primary key `(merchant_id, key)` arbitrates.
//! 3. The operation runs in one of two shapes:
//!    * [`LocalOperation`]: changes only our own database. Claim, work and answer are one transaction;
//!      a crash leaves nothing behind.
//!    * [`ExternalOperation`]: also calls the payment processor, which must not happen inside a
//!      transaction. The claim is committed first, together with a reservation of what the operation needs, then
//!      the processor is called with a key derived from ours, then one transaction checks that the claim is still
//!      ours (the *fence*), writes everything and stores the answer.
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
//! Times in the row decide, not whether the [reaper](workers::reaper) has come by: it only makes the table smaller. With the policy
//! `on_expired: execute` an expired key is free at once.
//!
//! A request in progress never expires. Who finishes it, in the order in which they may come: its owner while the
//! lease lives; its client's retry when it has run out or was given up; the [recovery](workers::recovery) worker of any instance;
//! an operator, who has it [retried](status::retry) or [released](status::release).
//!
//! # Duplicates of what is still running
//!
//! They're refused with 409, or wait if they ask for it (`Prefer: wait=N`): in async code, without a connection,
//! woken by the commit itself on the same instance and by a notification on others (see the module `waiting`). A claim
//! in a transaction that is still open can't be seen, so a request that has waited is compared with what was answered
//! before it gets that.
//!
//! # Many at a time
//!
//! Requests that need nothing of the database but their claim and the writing of what follows share statements when
//! many come at once (an operation says how, with [`Batching`]). Each still claims its own key and is fenced by its own
//! token: a request that loses is left out of the statement, not the cause of its failure. Whatever fails for all of
//! them is tried again by each alone, as are requests that find more to do than to claim: a takeover, a key to be used
//! again, a row that somebody else has locked.
//!
//! # Staged rollout
//!
//! A policy's `enforcement` goes from `off` over `observe` to `enforce`, and `rollout_percent` says for how many
//! merchants. While observing, each request is executed as if it had no key, and what the engine would have done
//! is counted; the first request of each key claims it all the same, so that keys are protected from the moment
//! at which that is enforced, and the retry of a request that was interrupted resumes it. Where keys have no effect, a
//! request is executed under a key of its own that nobody else has: it survives crashes too, and is finished by the
//! recovery worker, so that its client is told not to send it again.
//!
//! # Promised
//!
//! * At most one execution's effects per (merchant, key) while the key is remembered, whatever is killed whenever:
//!   effects and answer commit in one transaction, under a lock on the key's row, by the holder of the claim token.
//! * An answer that a client got is durable, and every retry gets the same status, body bytes and
//!   allow-listed headers, until `Idempotency-Expires`. The database refuses to change it before.
//! * A request that is refused or waits for its turn holds no database connection.
//! * A request that died is finished, with its client or without, within a bounded time while processor and
//!   database work.
//!
//! `tests/protocol.rs` checks the first two on a model of this protocol, in every order of its steps, and says for
//! each step of the model which function here it stands for.
//!
//! # Not promised
//!
//! * That a key is unique to one operation: it's unique per merchant, and reuse for anything else is
//!   refused.
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
pub mod metrics;
mod operation;
pub mod policies;
pub mod policy;
mod registry;
mod reply;
mod request;
mod settings;
pub mod status;
mod store;
mod waiting;
pub mod workers;

pub use context::Context;
pub use descriptor::{Batching, Descriptor, ResourceKind, Scope, Target, parameter};
pub use engine::{Engine, Response};
pub use envelope::Envelope;
pub use extract::{BODY_BYTES_MAX, HttpHost, Identity};
pub use fingerprint::{Fingerprint, Recipe, RequestContent};
pub use host::{Host, HostError};
pub use key::IdempotencyKey;
pub use operation::{
    BatchedOperation, Commit, Effects, ErrorOf, ExternalOperation, Input, LocalOperation, Operation,
};
pub use policy::{OwnSettings, Policy, PolicySetting, SettingKind, SettingValue};
pub use registry::Registered;
pub use reply::{KeptHeader, Reply, SEALED};
pub use request::IdempotentRequest;
pub use settings::{Recovery, Settings, Timing};
