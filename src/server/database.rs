//! The check of the database at the start of an instance.

use std::time::Duration;

use actix_web::rt::task::spawn_blocking;
use diesel::{ConnectionError, PgConnection};
use secrecy::{ExposeSecret, SecretString};

use crate::base::derived_secrets::Vault;
use crate::base::time;
use crate::config::Config;
use crate::error::Failure;
use crate::storage::db::Db;
use crate::storage::distribution;
use crate::storage::fitness::{self, Unfit, Verdict};
use crate::storage::master_keys::{self, MasterKeyError};
use crate::storage::session::{self, Handling};
use crate::storage::shape;

/// Pause between two checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the first look has shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// The database can be used.
    Fit,
    /// It lacks something that somebody can give it.
    Unfit(Unfit),
    /// It couldn't be asked.
    Unknown,
}

/// Checks the database, and opens the vault if it fits. The error is a sentence, for what only another configuration can
/// put right.
pub(super) fn look(vault: &Vault, config: &Config) -> Result<State, String> {
    let url = config.database_url.expose_secret();
    let looked = || {
        if let Some(unfit) = session::inspect(url).map(unfit_of).map_err(unreachable)? {
            return Ok(Verdict::Unfit(unfit));
        }
        check(&mut session::establish(url).map_err(unreachable)?, vault, connections(config))
    };
    match looked() {
        Ok(Verdict::Fit) => Ok(State::Fit),
        Ok(Verdict::Unfit(unfit)) if unfit.is_final() => Err(unfit.explained()),
        Ok(Verdict::Unfit(unfit)) => {
            log::error!("{}", unfit.explained());
            Ok(State::Unfit(unfit))
        }
        Ok(Verdict::Refused(refused)) => Err(refused),
        Err(failure) => {
            if let Some(refused) = refusal(&failure) {
                return Err(refused);
            }
            log::warn!("the database isn't checked yet: {}", failure.detailed());
            Ok(State::Unknown)
        }
    }
}

/// Unless the database fits already, checks it again and again until it does. Until then, the instance isn't ready, and
/// shows and uses no secret.
pub(super) fn wait_until_fit(state: State, vault: &Vault, config: &Config, db: &Db) {
    match state {
        State::Fit => return,
        State::Unfit(unfit) => db.refuse(unfit),
        State::Unknown => {}
    }
    let url = config.database_url.clone();
    actix_web::rt::spawn(keep_looking(vault.clone(), url, connections(config), db.clone()));
}

/// It can't end the process in the middle of others' requests. So what is final, too, leaves it unready.
async fn keep_looking(vault: Vault, url: SecretString, connections: u32, db: Db) {
    let mut told = String::new();
    while !vault.is_open() {
        tokio::time::sleep(INTERVAL).await;
        let asked = url.clone();
        let handling = match spawn_blocking(move || session::inspect(asked.expose_secret())).await {
            Ok(handling) => handling.map(unfit_of),
            // The process is ending.
            Err(_) => return,
        };
        let verdict = match handling {
            Ok(Some(unfit)) => Ok(Verdict::Unfit(unfit)),
            Err(error) if session::remedy(&error).is_some() => Err(unreachable(error)),
            // Also if there was no connection left for the inspection: the pool may have them all.
            Ok(None) | Err(_) => {
                let opening = vault.clone();
                db.run_regardless(move |conn| check(conn, &opening, connections)).await
            }
        };
        let reason = match verdict {
            Ok(Verdict::Fit) => {
                db.accept();
                log::info!("the database is checked");
                return;
            }
            Ok(Verdict::Unfit(unfit)) => {
                db.refuse(unfit);
                unfit.explained()
            }
            Ok(Verdict::Refused(refused)) => refused,
            Err(failure) => refusal(&failure).unwrap_or_default(),
        };
        if !reason.is_empty() && told != reason {
            log::error!("{reason}");
            told = reason;
        }
    }
}

/// Looks every `interval` at the other nodes of a cluster, which may not have answered at the start, and says what is unsuitable, once.
/// Doesn't return.
pub async fn keep_inspecting_nodes(db: Db, interval: Duration) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(time::jittered(interval)).await;
        if !shape::is_distributed() {
            continue;
        }
        match db.run(|conn| Ok::<_, Failure>(distribution::unsuitable_settings(conn)?)).await {
            Ok(unsuitable) => {
                let unsuitable = unsuitable.unwrap_or_default();
                if !unsuitable.is_empty() && told != unsuitable {
                    log::error!("{unsuitable}");
                }
                told = unsuitable;
            }
            Err(failure) => log::debug!("the nodes' settings couldn't be read: {}", failure.detailed()),
        }
    }
}

/// Number of connections that an instance opens: the pool, one that listens, and that of the scheduled audit.
pub(crate) fn connections(config: &Config) -> u32 {
    config.pool_size + 1 + u32::from(config.audit.audit_interval_s.0.is_some())
}

fn unfit_of(handling: Handling) -> Option<Unfit> {
    match handling {
        Handling::Kept => None,
        Handling::Mixed => Some(Unfit::SessionsMixed),
        Handling::Scattered => Some(Unfit::SessionsScattered),
    }
}

fn unreachable(error: ConnectionError) -> Failure {
    Failure::DatabaseUnavailable(error.into())
}

/// Why a failure to connect is final, as a sentence.
fn refusal(failure: &Failure) -> Option<String> {
    let error = failure.cause()?.downcast_ref::<ConnectionError>()?;
    session::remedy(error).map(|remedy| format!("Can't connect to the database: {error}. {remedy}"))
}

/// Whether a database fits this instance. If so, opens the vault, and logs what should be otherwise all the same.
fn check(conn: &mut PgConnection, vault: &Vault, connections: u32) -> Result<Verdict, Failure> {
    match fitness::check(conn)? {
        Verdict::Fit => {}
        verdict => return Ok(verdict),
    }
    match master_keys::check(conn, vault) {
        Ok(()) => {}
        Err(MasterKeyError::Unchecked(failure)) => return Err(failure),
        Err(refused) => return Ok(Verdict::Refused(refused.to_string())),
    }
    match fitness::remarks(conn, connections) {
        Ok(remarks) => remarks.iter().for_each(|remark| log::warn!("{}", remark.text)),
        Err(failure) => log::warn!("the database's settings aren't checked: {}", failure.detailed()),
    }
    Ok(Verdict::Fit)
}
