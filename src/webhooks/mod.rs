//! Webhooks, in both directions, as defined by [Standard Webhooks](https://www.standardwebhooks.com).
//!
//! # From the processor
//!
//! ```text
//! signature::verify          before anything else
//! Engine::run_local          once per webhook-id, in one transaction:
//!       AcquirerEvent::apply     the effects in our books, or that the event is too early
//!       store::insert            the event as received
//!     inbound::keep_trying       retries events that came too early
//!     inbound::keep_counting     measures what people have to know
//!     inbound::keep_pruning      deletes old events
//! ```
//!
//! # To merchants
//!
//! ```text
//!     events::record             in the transaction of the change; a trigger adds a row per subscribed endpoint
//!     delivery::Worker           claims due deliveries, sends them, stores the outcomes (see there)
//!     feed::page                 the events for those who poll, none left out
//!     retention::keep_pruning    deletes old events and deliveries
//! ```
//!
//! A change, its event and the event's deliveries commit together or not at all, so no message tells of a
//! change that didn't happen, and no change is forgotten. If a process dies in between, it leaves rows from
//! which others continue. So messages can arrive twice in both directions, and never count twice: the engine
//! sees to that here, and `webhook-id` there.

pub(crate) mod address;
pub(crate) mod client;
mod connection;
pub(crate) mod delivery;
pub(crate) mod endpoints;
pub(crate) mod events_api;
pub(crate) mod feed;
pub(crate) mod metrics;
pub(crate) mod outbox;
pub mod retention;
