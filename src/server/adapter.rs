//! The choice of the service's processor. The only module that knows all adapters.

use std::sync::Arc;

use crate::base::metrics::Registry;
use crate::base::signature::Secret;
use crate::config::Config;
use crate::processor::metrics::Metrics;
use crate::processor::{Adapter, HttpProcessor, HttpSettings, ProcessorOptions, Sandbox, StandardMessages};

/// Makes the processor of the settings: the one at their URL, or the sandbox. The error is a sentence.
pub fn of_config(config: &Config, metrics: Arc<Metrics>) -> Result<Adapter, String> {
    let secrets = config.webhook_secrets()?;
    match config.processor.http_settings() {
        Some(settings) => over_http(settings, secrets, metrics),
        None => {
            let sandbox = match &config.sandbox_call_log {
                None => Sandbox::new(),
                Some(path) => Sandbox::with_call_log(path)
                    .map_err(|error| format!("Can't write {}: {error}.", path.display()))?,
            };
            Ok(of_sandbox(Arc::new(sandbox), secrets))
        }
    }
}

/// Makes the processor at the options' URL, for commands that read its books. The error is a sentence.
pub fn of_options(options: &ProcessorOptions) -> Result<Adapter, String> {
    let settings = options.http_settings().ok_or(
        "There is no processor to ask: set ONCEPAY_PROCESSOR_URL and ONCEPAY_PROCESSOR_API_KEY. The sandbox keeps no books.",
    )?;
    over_http(settings, Vec::new(), Arc::new(Metrics::new(&Registry::new())))
}

/// Makes an adapter of the sandbox. Its messages may be signed with any of `secrets`.
pub fn of_sandbox(sandbox: Arc<Sandbox>, secrets: Vec<Secret>) -> Adapter {
    Adapter { processor: sandbox, books: None, messages: Arc::new(StandardMessages::new(secrets)) }
}

fn over_http(settings: HttpSettings, secrets: Vec<Secret>, metrics: Arc<Metrics>) -> Result<Adapter, String> {
    let processor = Arc::new(HttpProcessor::new(settings, metrics)?);
    Ok(Adapter {
        processor: Arc::clone(&processor) as _,
        books: Some(processor),
        messages: Arc::new(StandardMessages::new(secrets)),
    })
}
