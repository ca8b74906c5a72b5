//! `oncepay health`: checks the service on this machine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::Serialize;

use crate::web::listener;

use super::exit::Stop;
use super::shared::{Form, write_document};

/// Maximum time that [`ask`] waits for the service, at each step.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of the `health` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Address on which the service listens
    #[arg(long, env = "ONCEPAY_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Check also whether it can serve (/readyz instead of /healthz)
    #[arg(long = "ready")]
    can_serve: bool,

    #[command(flatten)]
    form: Form,
}

/// The result as JSON.
#[derive(Serialize)]
struct Document {
    /// Where it was asked.
    url: String,
    /// Whether all is well.
    healthy: bool,
    /// What isn't, as a sentence.
    problem: Option<String>,
}

/// Runs `oncepay health`, so that an image needs no HTTP client.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let path = if options.can_serve { "/readyz" } else { "/healthz" };
    let address = listener::reachable(options.listen);
    let problem = ask(address, path).err();
    if options.form.json {
        let (url, healthy) = (format!("http://{address}{path}"), problem.is_none());
        write_document(out, &Document { url, healthy, problem: problem.clone() })?;
    }
    problem.map_or(Ok(()), |problem| Err(Stop::Found(problem)))
}

/// Asks a service how it is. The error is a sentence.
pub fn ask(address: SocketAddr, path: &str) -> Result<(), String> {
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
        status => {
            let status = status.unwrap_or_default();
            let problem = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let problem: serde_json::Value = serde_json::from_str(problem).unwrap_or_default();
            let detail = problem["detail"].as_str().unwrap_or_default();
            Err(format!("{address}{path} answers: {status}. {detail}").trim_end().to_owned())
        }
    }
}
