//! The HTTP client that sends to addresses chosen by merchants.
//!
//! Promised: the client connects to public addresses only, whatever a name resolves to at that moment, since
//! it checks the very address that it connects to. It follows no redirect and uses no proxy; either would
//! choose another address unseen. A receiver's answer costs no more than 32 KiB, all told, and the time limit.
//!
//! Not promised: to tell the receiver's fault from the network's.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::rt::task::spawn_blocking;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower_service::Service;
use url::{Host, Url};

use super::address;
use super::connection::{AnswerTooLong, ConnectTimeout, Connector};
use crate::base::time;

/// Maximum number of idle connections kept for the next messages to an endpoint.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Lifetime of an idle connection: less than the five seconds after which common servers close theirs,
/// perhaps while a message is being sent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of concurrent name lookups. Each takes a thread for as long as the resolver likes, and the
/// database work needs threads, too.
const LOOKUPS_MAX: usize = 64;
/// Maximum number of bytes read from an answer.
const ANSWER_MAX: usize = 4 * 1024;
/// Maximum number of characters kept from an answer.
const EXCERPT_MAX: usize = 500;

/// An endpoint's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// Time for which the receiver wants to be left alone, if it says so in a way that can be read.
    pub(super) retry_after: Option<Duration>,
    /// The beginning of the body, at most 500 characters, in a form that Postgres can store.
    pub(super) excerpt: String,
}

/// The reason why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The address isn't public, or its scheme isn't `https`.
    AddressNotAllowed,
    /// The connection succeeded, but TLS failed.
    TlsFailed,
    /// The time limit passed.
    Timeout,
    /// The receiver sent more than an answer may have.
    AnswerTooLong,
    /// The connection failed or broke, or the answer wasn't HTTP.
    ConnectionFailed,
}

/// Name of the failure of an answer that sends elsewhere.
pub(super) const REDIRECTED: &str = "redirected";

/// Why an attempt has failed, as far as its status doesn't say.
pub(crate) const REASONS: [&str; 6] = [
    Failure::AddressNotAllowed.as_str(),
    Failure::TlsFailed.as_str(),
    Failure::Timeout.as_str(),
    Failure::AnswerTooLong.as_str(),
    Failure::ConnectionFailed.as_str(),
    REDIRECTED,
];

impl Failure {
    /// Name that the merchant sees.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::AddressNotAllowed => "address_not_allowed",
            Self::TlsFailed => "tls_failed",
            Self::Timeout => "timeout",
            Self::AnswerTooLong => "answer_too_long",
            Self::ConnectionFailed => "connection_failed",
        }
    }

    fn of(error: &(dyn StdError + 'static)) -> Self {
        match () {
            () if has_cause::<NotAllowed>(error) => Self::AddressNotAllowed,
            // It may come during the handshake.
            () if has_cause::<AnswerTooLong>(error) => Self::AnswerTooLong,
            () if has_cause::<native_tls::Error>(error) => Self::TlsFailed,
            () if has_cause::<ConnectTimeout>(error) => Self::Timeout,
            () => Self::ConnectionFailed,
        }
    }
}

/// Whether an `E` is among the causes of `error`.
fn has_cause<E: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    // The inner error of an io::Error isn't its source, but the inner error's source is.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<E>()
        || inner.is_some_and(|inner| has_cause::<E>(inner))
        || error.source().is_some_and(has_cause::<E>)
}

type HttpClient = hyper_util::client::legacy::Client<Connector<Guard>, Full<Bytes>>;

/// Sends messages.
pub(super) struct Client {
    /// Client for `https`.
    secure: HttpClient,
    secure_reach: AddressPolicy,
    /// Client for `http`.
    plain: HttpClient,
    plain_reach: AddressPolicy,
    timeout: Duration,
}

impl Client {
    /// Makes a client with these time limits for a connection and, including the connection, for an answer.
    /// With `allow_loopback` it also sends to this host, without TLS if the URL says so. The error is a
    /// sentence.
    pub(super) fn new(
        connect_timeout: Duration,
        timeout: Duration,
        allow_loopback: bool,
    ) -> Result<Self, String> {
        let lookups = Lookups::new(resolve);
        let client = |reach: AddressPolicy| {
            let guard = Guard { reach, lookups: Arc::clone(&lookups) };
            let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .build(Connector::new(guard, connect_timeout)?);
            Ok::<HttpClient, String>(client)
        };
        let secure_reach = AddressPolicy { public: true, loopback: allow_loopback };
        let plain_reach = AddressPolicy { public: false, loopback: allow_loopback };
        Ok(Self {
            secure: client(secure_reach)?,
            secure_reach,
            plain: client(plain_reach)?,
            plain_reach,
            timeout,
        })
    }

    /// Posts `body` and reads the beginning of the answer. A redirect is an answer like any other.
    pub(super) async fn post(&self, url: &str, headers: HeaderMap, body: String) -> Result<Answer, Failure> {
        let give_up_at = Instant::now() + self.timeout;
        let url = Url::parse(url).map_err(|_| Failure::AddressNotAllowed)?;
        let (client, reach) = match url.scheme() {
            "https" => (&self.secure, self.secure_reach),
            "http" => (&self.plain, self.plain_reach),
            _ => return Err(Failure::AddressNotAllowed),
        };
        // An IP address needs no resolver, so the resolver that checks never sees it.
        let is_allowed = match url.host() {
            Some(Host::Ipv4(ip)) => reach.allows(ip.into()),
            Some(Host::Ipv6(ip)) => reach.allows(ip.into()),
            Some(Host::Domain(_)) => reach.public || reach.loopback,
            None => false,
        };
        if !is_allowed {
            return Err(Failure::AddressNotAllowed);
        }
        let mut request = hyper::Request::post(url.as_str())
            .body(Full::from(body))
            .map_err(|_| Failure::AddressNotAllowed)?;
        *request.headers_mut() = headers;
        let agent = HeaderValue::from_static(concat!("Oncepay/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
        let response = tokio::time::timeout_at(give_up_at, client.request(request)).await;
        let mut response = response.map_err(|_| Failure::Timeout)?.map_err(|error| {
            log::debug!("no answer from a webhook endpoint: {error:?}");
            Failure::of(&error)
        })?;
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| time::retry_after(text, time::now()));
        let mut answer = Vec::new();
        // Only the status counts. If the rest doesn't arrive, there is no excerpt.
        while answer.len() < ANSWER_MAX
            && let Ok(Some(Ok(frame))) =
                tokio::time::timeout_at(give_up_at, response.body_mut().frame()).await
        {
            answer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        answer.truncate(ANSWER_MAX);
        Ok(Answer { status: response.status().as_u16(), retry_after, excerpt: excerpt(&answer) })
    }
}

/// The beginning of an answer as text. Postgres stores no U+0000.
fn excerpt(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).chars().filter(|char| *char != '\0').take(EXCERPT_MAX).collect()
}

/// The addresses that the client may connect to.
#[derive(Clone, Copy, Debug)]
struct AddressPolicy {
    public: bool,
    loopback: bool,
}

impl AddressPolicy {
    fn allows(self, ip: IpAddr) -> bool {
        (self.public && address::is_public(ip)) || (self.loopback && ip.to_canonical().is_loopback())
    }
}

/// The name has no allowed address.
#[derive(Debug, thiserror::Error)]
#[error("the name has no address that is allowed")]
struct NotAllowed;

/// Resolves names to their allowed addresses. The connection goes to one of these, so a different DNS answer
/// a moment later changes nothing.
#[derive(Clone)]
struct Guard {
    reach: AddressPolicy,
    lookups: Arc<Lookups>,
}

impl Service<Name> for Guard {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (reach, lookup) = (self.reach, self.lookups.find(name.as_str()));
        Box::pin(async move {
            let found = lookup.await?;
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|found| reach.allows(found.ip())).collect();
            if allowed.is_empty() {
                return Err(NotAllowed.into());
            }
            Ok(allowed.into_iter())
        })
    }
}

/// A lookup of a name. Requests that arrive before its result share it.
type Lookup = Shared<BoxFuture<'static, Result<Arc<[SocketAddr]>, Arc<io::Error>>>>;

/// The lookups under way, one per name. A request for a name that no server answers for gives up long before
/// its lookup does, and comes again; it must not take all threads.
struct Lookups {
    threads: Arc<Semaphore>,
    under_way: Mutex<HashMap<String, Lookup>>,
    resolve: fn(&str) -> io::Result<Vec<SocketAddr>>,
}

impl Lookups {
    fn new(resolve: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Arc<Self> {
        let threads = Arc::new(Semaphore::new(LOOKUPS_MAX));
        Arc::new(Self { threads, under_way: Mutex::default(), resolve })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, Lookup>> {
        // Each change is atomic, so a panic elsewhere can't have left a partial one.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(self: &Arc<Self>, name: &str) -> Lookup {
        let mut under_way = self.under_way();
        if let Some(lookup) = under_way.get(name) {
            return lookup.clone();
        }
        // Runs in its own task, so that it finishes and removes itself even when nobody waits any longer.
        let task = tokio::spawn(Arc::clone(self).look_up(name.to_owned()));
        let ended = task.map(|ended| ended.unwrap_or_else(|error| Err(Arc::new(io::Error::other(error)))));
        let lookup = ended.boxed().shared();
        under_way.insert(name.to_owned(), lookup.clone());
        lookup
    }

    async fn look_up(self: Arc<Self>, name: String) -> Result<Arc<[SocketAddr]>, Arc<io::Error>> {
        let permit = Arc::clone(&self.threads).acquire_owned().await;
        let (resolve, asked) = (self.resolve, name.clone());
        let found = spawn_blocking(move || {
            let _permit = permit;
            resolve(&asked)
        });
        let found = found.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.under_way().remove(&name);
        found.map(Arc::from).map_err(Arc::new)
    }
}

/// Resolves a name with the system's resolver.
fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((name, 0).to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_text() {
        assert_eq!(excerpt(b"ok"), "ok");
        assert_eq!(excerpt(b"a\0b\xffc"), "ab\u{fffd}c");
        assert_eq!(excerpt("é".repeat(501).as_bytes()), "é".repeat(500));
    }

    #[actix_web::test]
    async fn a_name_that_nobody_answers_for_keeps_no_other_waiting() {
        let lookups = Lookups::new(|name| {
            if name == "dead" {
                std::thread::sleep(Duration::from_secs(2));
            }
            Ok(vec!["8.8.8.8:0".parse().unwrap()])
        });
        let dead: Vec<_> = (0..2 * LOOKUPS_MAX).map(|_| lookups.find("dead")).collect();
        assert_eq!(dead[0].clone().now_or_never().map(|_| ()), None);
        let other = tokio::time::timeout(Duration::from_secs(1), lookups.find("alive")).await;
        assert_eq!(other.expect("its turn").unwrap().len(), 1);
        assert_eq!(futures_util::future::join_all(dead).await.len(), 2 * LOOKUPS_MAX);
        assert!(lookups.under_way().is_empty());
    }

    #[test]
    fn only_what_was_allowed_is_reached() {
        let (public, loopback) = ("8.8.8.8", ["127.0.0.1", "::1", "::ffff:127.0.0.1"]);
        let private = ["10.0.0.1", "169.254.169.254", "::", "0.0.0.0", "fd00::1"];
        let allows = |reach: AddressPolicy, ip: &str| reach.allows(ip.parse().unwrap());
        for (reach, takes_public, takes_loopback) in [
            (AddressPolicy { public: true, loopback: false }, true, false),
            (AddressPolicy { public: true, loopback: true }, true, true),
            (AddressPolicy { public: false, loopback: true }, false, true),
            (AddressPolicy { public: false, loopback: false }, false, false),
        ] {
            assert_eq!(allows(reach, public), takes_public, "{reach:?}");
            assert!(loopback.iter().all(|ip| allows(reach, ip) == takes_loopback), "{reach:?}");
            assert!(!private.iter().any(|ip| allows(reach, ip)), "{reach:?}");
        }
    }
}
