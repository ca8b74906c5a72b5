//! Webhooks, both ways, as [Standard Webhooks](https://www.standardwebhooks.com) says.
//!
//! # From the acquirer
//!
//! ```text
//! signature::verify          before anything else
//! Engine::run_local          once per webhook-id, in one transaction:
//!   AcquirerEvent::apply     what follows in our books, or that it has come too early
//!   store::insert            the event as it came
//! inbound::keep_trying       what has come too early, until it hasn't
//! inbound::keep_counting     what people have to know of
//! inbound::keep_pruning      deletes what is old
//! ```
//!
//! # To merchants
//!
//! ```text
//! events::record             in the transaction of the change; a trigger adds a row per endpoint that wants it
//! delivery::Worker           claims what is due, sends it, notes what came of it (see there)
//! retention::keep_pruning    deletes what is old
//! ```
//!
//! A change, its event and the deliveries of that event are all there or none is, so nothing is told that hasn't happened,
//! and nothing is forgotten. Whoever dies in between leaves rows that others go on from. So both ways messages can come
//! twice, and never count twice: here by the engine, there by `webhook-id`.

pub mod address;
mod client;
pub mod delivery;
pub mod endpoints;
pub mod events_api;
pub mod metrics;
pub(crate) mod outbox;
pub mod retention;
