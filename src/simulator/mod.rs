//! The acquiring bank, played by a server of its own: `oncepay acquirer`.
//!
//! Unlike the sandbox it's reached through a network and keeps what it has done, so requests to it get lost, answers
//! come late or never, it's down for a while, and its books can differ from ours. It has its own database and its own
//! idempotency; it shares no code with the service that could make both wrong in the same way.
//!
//! Its second port, the control, makes it misbehave on purpose. It has no key, so it takes only addresses of
//! this machine.

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

/// Database connections of the acquirer.
const POOL_SIZE: u32 = 8;
/// Longest wait for one.
const POOL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an idle acquirer looks for operations to be decided.
const DECIDE_EVERY: Duration = Duration::from_millis(50);

/// What an acquirer needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connection string of its own database, as the owner.
    pub database_url: SecretString,
    /// What clients must know.
    pub api_key: SecretString,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the control, on this machine; none without.
    pub control_listen: Option<SocketAddr>,
    /// Where events are sent; without, they stay in the outbox.
    pub webhook: Option<Webhook>,
    /// How long after its request a pending operation is decided.
    pub decide_after: Duration,
}

/// Who receives events.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where they are posted to.
    pub url: Url,
    /// What they are signed with: `whsec_` and base64.
    pub secret: SecretString,
}

/// An acquirer that serves.
pub struct Running {
    address: SocketAddr,
    control_address: Option<SocketAddr>,
    listener: Listener,
    control: Option<ServerHandle>,
    workers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Where it's reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its control is, if it has one.
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control_address
    }

    /// Ends it, when requests that are being handled are answered.
    pub async fn stop(self) {
        if let Some(control) = self.control {
            control.stop(false).await;
        }
        self.listener.stop().await;
        for worker in self.workers {
            // Whatever it has claimed becomes due again by itself.
            worker.abort();
        }
    }
}

/// Brings the schema of an acquirer's database up to date; `conn` must be its owner. Takes an advisory lock, since
/// several acquirers may start at the same time. The error is a sentence.
pub fn migrate(conn: &mut PgConnection) -> Result<(), String> {
    let lock = |conn: &mut PgConnection, function| {
        diesel::sql_query(format!("SELECT {function}(7262)"))
            .execute(conn)
            .map_err(|error| format!("Can't lock the acquirer's database: {error}."))
    };
    lock(conn, "pg_advisory_lock")?;
    let migrated = conn
        .run_pending_migrations(MIGRATIONS)
        .map(|_| ())
        .map_err(|error| format!("A migration of the acquirer failed and was rolled back: {error}"));
    lock(conn, "pg_advisory_unlock")?;
    migrated
}

/// Migrates the database and starts an acquirer; must be called inside an actix system. The error is a sentence.
pub fn start(settings: Settings) -> Result<Running, String> {
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
    Ok(Running { address, control_address, listener, control, workers })
}

/// Decides pending operations when they are due; doesn't return.
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
                log::warn!("the acquirer couldn't decide: {}", error.detailed());
                tokio::time::sleep(POOL_TIMEOUT).await;
            }
        }
    }
}
