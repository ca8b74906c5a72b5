//! The statements on `idempotency_keys` that a request needs. Each is one round trip.
//!
//! All times come from the database's `clock_timestamp()`: the clocks of different instances needn't agree,
//! and unlike `now()` it advances inside a transaction.

mod answers;
mod claims;
mod lookups;
mod rows;

pub use answers::{
    Completed, Completion, Setback, answer_all, complete, complete_all, complete_with_effects, release,
};
pub use claims::{
    Claim, ClaimWithData, Claimant, Taker, claim, claim_all, forget, lock, lock_all, prove_and_claim, renew,
    take_over,
};
pub use lookups::{AnswerState, await_answer, find, find_all, others_in_progress, table_size};
pub(crate) use rows::key_state;
pub use rows::{ANSWERS_CHANNEL, Answer, KeyState, StoredKey};
