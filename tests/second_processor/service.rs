//! The service with Crossbank's adapter, as a process of its own: what `oncepay serve` is for the processors that it knows.
//!
//! The adapter is no part of `oncepay`, so the process is this test binary, told to run [`serve`] alone.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use oncepay::config::Config;
use oncepay::web::listener::Listener;

use super::adapter::adapter;

/// Address of Crossbank, for the process.
pub const URL_VARIABLE: &str = "CROSSBANK_URL";
/// As short as that of a service that `oncepay serve` runs beside a short lease.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// The command that starts the process.
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

/// Serves where it's told where Crossbank is; a test of nothing elsewhere.
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
