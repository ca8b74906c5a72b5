//! Runs a mutating request at most once per (merchant, idempotency key), and answers every retry with
//! the first answer's bytes.
//!
//! # What a request goes through
//!
//! 1. [`IdempotentRequest`] reads it at the door: who, which key, which fingerprint, what to do.
//!    It's the only way for a mutating handler to get its body, so that idempotency can't be forgotten.
//! 2. [`Engine`] decides: replay, refuse, or execute. It claims the key with an insert that the primary
//!    key `(merchant_id, key)` arbitrates.
//! 3. The operation runs in one of two shapes:
//!    * [`LocalOperation`]: changes only our own database. Claim, work and answer are one transaction;
//!      a crash leaves nothing behind.
//!    * [`ExternalOperation`]: also calls the payment processor, which must not happen inside a
//!      transaction. The claim is committed first, together with a reservation of what the operation needs, then the processor is called with a key derived from
//!      ours, then one transaction checks that the claim is still ours (the *fence*), writes
//!      everything and stores the answer.
//!
//! # States of a key
//!
//! ```text
//!                claim                        complete (fenced)
//!   (no row) ───────────────▶ in_progress ───────────────────────▶ completed
//!                             │    ▲   │
//!            lease runs out,  └────┘   │ failed without an outcome: the lease is given up,
//!            another attempt           │ so that the next attempt takes over at once
//!            takes over                ▼
//!            (new claim token)     in_progress, free to take over
//! ```
//!
//! # Promised
//!
//! * At most one execution's effects per (merchant, key), whatever is killed whenever: effects and
//!   answer commit in one transaction, under a lock on the key's row, by the holder of the claim token.
//! * An answer that a client got is durable, and every retry gets the same status, body bytes and
//!   allow-listed headers.
//! * A request that is refused or waits for its turn holds no database connection.
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
//! draft-ietf-httpapi-idempotency-key-header.

mod engine;
mod fingerprint;
mod key;
mod listen;
pub mod policy;
pub mod reaper;
pub mod recovery;
mod registry;
mod reply;
mod request;
pub mod status;
mod store;
mod waiting;

pub use engine::{Context, Engine, ExternalOperation, LocalOperation, Timing};
pub use fingerprint::{Fingerprint, Recipe, RequestContent};
pub use key::IdempotencyKey;
pub use policy::Policy;
pub use registry::Registered;
pub use reply::{KeptHeader, Reply, SEALED};
pub use request::{BODY_BYTES_MAX, Caller, IdempotentRequest, Input, OPERATORS, Operation, Resource};
