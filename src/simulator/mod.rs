//! The simulator: a payment processor as a server of its own, `oncepay simulator`.
//!
//! Unlike the sandbox, the simulator is reached through a network and stores its operations. So requests to
//! it get lost, answers come late or never, it's down for a while, and its books can differ from ours. It has
//! its own database and its own idempotency, and shares no code with the service that could make both wrong
//! in the same way.
//!
//! The second port, the control port, makes the simulator misbehave on purpose. It has no key, so it accepts
//! only addresses of this machine.

mod api;
mod command;
mod control;
mod decide;
mod error;
mod faults;
mod listener;
mod operations;
mod outbox;
mod payment_method;
mod perform;
mod schema;
mod thread;
mod webhooks;

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::rt::task::JoinHandle;
use actix_web::web;
use diesel::{PgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use secrecy::SecretString;
use url::Url;

use crate::base::metrics::Registry;
use crate::error::Failure;
use crate::storage::db::{self, Db};
use crate::storage::metrics::Metrics;
use crate::web::listener::Listener as Port;

pub use command::{Options, run};
pub use thread::Thread;

use api::Bank;
use faults::Faults;
use listener::Listener;
use webhooks::Sender;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("src/simulator/migrations");

/// Number of database connections of the simulator.
const POOL_SIZE: u32 = 8;
/// Maximum wait for a connection.
const POOL_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which an idle simulator looks for due operations.
const DECIDE_EVERY: Duration = Duration::from_millis(50);

/// Settings of a simulator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connection string of its own database, as the owner.
    pub database_url: SecretString,
    /// API key of the clients.
    pub api_key: SecretString,
    /// Address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address of the control port, on this machine. No control port if absent.
    pub control_listen: Option<SocketAddr>,
    /// Receiver of events. If absent, they stay in the outbox.
    pub webhook: Option<Webhook>,
    /// Time after its request at which a pending operation is decided.
    pub decide_after: Duration,
}

/// The receiver of events.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// URL to which events are posted.
    pub url: Url,
    /// Secret that signs them: `whsec_` and base64.
    pub secret: SecretString,
}

/// A running simulator.
pub struct RunningSimulator {
    address: SocketAddr,
    control_address: Option<SocketAddr>,
    listener: Listener,
    control: Option<ServerHandle>,
    workers: Vec<JoinHandle<()>>,
}

impl RunningSimulator {
    /// Address of the API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of the control port, if there is one.
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control_address
    }

    /// Stops the simulator after the requests under way are answered.
    pub async fn stop(self) {
        if let Some(control) = self.control {
            control.stop(false).await;
        }
        self.listener.stop().await;
        for worker in self.workers {
            // Claimed events become due again by themselves.
            worker.abort();
        }
    }
}

/// Migrates the schema of a simulator's database; `conn` must be its owner. Takes an advisory lock, since
/// several simulators may start at the same time. The error is a sentence.
pub fn migrate(conn: &mut PgConnection) -> Result<(), String> {
    let lock = |conn: &mut PgConnection, function| {
        diesel::sql_query(format!("SELECT {function}(7262)"))
            .execute(conn)
            .map_err(|error| format!("Can't lock the simulator's database: {error}."))
    };
    lock(conn, "pg_advisory_lock")?;
    let migrated = conn
        .run_pending_migrations(MIGRATIONS)
        .map(|_| ())
        .map_err(|error| format!("A migration of the simulator failed and was rolled back: {error}"));
    lock(conn, "pg_advisory_unlock")?;
    migrated
}

/// Migrates the database and starts a simulator. Must be called inside an actix system. The error is a
/// sentence.
pub fn start(settings: Settings) -> Result<RunningSimulator, String> {
    if settings.control_listen.is_some_and(|address| !address.ip().is_loopback()) {
        return Err(
            "The control asks for no key, so --control-listen must be an address of this machine, such as \
            127.0.0.1:8091."
                .to_owned(),
        );
    }
    let bound = Port::new(settings.listen, "--listen")?;
    let address = bound.address();
    let control = settings.control_listen.map(|listen| Port::new(listen, "--control-listen")).transpose()?;
    let control_address = control.as_ref().map(Port::address);
    migrate(&mut db::connect(&settings.database_url)?)?;

    let db = Db::new(&settings.database_url, POOL_SIZE, POOL_TIMEOUT, Metrics::new(&Registry::new()));
    let sender =
        settings.webhook.map(|webhook| Sender::new(db.clone(), webhook.url, &webhook.secret)).transpose()?;
    let bank = web::Data::new(Bank {
        db,
        api_key: settings.api_key,
        faults: Faults::none(),
        decide_after: settings.decide_after,
    });
    let server = api::server(bank.clone(), bound.into_listener())?;
    let listener = Listener::open(bank.clone(), server, address);
    let control = match control {
        Some(bound) => {
            let server = control::server(bank.clone(), listener.clone(), bound.into_listener())?;
            let handle = server.handle();
            actix_web::rt::spawn(server);
            Some(handle)
        }
        None => None,
    };
    let mut workers = vec![actix_web::rt::spawn(keep_deciding(bank))];
    workers.extend(sender.map(|sender| actix_web::rt::spawn(sender.keep_sending())));
    Ok(RunningSimulator { address, control_address, listener, control, workers })
}

/// Decides due pending operations. Doesn't return.
async fn keep_deciding(bank: web::Data<Bank>) {
    loop {
        let shared = bank.clone();
        let decided = bank
            .db
            .run_retrying(move |conn| {
                let is_decided = decide::decide_next(conn, &shared.faults)?;
                Ok::<_, Failure>(decide::capture_next(conn, &shared.faults)? || is_decided)
            })
            .await;
        match decided {
            Ok(true) => {}
            Ok(false) => tokio::time::sleep(DECIDE_EVERY).await,
            Err(error) => {
                log::warn!("the simulator couldn't decide: {}", error.detailed());
                tokio::time::sleep(POOL_TIMEOUT).await;
            }
        }
    }
}
