//! The HTTP server: its routes and its parts.

pub mod adapter;
pub(crate) mod database;
pub(crate) mod docs;
mod event_catalogue;
pub(crate) mod health;
pub mod home;
mod http;
pub(crate) mod metrics;
pub(crate) mod middleware;
pub(crate) mod openapi;
mod openapi_bounds;
mod openapi_components;
mod pages;
pub(crate) mod problem_pages;
mod reads;
mod routes;
mod security;
mod sharing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, web};

use crate::base::derived_secrets::Vault;
use crate::base::logging;
use crate::base::metrics::Registry;
use crate::base::paths;
use crate::config::Config;
use crate::console::Console;
use crate::error::Error;
use crate::host::{Engine, Oncepay};
use crate::idempotency::Settings;
use crate::inbound::reconcile;
use crate::processor::Adapter;
use crate::storage::db::{Db, POOLS_MAX};
use crate::web::auth::KnownKeys;
use crate::web::listener::Listener;
use crate::webhooks::delivery;
use crate::webhooks::feed;
use crate::webhooks::retention::{self, Retention};
use crate::{audit, console, host, idempotency, inbound, ledger, processor, storage, webhooks};

use health::{READINESS_REST, Readiness};
use routes::routes;
use sharing::Shared;

pub use routes::{document, operations, resource_kinds};

/// Time that a stopping server waits for requests under way.
const SHUTDOWN_TIMEOUT_S: u64 = 30;

/// Maximum time that a stopped server takes to store its last counts.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

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
        log::info!(delay_ms = logging::milliseconds(delay); "stopping: not ready any more");
        stopper.announce();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        log::info!("stopping: finishing the requests under way");
        stopper.stop(true).await;
        stopper.store_retries().await;
        running
            .await
            .map_err(|error| format!("The server crashed: {error}."))?
            .map_err(|error| format!("The server failed: {error}."))?;
        log::info!("stopped");
        Ok(())
    })
}

/// Stops a server.
pub struct Stopper {
    handle: ServerHandle,
    admin: Option<(ServerHandle, SocketAddr)>,
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

    /// Stores what was counted of retries since the last time.
    async fn store_retries(&self) {
        let stored = tokio::time::timeout(LAST_WRITE_TIMEOUT, self.engine.store_retries()).await;
        if !matches!(stored, Ok(Ok(()))) {
            log::warn!("the last delays of retries couldn't be stored");
        }
    }

    /// Address of the port for operators, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Stops the server as soon as it's called; the future waits for the end. With `graceful`, the requests under way
    /// are finished. Operators can watch that.
    pub fn stop(&self, graceful: bool) -> impl Future<Output = ()> + use<> {
        self.engine.stop_waiting();
        let stopped = self.handle.stop(graceful);
        let admin = self.admin.as_ref().map(|(handle, _)| handle.clone());
        async move {
            stopped.await;
            if let Some(admin) = admin {
                admin.stop(false).await;
            }
        }
    }
}

/// Maximum number of connections to the port for operators.
const ADMIN_CONNECTIONS_MAX: usize = 256;

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
    let vault = Vault::new(config.master_key.clone(), config.previous_master_key.clone());
    // Before the pool, which may take all connections that there are.
    let state = database::look(&vault, config)?;
    let storage_metrics = storage::metrics::Metrics::new(&registry);
    let audit_metrics = audit::metrics::Metrics::new(&registry);
    let db = Db::new(&config.database_url, config.pool_size, config.pool_timeout(), storage_metrics.clone())
        .with_waiting_max(config.waiting_max);
    let admin_listener =
        config.admin_listen.map(|address| Listener::new(address, "--admin-listen")).transpose()?;
    database::wait_until_fit(state, &vault, config, &db);
    let deliveries = delivery::Worker::new(
        db.clone(),
        vault.clone(),
        config.delivery,
        config.webhook_allow_loopback,
        Arc::clone(&webhooks_metrics),
    )?;
    let console = match config.console {
        true => {
            let keys = config.development_keys.clone();
            Some(web::Data::new(Console::new(
                &vault,
                listener.address(),
                keys,
                config.reconcile.reconcile_grace_s,
            )?))
        }
        false => None,
    };
    let operations = operations();
    let known_keys = Arc::<KnownKeys>::default();
    let descriptors: Vec<_> = operations.iter().map(|operation| operation.descriptor).collect();
    let host = Oncepay {
        db: db.clone(),
        processor: Arc::clone(&adapter.processor),
        vault,
        messages: Arc::clone(&adapter.messages),
        known_keys: Arc::clone(&known_keys),
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
    let url = format!("http://{}", admin_listener.as_ref().unwrap_or(&listener).address());
    let has_console = console.is_some();
    let for_operators = move |config: &mut web::ServiceConfig| for_operators(config, has_console);
    let home = web::Data::new(home::Home::new(&url, config.development_keys.as_ref()));
    let (stopped_readiness, stopped_engine) = (readiness.clone(), engine.clone());

    http::make_room(config.connections_max);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // Each worker has its own blocking threads, while connections belong to all. The holder of a permit must
    // find a thread, even if one worker has all the permits and other permits wait for lost connections. One more
    // serializes and compresses. Idle threads end by themselves.
    let blocking_threads = POOLS_MAX * config.pool_size as usize + 1;
    let known_keys = web::Data::from(known_keys);
    // What both ports serve.
    let common = move |config: &mut web::ServiceConfig| {
        if let Some(console) = &console {
            config.app_data(console.clone());
        }
        config
            .app_data(web::Data::new(db.clone()))
            .app_data(web::Data::new(engine.clone()))
            .app_data(known_keys.clone())
            .app_data(document.clone())
            .app_data(http_metrics.clone())
            .app_data(exposition.clone())
            .app_data(home.clone())
            .app_data(readiness.clone())
            .service(health::live)
            .service(health::ready)
            .service(openapi::show);
    };
    let (common_here, has_admin) = (common.clone(), admin_listener.is_some());
    let operators_here = for_operators;
    let app = move || {
        App::new()
            .wrap(from_fn(reads::finish))
            .wrap(from_fn(middleware::context))
            .configure(common_here.clone())
            .configure(routes)
            .service(problem_pages::index)
            .service(problem_pages::show)
            .service(web::redirect("/problems/", "/problems"))
            .configure(|config| {
                if !has_admin {
                    operators_here(config)
                }
            })
            .default_service(web::to(|req: HttpRequest| async move {
                Err::<HttpResponse, Error>(unmatched(&req))
            }))
    };
    let settings = http::Settings {
        workers,
        connections_max: (config.connections_max as usize).div_ceil(workers),
        blocking_threads,
        shutdown_timeout_s: SHUTDOWN_TIMEOUT_S,
    };
    let server = http::serve(app, listener.into_listener(), settings)
        .map_err(|error| format!("Can't start the server: {error}."))?;
    let admin = admin_listener
        .map(|listener| serve_operators(listener, common, for_operators, settings))
        .transpose()?;
    let metrics_interval = Duration::from_millis(config.metrics_interval_ms);
    idempotency::workers::start(
        &workers_engine,
        operations,
        config.database_url.clone(),
        Duration::from_millis(config.reaper_interval_ms),
        metrics_interval,
    );
    actix_web::rt::spawn(storage::clock::keep_comparing(
        roll_up_db.clone(),
        metrics_interval,
        storage_metrics,
    ));
    actix_web::rt::spawn(database::keep_inspecting_nodes(roll_up_db.clone(), metrics_interval));
    actix_web::rt::spawn(audit::last_run::keep_showing(roll_up_db.clone(), metrics_interval, audit_metrics));
    actix_web::rt::spawn(audit::schedule::keep_auditing(
        roll_up_db.clone(),
        config.database_url.clone(),
        resource_kinds(),
        config.audit,
    ));
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
    deliveries.start(metrics_interval);
    let (handle, readiness, engine) = (server.handle(), stopped_readiness, stopped_engine);
    let stopper = Stopper { handle, admin, readiness, engine };
    Ok((server, stopper))
}

/// Registers what only operators need, and others needn't see.
fn for_operators(config: &mut web::ServiceConfig, has_console: bool) {
    if has_console {
        config.configure(console::routes);
    }
    config
        .service(home::show)
        .service(web::redirect("/docs", "/docs/"))
        .service(metrics::show)
        .service(home::show_authorization)
        .service(docs::show);
}

/// Serves operators on a port of their own, with what `common` registers. The error is a sentence.
fn serve_operators(
    listener: Listener,
    common: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    for_operators: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    settings: http::Settings,
) -> Result<(ServerHandle, SocketAddr), String> {
    let address = listener.address();
    let app = move || {
        App::new()
            .wrap(from_fn(reads::finish))
            .wrap(from_fn(middleware::context))
            .configure(common.clone())
            .configure(for_operators.clone())
            .default_service(web::to(|| async { Err::<HttpResponse, Error>(Error::RouteNotFound) }))
    };
    let settings = http::Settings { workers: 1, connections_max: ADMIN_CONNECTIONS_MAX, ..settings };
    let server = http::serve(app, listener.into_listener(), settings)
        .map_err(|error| format!("Can't start the server for operators: {error}."))?;
    let handle = server.handle();
    actix_web::rt::spawn(server);
    log::info!("metrics and the API reference are served on http://{address}");
    Ok((handle, address))
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
