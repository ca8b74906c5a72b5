//! The service with Crossbank's adapter, as a process of its own: the counterpart of `oncepay serve`.
//!
//! The adapter is no part of `oncepay`, so the process is this test binary, which runs [`serve`] alone.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use oncepay::config::Config;
use oncepay::web::listener::Listener;

use super::adapter::adapter;

/// Variable with the address of Crossbank.
pub const URL_VARIABLE: &str = "CROSSBANK_URL";
/// As short as for a service that `oncepay serve` runs with a short lease.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Returns the command that starts the process.
pub fn command() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "second_processor::service::serve", "--nocapture", "--quiet"]);
    command
}

#[derive(Parser)]
struct Settings {
    #[command(flatten)]
    config: Config,
}

/// Serves if the environment has Crossbank's address. Otherwise it's an empty test.
#[test]
fn serve() {
    let Ok(url) = std::env::var(URL_VARIABLE) else { return };
    env_logger::init();
    let Settings { config } = Settings::parse_from(["oncepay"]);
    let listener = Listener::new(config.listen, "--listen").unwrap();
    let address = listener.address();
    let served = oncepay::server::run(listener, &config, Some(adapter(&url, REQUEST_TIMEOUT)), || {
        println!("\nServing on http://{address}");
        std::io::stdout().flush().unwrap();
    });
    served.unwrap();
}
