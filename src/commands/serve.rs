//! `oncepay serve`.

use crate::config::Config;
use crate::server;
use crate::web::listener::Listener;

/// Runs `oncepay serve`, until SIGINT or SIGTERM. The error is a sentence.
pub fn run(config: &Config) -> Result<(), String> {
    let listener = Listener::new(config.listen, "--listen")?;
    let address = listener.address();
    if config.processor.url.is_none() {
        log::warn!(
            "a sandbox plays the processor, and no money is moved; ONCEPAY_PROCESSOR_URL names a real one"
        );
    }
    server::run(listener, config, None, || println!("Serving on http://{address}"))
}
