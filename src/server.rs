//! The HTTP server: what is served, and with what.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use utoipa::openapi::OpenApi;
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;
use utoipa_swagger_ui::SwaggerUi;

use crate::auth::KnownKeys;
use crate::config::Config;
use crate::db::{Db, POOLS_MAX};
use crate::error::Error;
use crate::health::Readiness;
use crate::idempotency::{AcquirerSecrets, Engine, Registered, Settings};
use crate::metrics::Metrics;
use crate::processor::{HttpProcessor, Processor, Sandbox};
use crate::vault::Vault;
use crate::webhooks::delivery;
use crate::webhooks::inbound;
use crate::webhooks::retention::{self, Retention};
use crate::{
    api_keys, balance, charges, disputes, events_api, health, keys_api, ledger, ledger_api, merchants,
    metrics, openapi, operator, payouts, policies_api, problems, reconcile, refunds, request, webhooks,
};

/// How long a stopping server waits for requests that are being handled.
const SHUTDOWN_TIMEOUT_S: u64 = 30;

/// The operations of the API, each described next to its handler.
fn api(config: &mut ServiceConfig) {
    config
        .service(charges::create::create)
        .service(charges::read::list)
        .service(charges::read::get)
        .service(charges::update::update)
        .service(charges::capture::capture)
        .service(charges::cancel::cancel)
        .service(refunds::create)
        .service(refunds::list)
        .service(refunds::get)
        .service(payouts::create)
        .service(payouts::list)
        .service(payouts::get)
        .service(disputes::list)
        .service(disputes::get)
        .service(inbound::receive)
        .service(api_keys::create)
        .service(api_keys::list)
        .service(api_keys::revoke)
        .service(webhooks::endpoints::create)
        .service(webhooks::endpoints::list)
        .service(webhooks::endpoints::get)
        .service(webhooks::endpoints::update)
        .service(webhooks::endpoints::rotate_secret)
        .service(webhooks::endpoints::remove)
        .service(events_api::list)
        .service(events_api::get)
        .service(events_api::list_deliveries)
        .service(events_api::redeliver)
        .service(merchants::create)
        .service(merchants::list)
        .service(merchants::get)
        .service(merchants::change_pricing)
        .service(operator::audit_books)
        .service(keys_api::get)
        .service(keys_api::list)
        .service(keys_api::get_any)
        .service(keys_api::retry)
        .service(keys_api::release)
        .service(inbound::api::list)
        .service(inbound::api::get)
        .service(inbound::api::replay)
        .service(inbound::api::dismiss)
        .service(policies_api::list)
        .service(policies_api::list_for_operators)
        .service(policies_api::get)
        .service(policies_api::replace)
        .service(policies_api::list_changes)
        .service(balance::get)
        .service(ledger_api::list_accounts)
        .service(ledger_api::get_account)
        .service(ledger_api::list_postings)
        .service(ledger_api::get_account_balance)
        .service(ledger_api::list_entries)
        .service(ledger_api::get_entry)
        .service(ledger_api::get_trial_balance);
}

/// The operations that change something.
pub fn operations() -> Vec<Registered> {
    vec![
        Registered::external::<charges::create::CreateCharge>(),
        Registered::external::<charges::capture::CaptureCharge>(),
        Registered::external::<charges::cancel::CancelCharge>(),
        Registered::local::<charges::update::UpdateCharge>(),
        Registered::external::<refunds::CreateRefund>(),
        Registered::external::<payouts::CreatePayout>(),
        Registered::local::<inbound::ReceiveEvent>(),
        Registered::local::<inbound::api::ReplayEvent>(),
        Registered::local::<inbound::api::DismissEvent>(),
        Registered::local::<api_keys::CreateApiKey>(),
        Registered::local::<api_keys::RevokeApiKey>(),
        Registered::local::<webhooks::endpoints::CreateWebhookEndpoint>(),
        Registered::local::<webhooks::endpoints::UpdateWebhookEndpoint>(),
        Registered::local::<webhooks::endpoints::RotateSecret>(),
        Registered::local::<webhooks::endpoints::DeleteWebhookEndpoint>(),
        Registered::local::<events_api::RedeliverEvent>(),
        Registered::local::<merchants::CreateMerchant>(),
        Registered::local::<merchants::ChangePricing>(),
        Registered::local::<keys_api::RetryKey>(),
        Registered::local::<keys_api::ReleaseKey>(),
        Registered::local::<policies_api::ReplacePolicy>(),
    ]
}

/// The OpenAPI document of the API.
pub fn document() -> OpenApi {
    let (_, mut document) =
        App::new().into_utoipa_app().openapi(openapi::base()).configure(api).split_for_parts();
    openapi::finish(&mut document, &operations());
    document
}

/// A server that has its port but doesn't serve yet.
pub struct Bound {
    listener: TcpListener,
}

impl Bound {
    /// Takes the port. The error is a sentence, which names the setting that chose it.
    pub fn new(listen: SocketAddr, setting: &str) -> Result<Self, String> {
        let listener = TcpListener::bind(listen).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "Port {} is taken by another program. Stop that one, or choose another port with {setting}.",
                listen.port()
            ),
            _ => format!("Can't listen on {listen}: {error}. Choose another port with {setting}."),
        })?;
        Ok(Self { listener })
    }

    /// Where it will be reached.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// The port, for another server than this one.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }

    /// Starts serving. Must be called inside an actix system. `processor` is the sandbox unless given.
    pub fn serve(
        self,
        config: &Config,
        processor: Option<Arc<dyn Processor>>,
    ) -> Result<(Server, ServerHandle), String> {
        let metrics = Arc::new(Metrics::new());
        let acquirer = match config.acquirer.http_settings() {
            Some(settings) => Some(Arc::new(HttpProcessor::new(settings, Arc::clone(&metrics))?)),
            None => None,
        };
        let processor = match (processor, &acquirer) {
            (Some(processor), _) => processor,
            (None, Some(acquirer)) => Arc::clone(acquirer) as Arc<dyn Processor>,
            (None, None) => Arc::new(sandbox(config)?),
        };
        let db = Db::new(&config.database_url, config.pool_size, config.pool_timeout(), Arc::clone(&metrics));
        let vault = Vault::new(config.master_key.clone());
        let deliveries = delivery::Worker::new(
            db.clone(),
            vault.clone(),
            config.delivery,
            config.webhook_allow_loopback,
            Arc::clone(&metrics),
        )?;
        let engine = Engine::new(
            db.clone(),
            processor,
            vault,
            Settings {
                timing: config.timing(),
                batch_size_max: config.batch_size_max as usize,
                webhook_allow_loopback: config.webhook_allow_loopback,
            },
            &operations(),
            Arc::clone(&metrics),
        );
        let (roll_up_db, workers_engine) = (db.clone(), engine.clone());
        let document = document();
        let methods = Arc::new(methods_by_path(&document));
        let document = web::Data::new(document);
        let known_keys = web::Data::new(KnownKeys::default());
        let acquirer_secrets = web::Data::new(AcquirerSecrets(config.webhook_secrets()?));
        let (shared_metrics, retention_metrics) = (Arc::clone(&metrics), Arc::clone(&metrics));
        let metrics = web::Data::from(metrics);
        let readiness = web::Data::new(Readiness { needs_processor: !config.ready_without_acquirer });

        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        // Each worker has its own blocking threads, while connections belong to all: whoever holds a permit must
        // find a thread, also when one worker happens to have all the permits, and others wait for lost connections.
        // Idle threads end by themselves.
        let blocking_threads = POOLS_MAX * config.pool_size as usize;
        let server = HttpServer::new(move || {
            let methods = Arc::clone(&methods);
            App::new()
                .app_data(web::Data::new(db.clone()))
                .app_data(web::Data::new(engine.clone()))
                .app_data(known_keys.clone())
                .app_data(acquirer_secrets.clone())
                .app_data(document.clone())
                .app_data(metrics.clone())
                .app_data(readiness.clone())
                .wrap(from_fn(request::context))
                .into_utoipa_app()
                .configure(api)
                .into_app()
                .service(health::live)
                .service(health::ready)
                .service(problems::index)
                .service(problems::show)
                .service(web::redirect("/", "/docs/"))
                .service(web::redirect("/docs", "/docs/"))
                .service(web::redirect("/problems/", "/problems"))
                .service(openapi::show)
                .service(metrics::show)
                .service(
                    SwaggerUi::new("/docs/{_:.*}").config(utoipa_swagger_ui::Config::from("/openapi.json")),
                )
                .default_service(web::to(move |req: HttpRequest| {
                    let error = unmatched(&req, &methods);
                    async move { Err::<HttpResponse, Error>(error) }
                }))
        })
        .workers(workers)
        .worker_max_blocking_threads(blocking_threads)
        .client_request_timeout(Duration::from_secs(10))
        .shutdown_timeout(SHUTDOWN_TIMEOUT_S)
        // Signals are the commands' business: `dev` has more to stop than this server.
        .disable_signals()
        .listen(self.listener)
        .map_err(|error| format!("Can't start the server: {error}."))?
        .run();
        workers_engine.start_workers(
            operations(),
            config.database_url.clone(),
            Duration::from_millis(config.reaper_interval_ms),
            Duration::from_millis(config.metrics_interval_ms),
        );
        if let Some(acquirer) = acquirer {
            let interval = Duration::from_millis(config.reconcile_interval_ms);
            let watched = Arc::clone(&acquirer);
            actix_web::rt::spawn(async move { watched.watch().await });
            actix_web::rt::spawn(reconcile::keep_reconciling(
                roll_up_db.clone(),
                acquirer,
                config.reconcile,
                interval,
                Arc::clone(&shared_metrics),
            ));
        }
        actix_web::rt::spawn(inbound::keep_trying(
            roll_up_db.clone(),
            config.acquirer_events,
            Arc::clone(&shared_metrics),
        ));
        actix_web::rt::spawn(inbound::keep_counting(roll_up_db.clone(), shared_metrics));
        actix_web::rt::spawn(inbound::keep_pruning(roll_up_db.clone(), config.acquirer_events));
        let retention = Retention {
            events_days: config.event_retention_days,
            deliveries_days: config.delivery_retention_days,
        };
        actix_web::rt::spawn(retention::keep_pruning(roll_up_db.clone(), retention, retention_metrics));
        actix_web::rt::spawn(ledger::keep_rolling_up(
            roll_up_db,
            Duration::from_millis(config.roll_up_interval_ms),
        ));
        deliveries.start(Duration::from_millis(config.metrics_interval_ms));
        let handle = server.handle();
        Ok((server, handle))
    }
}

/// The processor in our own process.
fn sandbox(config: &Config) -> Result<Sandbox, String> {
    match &config.sandbox_journal {
        None => Ok(Sandbox::new()),
        Some(path) => {
            Sandbox::with_journal(path).map_err(|error| format!("Can't write {}: {error}.", path.display()))
        }
    }
}

/// Path templates and the methods that each has, as `GET, POST`.
fn methods_by_path(document: &OpenApi) -> Vec<(String, String)> {
    document
        .paths
        .paths
        .iter()
        .map(|(path, item)| {
            let methods = [
                ("GET", item.get.is_some()),
                ("POST", item.post.is_some()),
                ("PUT", item.put.is_some()),
                ("PATCH", item.patch.is_some()),
                ("DELETE", item.delete.is_some()),
            ];
            let allowed: Vec<_> =
                methods.iter().filter(|(_, exists)| *exists).map(|(name, _)| *name).collect();
            (path.clone(), allowed.join(", "))
        })
        .collect()
}

/// Why no route matched: the path is unknown, or it has other methods.
fn unmatched(req: &HttpRequest, methods: &[(String, String)]) -> Error {
    let matches = |template: &str| {
        let mut path = req.path().split('/');
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
    match methods.iter().find(|(template, _)| matches(template)) {
        Some((_, allow)) => Error::MethodNotAllowed { allow: allow.clone() },
        None => Error::RouteNotFound,
    }
}
