//! `oncepay serve`.

use crate::base::spans;
use crate::config::Config;
use crate::server;
use crate::web::listener::Listener;

/// Runs `oncepay serve`, until SIGINT or SIGTERM. The error is a sentence.
pub fn run(config: &Config) -> Result<(), String> {
    if let Some(endpoint) = &config.otlp_endpoint {
        spans::record_to(endpoint)?;
    }
    let listener = Listener::new(config.listen, "--listen")?;
    let address = listener.address();
    if config.processor.url.is_none() {
        log::warn!(
            "a sandbox plays the processor, and no money is moved; ONCEPAY_PROCESSOR_URL names a real one"
        );
    }
    let ended = server::run(listener, config, None, || {
        println!("Serving on http://{address}");
        log::info!(version = env!("CARGO_PKG_VERSION"), address = address.to_string().as_str(); "serving");
    });
    spans::flush();
    ended
}
