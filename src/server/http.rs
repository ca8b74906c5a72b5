//! Serving HTTP, as actix-web's `HttpServer` does, but on connections of our own.

use std::fmt::Debug;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use actix_http::{HttpService, KeepAlive, Protocol, Request, Response, ServiceConfig};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, Service};
use actix_web::rt::net::TcpStream;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::web::connection::{Connection, Limits};

/// Settings of a server.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Number of threads that serve connections.
    pub workers: usize,
    /// Maximum number of connections of each. More wait in the operating system until one ends.
    pub connections_max: usize,
    /// Maximum number of blocking threads of each.
    pub blocking_threads: usize,
    /// Time that a stopping server waits for requests under way, in seconds.
    pub shutdown_timeout_s: u64,
}

/// Files that a server opens besides clients' connections: of the database, the processor, webhook receivers.
const FILES_BESIDES: rlim_t = 1_024;

/// Allows the process as many open files as so many connections need, or as many as the system lets it have. Many systems
/// begin with 1,024, and each connection is a file.
pub fn make_room(connections_max: u32) {
    let wanted = rlim_t::from(connections_max) + FILES_BESIDES;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let possible = wanted.min(hard);
        if soft < possible {
            setrlimit(Resource::RLIMIT_NOFILE, possible, hard)?;
        }
        Ok(possible)
    });
    match raised {
        Ok(possible) if possible < wanted => {
            log::warn!(
                "the system allows {possible} open files, which is too few for {connections_max} connections"
            );
        }
        Ok(_) => {}
        Err(error) => log::warn!("the number of open files can't be raised: {error}"),
    }
}

/// Serves `app` on `listener`, until its handle stops it. Signals are the caller's.
pub fn serve<F, I, S, B>(app: F, listener: TcpListener, settings: Settings) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let builder = Server::build()
        .workers(settings.workers)
        .max_concurrent_connections(settings.connections_max)
        .worker_max_blocking_threads(settings.blocking_threads)
        .shutdown_timeout(settings.shutdown_timeout_s)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let factory = move || {
        let stopping = stopping.clone();
        let app = app().into_factory().map_err(|error| error.into().error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            // The connection keeps the time itself.
            .keep_alive(KeepAlive::Os)
            .client_request_timeout(Duration::ZERO)
            // As long, a client that still sends can read an answer that came early.
            .client_disconnect_timeout(Duration::from_secs(1))
            .on_connect_ext(|connection: &Connection, data| {
                data.insert(connection.link());
            })
            .finish(map_config(app, |()| AppConfig::default()));
        // It holds the time of day for answers, which a task of the thread keeps.
        let config = ServiceConfig::default();
        fn_service(move |stream: TcpStream| {
            let connection = Connection::new(stream, config.clone(), Limits::default());
            let address = connection.peer_address();
            async move { Ok((connection, Protocol::Http1, address)) }
        })
        .and_then(http)
    };
    Ok(builder.listen("oncepay", listener, factory)?.run())
}
