//! Stores what was counted of retries.

use std::time::Duration;

use crate::base::time;
use crate::idempotency::engine::Engine;
use crate::idempotency::host::Host;

/// Stores the counts every `interval`. Doesn't return.
pub(super) async fn keep_storing<H: Host>(engine: Engine<H>, interval: Duration) {
    loop {
        // Instances add to the same rows, so they shouldn't do it at the same time.
        tokio::time::sleep(time::jittered(interval)).await;
        if let Err(error) = engine.store_retries().await {
            log::warn!("the delays of retries couldn't be stored: {}", error.detailed());
        }
    }
}
