//! The HTTP server: its routes and its parts.

pub mod adapter;
pub(crate) mod docs;
mod event_catalogue;
mod files;
pub(crate) mod health;
mod http;
pub(crate) mod metrics;
pub(crate) mod middleware;
pub(crate) mod openapi;
mod openapi_bounds;
mod openapi_components;
pub(crate) mod problem_pages;
mod reads;
mod routes;
mod sharing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, web};
use diesel::PgConnection;
use secrecy::SecretString;

use crate::base::derived_secrets::Vault;
use crate::base::metrics::Registry;
use crate::base::paths;
use crate::config::Config;
use crate::error::{Error, Failure};
use crate::host::{Engine, Oncepay};
use crate::idempotency::Settings;
use crate::inbound::reconcile;
use crate::processor::Adapter;
use crate::storage::db::{Db, POOLS_MAX};
use crate::storage::language;
use crate::storage::master_keys::{self, MasterKeyError};
use crate::web::listener::Listener;
use crate::webhooks::delivery;
use crate::webhooks::feed;
use crate::webhooks::retention::{self, Retention};
use crate::{host, idempotency, inbound, ledger, processor, storage, webhooks};

use health::{READINESS_REST, Readiness};
use routes::routes;
use sharing::Shared;

pub use routes::{document, operations, resource_kinds};

/// Pause between two attempts to check the database.
const DATABASE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time that a stopping server waits for requests under way.
const SHUTDOWN_TIMEOUT_S: u64 = 30;

/// Serves until SIGINT or SIGTERM, then finishes the requests under way. After SIGTERM, it first reports for a while that
/// it isn't ready, so that load balancers send requests elsewhere; a second signal ends that. Uses the processor of the
/// settings unless `adapter` is given. Calls `on_ready` as soon as it accepts requests. The error is a sentence.
pub fn run(
    listener: Listener,
    config: &Config,
    adapter: Option<Adapter>,
    on_ready: impl FnOnce(),
) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};

    config.validate()?;
    actix_web::rt::System::new().block_on(async move {
        let signal = |kind| signal(kind).map_err(|error| format!("Can't listen for signals: {error}."));
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (server, stopper) = serve(listener, config, adapter)?;
        let running = actix_web::rt::spawn(server);
        on_ready();
        let delay = tokio::select! {
            // Somebody at a terminal, who doesn't want to wait.
            _ = interrupt.recv() => Duration::ZERO,
            _ = terminate.recv() => Duration::from_millis(config.shutdown_delay_ms),
        };
        stopper.announce();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopper.stop(true).await;
        running
            .await
            .map_err(|error| format!("The server crashed: {error}."))?
            .map_err(|error| format!("The server failed: {error}."))
    })
}

/// Stops a server.
pub struct Stopper {
    handle: ServerHandle,
    readiness: web::Data<Readiness>,
    engine: Engine,
}

impl Stopper {
    /// Reports from now on that the instance isn't ready, and lets no duplicate wait any longer. Requests are answered
    /// all the same.
    pub fn announce(&self) {
        self.readiness.is_stopping.store(true, Ordering::Relaxed);
        self.engine.stop_waiting();
    }

    /// Stops the server as soon as it's called; the future waits for the end. With `graceful`, the requests under way
    /// are finished.
    pub fn stop(&self, graceful: bool) -> impl Future<Output = ()> + use<> {
        self.engine.stop_waiting();
        self.handle.stop(graceful)
    }
}

/// Starts serving. Must be called inside an actix system. Uses the processor of the settings unless `adapter` is
/// given.
pub fn serve(
    listener: Listener,
    config: &Config,
    adapter: Option<Adapter>,
) -> Result<(Server, Stopper), String> {
    let registry = Registry::new();
    let processor_metrics = Arc::new(processor::metrics::Metrics::new(&registry));
    let host_metrics = Arc::new(host::metrics::Metrics::new(&registry));
    let inbound_metrics = Arc::new(inbound::metrics::Metrics::new(&registry));
    let webhooks_metrics = Arc::new(webhooks::metrics::Metrics::new(&registry));
    let adapter = match adapter {
        Some(adapter) => adapter,
        None => adapter::of_config(config, processor_metrics)?,
    };
    let db = Db::new(
        &config.database_url,
        config.pool_size,
        config.pool_timeout(),
        storage::metrics::Metrics::new(&registry),
    );
    let vault = Vault::new(config.master_key.clone(), config.previous_master_key.clone());
    check_database(&vault, &config.database_url, &db)?;
    let deliveries = delivery::Worker::new(
        db.clone(),
        vault.clone(),
        config.delivery,
        config.webhook_allow_loopback,
        Arc::clone(&webhooks_metrics),
    )?;
    let operations = operations();
    let descriptors: Vec<_> = operations.iter().map(|operation| operation.descriptor).collect();
    let host = Oncepay {
        db: db.clone(),
        processor: Arc::clone(&adapter.processor),
        vault,
        messages: Arc::clone(&adapter.messages),
        known_keys: Arc::default(),
        metrics: Arc::clone(&host_metrics),
        allows_loopback: config.webhook_allow_loopback,
        operations: operations.clone(),
    };
    let settings = Settings { timing: config.timing(), batch_size_max: config.batch_size_max as usize };
    let engine_metrics = idempotency::metrics::Metrics::new(&registry);
    let engine = Engine::new(db.clone(), Arc::new(host), settings, &descriptors, engine_metrics);
    let (roll_up_db, workers_engine) = (db.clone(), engine.clone());
    let document = web::Data::new(openapi::ServedDocument::new(document));
    let http_metrics = web::Data::new(metrics::Metrics::new(&registry));
    let exposition = web::Data::new(metrics::Exposition::new(registry));
    let readiness = web::Data::new(Readiness {
        needs_processor: !config.ready_without_processor,
        is_stopping: AtomicBool::new(false),
        database: Shared::new(READINESS_REST),
    });
    let (stopped_readiness, stopped_engine) = (readiness.clone(), engine.clone());

    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // Each worker has its own blocking threads, while connections belong to all. The holder of a permit must
    // find a thread, even if one worker has all the permits and other permits wait for lost connections. One more
    // serializes and compresses. Idle threads end by themselves.
    let blocking_threads = POOLS_MAX * config.pool_size as usize + 1;
    let app = move || {
        App::new()
            .app_data(web::Data::new(db.clone()))
            .app_data(web::Data::new(engine.clone()))
            .app_data(document.clone())
            .app_data(http_metrics.clone())
            .app_data(exposition.clone())
            .app_data(readiness.clone())
            .wrap(from_fn(reads::finish))
            .wrap(from_fn(middleware::context))
            .configure(routes)
            .service(health::live)
            .service(health::ready)
            .service(problem_pages::index)
            .service(problem_pages::show)
            .service(web::redirect("/", "/docs/"))
            .service(web::redirect("/docs", "/docs/"))
            .service(web::redirect("/problems/", "/problems"))
            .service(openapi::show)
            .service(metrics::show)
            .service(docs::show)
            .default_service(web::to(|req: HttpRequest| async move {
                Err::<HttpResponse, Error>(unmatched(&req))
            }))
    };
    let settings = http::Settings { workers, blocking_threads, shutdown_timeout_s: SHUTDOWN_TIMEOUT_S };
    let server = http::serve(app, listener.into_listener(), settings)
        .map_err(|error| format!("Can't start the server: {error}."))?;
    idempotency::workers::start(
        &workers_engine,
        operations,
        config.database_url.clone(),
        Duration::from_millis(config.reaper_interval_ms),
        Duration::from_millis(config.metrics_interval_ms),
    );
    let Adapter { processor, books, messages } = adapter;
    if let Some(books) = books {
        let interval = Duration::from_millis(config.reconcile_interval_ms);
        actix_web::rt::spawn(reconcile::keep_reconciling(
            roll_up_db.clone(),
            Arc::clone(&processor),
            books,
            config.reconcile,
            interval,
            Arc::clone(&inbound_metrics),
        ));
    }
    actix_web::rt::spawn(async move { processor.watch().await });
    actix_web::rt::spawn(inbound::keep_trying(
        roll_up_db.clone(),
        Arc::clone(&messages),
        config.processor_events,
        Arc::clone(&host_metrics),
    ));
    actix_web::rt::spawn(inbound::keep_counting(roll_up_db.clone(), messages, inbound_metrics, host_metrics));
    actix_web::rt::spawn(inbound::keep_pruning(roll_up_db.clone(), config.processor_events));
    let retention = Retention {
        events_days: config.event_retention_days,
        deliveries_days: config.delivery_retention_days,
    };
    actix_web::rt::spawn(feed::begin_epoch(roll_up_db.clone()));
    actix_web::rt::spawn(retention::keep_pruning(roll_up_db.clone(), retention, webhooks_metrics));
    actix_web::rt::spawn(ledger::keep_rolling_up(
        roll_up_db,
        Duration::from_millis(config.roll_up_interval_ms),
    ));
    deliveries.start(Duration::from_millis(config.metrics_interval_ms));
    let stopper = Stopper { handle: server.handle(), readiness: stopped_readiness, engine: stopped_engine };
    Ok((server, stopper))
}

/// Checks the database, and opens the vault. If the database can't be asked now, asks until it can; until then, the
/// instance isn't ready, and shows and uses no secret. The error is a sentence.
fn check_database(vault: &Vault, database_url: &SecretString, db: &Db) -> Result<(), String> {
    let checked = storage::db::connect(database_url)
        .map_err(|error| Failure::DatabaseUnavailable(error.into()))
        .and_then(|mut conn| fits(&mut conn, vault));
    match checked {
        Ok(checked) => return checked,
        Err(failure) => log::warn!("the database isn't checked yet: {}", failure.detailed()),
    }
    let (vault, db) = (vault.clone(), db.clone());
    actix_web::rt::spawn(async move {
        while !vault.is_open() {
            tokio::time::sleep(DATABASE_CHECK_INTERVAL).await;
            let opening = vault.clone();
            match db.run(move |conn| fits(conn, &opening)).await {
                Ok(Ok(())) => log::info!("the database is checked"),
                // It can't stop by itself in the middle of others' requests. It stays unready.
                Ok(Err(refused)) => log::error!("{refused}"),
                Err(failure) => log::debug!("the database isn't checked yet: {}", failure.detailed()),
            }
        }
    });
    Ok(())
}

/// Whether a database fits this instance. The inner error is a sentence, and final.
fn fits(conn: &mut PgConnection, vault: &Vault) -> Result<Result<(), String>, Failure> {
    if let Err(refused) = language::check(conn)? {
        return Ok(Err(refused));
    }
    match master_keys::check(conn, vault) {
        Err(MasterKeyError::Unchecked(failure)) => Err(failure),
        checked => Ok(checked.map_err(|refused| refused.to_string())),
    }
}

/// The error for an unmatched route: the path is unknown, or it has other methods.
fn unmatched(req: &HttpRequest) -> Error {
    let path = paths::normalized(req.path());
    let matches = |template: &str| {
        let mut path = path.split('/');
        let mut pieces = template.split('/');
        loop {
            match (path.next(), pieces.next()) {
                (None, None) => return true,
                (Some(part), Some(piece))
                    if piece == part || (piece.starts_with('{') && !part.is_empty()) => {}
                _ => return false,
            }
        }
    };
    let Some((_, item)) = document().paths.paths.iter().find(|(template, _)| matches(template)) else {
        return Error::RouteNotFound;
    };
    let allowed = openapi::operations_of(item).flat_map(|(method, _)| match method {
        "GET" => vec!["GET", "HEAD"],
        method => vec![method],
    });
    Error::MethodNotAllowed { allow: allowed.collect::<Vec<_>>().join(", ") }
}
