//! Oncepay
#![warn(missing_docs)]

pub mod auth;
pub mod balance;
pub mod charges;
pub mod config;
pub mod db;
pub mod dev;
pub mod error;
pub mod events;
pub mod faults;
pub mod fields;
pub mod health;
pub mod idempotency;
pub mod ids;
pub mod ledger;
pub mod merchants;
pub mod money;
pub mod openapi;
pub mod problems;
pub mod processor;
pub mod request;
#[expect(missing_docs, reason = "the migrations describe each table and column")]
pub mod schema;
pub mod server;
pub mod sql;
pub mod time;

use config::Config;
use server::Bound;

/// Serves until SIGINT or SIGTERM, then lets requests that are being handled finish. Calls `on_ready` once
/// requests are accepted. An error is a sentence.
pub fn serve(bound: Bound, config: &Config, on_ready: impl FnOnce()) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};

    actix_web::rt::System::new().block_on(async move {
        let signal = |kind| signal(kind).map_err(|error| format!("Can't listen for signals: {error}."));
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (server, handle) = bound.serve(config, None)?;
        let running = actix_web::rt::spawn(server);
        on_ready();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        handle.stop(true).await;
        running
            .await
            .map_err(|error| format!("The server crashed: {error}."))?
            .map_err(|error| format!("The server failed: {error}."))
    })
}
