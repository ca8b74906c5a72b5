//! Workers that run beside the requests.

mod listen;
pub mod reaper;
pub mod recovery;
mod retries;
mod sampler;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use super::engine::Engine;
use super::host::Host;
use super::registry::RegisteredOperation;

/// Starts the workers of an engine: the copy of the policies, the recovery worker, the reaper, the sampler of
/// the key table, the writer of the counts of retries, and a thread that listens to other instances on a connection of its own to `url`. Must be
/// called in a runtime.
pub fn start<H: Host>(
    engine: &Engine<H>,
    operations: Vec<RegisteredOperation<H>>,
    url: SecretString,
    reaper_interval: Duration,
    metrics_interval: Duration,
) {
    let fresh = engine.clone();
    tokio::spawn(async move { fresh.keep_policies_fresh().await });
    tokio::spawn(recovery::keep_recovering(engine.clone(), Arc::new(operations)));
    tokio::spawn(reaper::keep_reaping(engine.clone(), reaper_interval));
    tokio::spawn(sampler::keep_sampling(engine.clone(), metrics_interval));
    tokio::spawn(retries::keep_storing(engine.clone(), metrics_interval));
    listen::start(engine.downgrade(), url);
}
