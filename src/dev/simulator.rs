//! The simulator of `oncepay dev --processor http`, next to the API in the same process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::processor::ProcessorOptions;
use crate::simulator::{Settings, Thread, Webhook};
use crate::storage::db;

use super::database;

/// Schema of the simulator's tables, in the same database.
const SCHEMA: &str = "acquirer";
/// Time that its issuers and banks take to decide.
const DECIDE_AFTER: Duration = Duration::from_secs(1);

/// A running simulator.
pub struct Simulator {
    /// Address of the simulator.
    pub url: Url,
    /// Address of its control port.
    pub control_url: String,
    api_key: SecretString,
    thread: Thread,
}

impl Simulator {
    /// Creates the schema and starts the simulator on free ports. It sends its events to `webhook`. The error
    /// is a sentence.
    pub fn start(owner_url: &SecretString, api_key: SecretString, webhook: Webhook) -> Result<Self, String> {
        database::ensure_schema(&mut db::connect(owner_url)?, SCHEMA)?;
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let settings = Settings {
            database_url: database::url_in_schema(owner_url, SCHEMA)?,
            api_key: api_key.clone(),
            listen: free,
            control_listen: Some(free),
            webhook: Some(webhook),
            decide_after: DECIDE_AFTER,
        };
        let thread = Thread::start(settings)?;
        let control = thread.control_address.ok_or("The simulator has no control port.")?;
        let url = Url::parse(&format!("http://{}", thread.address)).map_err(|error| error.to_string())?;
        Ok(Self { url, control_url: format!("http://{control}/control"), api_key, thread })
    }

    /// Settings with which the API reaches the simulator.
    pub fn options(&self) -> ProcessorOptions {
        ProcessorOptions::at(self.url.clone(), self.api_key.clone())
    }

    /// Stops the simulator.
    pub fn stop(self) {
        self.thread.stop();
    }
}
