//! `oncepay simulator`.
#![expect(clippy::print_stdout, reason = "a command, and what it writes is its result")]

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::{Settings, Webhook};

/// Options of the `simulator` command.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Connection string of the simulator's own database, as its owner
    #[arg(long, env = "ONCEPAY_SIMULATOR_DATABASE_URL", hide_env_values = true)]
    database_url: SecretString,

    /// API key that clients must send
    #[arg(long, env = "ONCEPAY_SIMULATOR_API_KEY", hide_env_values = true)]
    api_key: SecretString,

    /// Address to listen on; port 0 picks a free one
    #[arg(long, env = "ONCEPAY_SIMULATOR_LISTEN", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,

    /// Address of the control port, which makes the simulator misbehave. It asks for no key, so it must be on
    /// this machine. Default: no control port
    #[arg(long)]
    control_listen: Option<SocketAddr>,

    /// URL to which events are sent; without it, they stay in the outbox
    #[arg(long)]
    webhook_url: Option<Url>,

    /// Secret that signs events: whsec_ and base64
    #[arg(long, env = "ONCEPAY_WEBHOOK_SECRET", hide_env_values = true)]
    webhook_secret: Option<SecretString>,

    /// Time after its request at which a pending operation is decided, in milliseconds
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(..=86_400_000))]
    decide_after_ms: u64,
}

impl Options {
    /// Converts the options. The error is a sentence.
    fn settings(self) -> Result<Settings, String> {
        let webhook = match (self.webhook_url, self.webhook_secret) {
            (Some(url), Some(secret)) => Some(Webhook { url, secret }),
            (Some(_), None) => {
                return Err("Events are signed: give the secret in ONCEPAY_WEBHOOK_SECRET.".to_owned());
            }
            (None, _) => None,
        };
        Ok(Settings {
            database_url: self.database_url,
            api_key: self.api_key,
            listen: self.listen,
            control_listen: self.control_listen,
            webhook,
            decide_after: Duration::from_millis(self.decide_after_ms),
        })
    }
}

/// Serves until SIGINT or SIGTERM, then finishes the requests under way. The error is a sentence.
pub fn run(options: Options) -> Result<(), String> {
    let settings = options.settings()?;
    actix_web::rt::System::new().block_on(async move {
        let signal = |kind| signal(kind).map_err(|error| format!("Can't listen for signals: {error}."));
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let running = super::start(settings)?;
        println!("Simulator on http://{}", running.address());
        if let Some(address) = running.control_address() {
            println!("Control on http://{address}");
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        running.stop().await;
        Ok(())
    })
}
