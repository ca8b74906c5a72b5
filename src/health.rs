//! For load balancers and orchestrators, and for container engines, which ask by running a command.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use actix_web::{HttpResponse, route, web};
use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::Bool;
use serde_json::json;

use crate::db::Db;
use crate::deadline;
use crate::error::Error;
use crate::idempotency::Engine;
use crate::processor::ProcessorError;

/// Whether the process runs. Asks nothing of the database: a restart wouldn't help that.
#[route("/healthz", method = "GET", method = "HEAD")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// What this instance takes for being ready.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// Whether it takes the processor.
    pub needs_processor: bool,
}

/// Longest time to find out whether requests can be served. Below what those who ask wait for ([`ask`], and many load
/// balancers), so that they're told.
const READINESS_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Whether requests can be served: the database answers and can be written, and the processor is there. 503 otherwise.
#[route("/readyz", method = "GET", method = "HEAD")]
pub async fn ready(
    db: web::Data<Db>,
    engine: web::Data<Engine>,
    readiness: web::Data<Readiness>,
) -> Result<HttpResponse, Error> {
    deadline::restart(deadline::remaining(READINESS_TIMEOUT));
    db.run_retrying(|conn| {
        let read_only = diesel::select(sql::<Bool>("current_setting('transaction_read_only')::boolean"));
        if read_only.get_result(conn)? {
            return Err(Error::DatabaseUnavailable("the database is read-only".into()));
        }
        Ok(())
    })
    .await?;
    if readiness.needs_processor && !engine.is_processor_available() {
        return Err(ProcessorError::Down.into());
    }
    Ok(HttpResponse::Ok().json(json!({"status": "ready"})))
}

/// How long [`ask`] waits for the service, at each step.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of the `health` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Address that the service listens on
    #[arg(long, env = "ONCEPAY_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Ask also whether it can serve (/readyz instead of /healthz)
    #[arg(long = "ready")]
    can_serve: bool,
}

/// Asks the service on this machine, so that an image needs no HTTP client. The error is a sentence.
pub fn ask(options: &Options) -> Result<(), String> {
    let path = if options.can_serve { "/readyz" } else { "/healthz" };
    // Who listens on all addresses is reached on the local one.
    let mut address = options.listen;
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let answer = || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = answer().map_err(|error: std::io::Error| format!("No answer from {address}: {error}."))?;
    match answer.split("\r\n").next() {
        Some(status) if status.starts_with("HTTP/1.1 200 ") => Ok(()),
        status => Err(format!("{address}{path} answers: {}.", status.unwrap_or_default())),
    }
}
