//! The worker that delivers events to webhook endpoints.
//!
//! Promised: every delivery is attempted until its endpoint accepts it, or the service gives it up because of
//! its age or because its endpoint was deleted. If a worker dies, it dies between two statements, and another
//! one takes the delivery after the lease. An endpoint that fails, hangs or has a large backlog takes no more
//! than its share: so many attempts at a time, but one until it has accepted a message, and one a second while
//! it fails. All endpoints of a merchant together take at most a quarter of an instance's concurrency, and all
//! failing endpoints at most half. A receiver that asks for a pause (`Retry-After`) gets it, and one that says that it's gone (410)
//! gets nothing more. The worker holds no database connection while a message is on its way.
//!
//! Not promised: that a message arrives once, or in order. A receiver recognizes duplicates by `webhook-id`,
//! and order by the time in the message. Endpoints that take seconds for each message, but accept it, aren't
//! throttled: with large backlogs, those of four merchants can take all places.
//!
//! ```text
//!     Worker::begin_due          as many as there are free places
//!       outbox::claim            one statement for all of them, the lease begins
//!       Worker::attempt          each in its own task
//!         Message::of            the same bytes for each attempt
//!         Client::post           signed anew, to a checked address
//!         outbox::note           batched with others that end meanwhile, fenced
//!         outbox::disable        if that endpoint has failed for too long, or is gone
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_rt::Arbiter;
use diesel::Connection;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::metrics::Metrics;
use crate::base::defaults::defaults;
use crate::base::derived_secrets::Vault;
use crate::base::faults;
use crate::base::ids::EventId;
use crate::base::metrics::GaugeGuard;
use crate::base::scope::{self, Scope};
use crate::base::spans::{Kind, Span};
use crate::base::time::{self, Timestamp};
use crate::base::trace::{TRACEPARENT, TRACESTATE};
use crate::error::Error;
use crate::storage::batch::Batcher;
use crate::storage::db::Db;
use crate::storage::party::Party;

use super::client::{Answer, Client, Failure, REDIRECTED};
use super::outbox::{
    self, AttemptEffect, Capacity, ClaimedDelivery, EndpointFilter, EndpointKey, Outcome, State,
};
use crate::base::signature;

/// Time that a lease adds to the endpoint's: for storing the outcome, even if the database is slow.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// Maximum pause between two attempts, also if the receiver asks for a longer one.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// The status with which a receiver says that it's gone for good.
const GONE: u16 = 410;
/// Maximum size in bytes of a message that carries the whole object.
const MESSAGE_MAX: usize = 64 * 1024;
/// Maximum number of outcomes in one statement.
const BATCH_SIZE_MAX: usize = 128;
/// Interval of the search for deliveries to deleted endpoints, and how many of them are given up at a time.
const GIVE_UP_INTERVAL: Duration = Duration::from_secs(5);
const GIVE_UP_BATCH: u32 = 1_000;
/// Minimum time between the starts of two attempts at a failing endpoint. Without it, the backlog would be
/// attempted, and given up, as fast as the endpoint refuses connections.
const FAILING_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of the search for endpoints that have failed for too long, and how many of them are disabled at a
/// time.
const DISABLE_INTERVAL: Duration = Duration::from_secs(60);
const DISABLE_BATCH: u32 = 100;
/// Pause after a search of all endpoints, as a multiple of its duration.
const LOOK_PAUSE_FACTOR: u32 = 4;
/// Pause after the first database failure, and the maximum pause.
const DATABASE_PAUSE: Duration = Duration::from_millis(100);
const DATABASE_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Settings of the delivery worker.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(id = "delivery")]
pub struct Options {
    /// Maximum number of concurrent messages of an instance; a quarter of that to the endpoints of one merchant
    #[arg(long, env = "ONCEPAY_DELIVERY_CONCURRENCY", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub delivery_concurrency: u32,

    /// Maximum number of these to one endpoint; one until it has accepted a message, and while it fails
    #[arg(long, env = "ONCEPAY_DELIVERY_CONCURRENCY_PER_ENDPOINT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub delivery_concurrency_per_endpoint: u32,

    /// Interval at which an idle instance looks for events to deliver, in milliseconds
    #[arg(long, env = "ONCEPAY_DELIVERY_INTERVAL_MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..))]
    pub delivery_interval_ms: u64,

    /// Maximum time to connect to a webhook endpoint, in milliseconds
    #[arg(long, env = "ONCEPAY_DELIVERY_CONNECT_TIMEOUT_MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub delivery_connect_timeout_ms: u64,

    /// Maximum time for a webhook endpoint to accept a message, including the connection, in milliseconds
    #[arg(long, env = "ONCEPAY_DELIVERY_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub delivery_timeout_ms: u64,

    /// Pause before a failed message is retried, in milliseconds; doubles with each failure, up to six hours
    #[arg(long, env = "ONCEPAY_DELIVERY_BACKOFF_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub delivery_backoff_ms: u64,

    /// Age from which a failed message isn't retried, in seconds. An endpoint that has accepted nothing for that
    /// long is disabled
    #[arg(long, env = "ONCEPAY_DELIVERY_GIVE_UP_AFTER_S", default_value_t = 3 * 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub delivery_give_up_after_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        defaults()
    }
}

impl Options {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.delivery_timeout_ms)
    }

    /// Time for which a sender owns a delivery.
    fn lease(&self) -> Duration {
        self.timeout() + LEASE_MARGIN
    }

    fn give_up_after(&self) -> Duration {
        Duration::from_secs(self.delivery_give_up_after_s)
    }

    /// Maximum number of concurrent messages to the endpoints of one merchant.
    fn concurrency_per_merchant(&self) -> u32 {
        (self.delivery_concurrency / 4).max(self.delivery_concurrency_per_endpoint)
    }

    /// See [`FAILING_INTERVAL`].
    fn failing_interval(&self) -> Duration {
        FAILING_INTERVAL.min(Duration::from_millis(self.delivery_backoff_ms))
    }

    /// Pause after attempt `number` has failed.
    fn pause_after(&self, number: i32) -> Duration {
        let failures = u32::try_from(number - 1).unwrap_or(0);
        time::backoff(Duration::from_millis(self.delivery_backoff_ms), failures, PAUSE_MAX)
    }
}

/// The thread of deliveries, while this value lives.
struct DeliveryThread(Arbiter);

impl Drop for DeliveryThread {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Delivers the outbox. Any number of instances may do so at the same time.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    db: Db,
    vault: Vault,
    client: Client,
    options: Options,
    outcomes: Arc<Batcher<Outcome, Option<AttemptEffect>>>,
    places: Arc<Places>,
    metrics: Arc<Metrics>,
}

impl Worker {
    /// Makes a worker, which also sends to this host if `allow_loopback` is set. The error is a sentence.
    pub fn new(
        db: Db,
        vault: Vault,
        options: Options,
        allow_loopback: bool,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let connect_timeout = Duration::from_millis(options.delivery_connect_timeout_ms);
        let client = Client::new(connect_timeout, options.timeout(), allow_loopback)?;
        let outcomes = Batcher::new(
            db.clone(),
            BATCH_SIZE_MAX,
            metrics.webhook_batches.clone(),
            move |conn, outcomes: &[Outcome]| outbox::note(conn, outcomes, options.give_up_after()),
        );
        let places = Arc::default();
        Ok(Self { shared: Arc::new(Shared { db, vault, client, options, outcomes, places, metrics }) })
    }

    /// Delivers until the process ends, gives up deliveries to deleted endpoints, and measures the backlog
    /// every `metrics_interval`. Attempts under way at the end are due again when their leases expire.
    ///
    /// It runs on a thread of its own: what receivers send can keep that one busy, and nobody else.
    pub fn start(self, metrics_interval: Duration) {
        let thread = DeliveryThread(Arbiter::new());
        thread.0.spawn(self.clone().keep_measuring(metrics_interval));
        thread.0.spawn(self.clone().keep_giving_up());
        thread.0.spawn(self.clone().keep_disabling());
        thread.0.spawn(self.keep_delivering());
        // Ends with the server, whose tasks are dropped then.
        actix_web::rt::spawn(async move {
            let _thread = thread;
            std::future::pending::<()>().await;
        });
    }

    async fn keep_delivering(self) {
        let Shared { options, places, .. } = &*self.shared;
        let interval = Duration::from_millis(options.delivery_interval_ms);
        let (mut look_at, mut failures) = (Instant::now(), 0);
        loop {
            let freed = places.take_freed();
            // An endpoint with a finished attempt may have more to deliver. But if places are scarce, all
            // endpoints share them.
            let looks_at_all = look_at <= Instant::now() || (!freed.is_empty() && places.are_scarce(options));
            let among = match looks_at_all {
                true => EndpointFilter::All,
                false if freed.is_empty() => {
                    let _ = tokio::time::timeout_at(look_at.into(), places.has_freed.notified()).await;
                    continue;
                }
                false => EndpointFilter::These(freed),
            };
            let asked = Instant::now();
            let begun = self.begin_due(among).await;
            match begun {
                Ok(begun) => {
                    failures = 0;
                    if looks_at_all {
                        let nothing = time::jittered(interval);
                        let pause = if begun == 0 { nothing } else { Duration::ZERO };
                        // With thousands of waiting endpoints, a search of all takes long, and the busy ones
                        // must not wait for it.
                        look_at = Instant::now() + pause.max(asked.elapsed() * LOOK_PAUSE_FACTOR);
                    }
                }
                Err(error) => {
                    log::warn!("the delivery worker couldn't look for work: {}", error.detailed());
                    tokio::time::sleep(time::backoff(DATABASE_PAUSE, failures, DATABASE_PAUSE_MAX)).await;
                    (look_at, failures) = (Instant::now(), failures + 1);
                }
            }
        }
    }

    async fn keep_measuring(self, interval: Duration) {
        loop {
            tokio::time::sleep(time::jittered(interval)).await;
            match self.shared.db.run(outbox::oldest_due_age_s).await {
                Ok(age_s) => self.shared.metrics.webhook_oldest_due_seconds.set(age_s),
                Err(error) => log::warn!("couldn't measure what waits for delivery: {}", error.detailed()),
            }
        }
    }

    async fn keep_giving_up(self) {
        let Shared { db, metrics, .. } = &*self.shared;
        loop {
            tokio::time::sleep(time::jittered(GIVE_UP_INTERVAL)).await;
            match db.run(|conn| outbox::give_up_deleted(conn, GIVE_UP_BATCH)).await {
                Ok(count) => metrics.webhook_deliveries.with_label_values(&["given_up"]).inc_by(count as u64),
                Err(error) => log::warn!("couldn't give up deliveries: {}", error.detailed()),
            }
        }
    }

    /// Disables failing endpoints that no worker has disabled yet: see [`outbox::failed_for_too_long`].
    async fn keep_disabling(self) {
        let Shared { db, options, .. } = &*self.shared;
        let give_up_after = options.give_up_after();
        loop {
            tokio::time::sleep(time::jittered(DISABLE_INTERVAL.min(give_up_after))).await;
            let failed =
                db.run(move |conn| outbox::failed_for_too_long(conn, give_up_after, DISABLE_BATCH)).await;
            match failed {
                Ok(failed) => {
                    for endpoint in failed {
                        self.disable(endpoint, give_up_after).await;
                    }
                }
                Err(error) => log::warn!("couldn't look for failing endpoints: {}", error.detailed()),
            }
        }
    }

    /// Claims due deliveries to some endpoints, as many as there are free places, and begins to send them.
    /// Returns their number.
    ///
    /// Doesn't retry if the claim's commit may have been lost: a retry would claim other deliveries, and
    /// these are due again after the lease.
    async fn begin_due(&self, among: EndpointFilter) -> Result<usize, Error> {
        let Shared { db, vault, options, places, .. } = &*self.shared;
        let room = places.room(options);
        if room.places == 0 {
            return Ok(0);
        }
        let asked = Instant::now();
        let (keys, lease) = (vault.versions(), options.lease());
        let due = db.run(move |conn| outbox::claim(conn, among, &room, &keys, lease)).await?;
        let begun = due.len();
        for claimed in due {
            let place = places.take(claimed.endpoint_key(), claimed.endpoint_is_failing);
            // Runs in its own task, so that neither its end nor its panic affects others.
            let scope = scope_of(&claimed);
            actix_web::rt::spawn(scope::within(scope, self.clone().attempt(claimed, place, asked)));
        }
        Ok(begun)
    }

    /// Sends a message that was claimed after `asked`, and stores the outcome.
    async fn attempt(self, claimed: ClaimedDelivery, _place: Place, asked: Instant) {
        let Shared { options, metrics, .. } = &*self.shared;
        let in_flight = GaugeGuard::new(&metrics.webhook_in_flight);
        faults::reach("delivery_before_send");
        let begun = Instant::now();
        let mut span = Span::of(&claimed.trace, "deliver", Kind::Client);
        span.rename(|| format!("deliver {}", claimed.kind));
        span.set("oncepay.event_id", || Some(claimed.event.to_string()));
        let sent = self.send(&claimed).await;
        let duration = begun.elapsed();
        span.set("http.response.status_code", || Some(sent.as_ref().ok()?.status.to_string()));
        if let Err(failure) = &sent {
            span.fail(failure.as_str());
        }
        span.end();
        faults::reach("delivery_after_send");
        metrics.webhook_attempt_seconds.observe(duration.as_secs_f64());
        if let Err(failure) = &sent {
            log::debug!("{} hasn't arrived: {failure:?}", claimed.id);
        }
        let is_gone = sent.as_ref().is_ok_and(|answer| answer.status == GONE);
        let outcome = outcome_of(&claimed, sent, duration, options);
        let Some(noted) = self.note(outcome, asked + options.lease()).await else { return };
        let outcome = match noted.state {
            State::Succeeded => "succeeded",
            State::Pending => "failed",
            State::Failed => "given_up",
        };
        metrics.webhook_deliveries.with_label_values(&[outcome]).inc();
        if is_gone {
            self.disable(claimed.endpoint_key(), Duration::ZERO).await;
        } else if noted.endpoint_is_given_up {
            self.disable(claimed.endpoint_key(), options.give_up_after()).await;
        }
        drop(in_flight);
        if claimed.endpoint_is_failing && noted.state != State::Succeeded {
            // With its place taken, the endpoint has no turn. Endpoints that began to fail together spread out.
            let pause = options.failing_interval().mul_f64(rand::random_range(1.0..=1.5));
            tokio::time::sleep(pause.saturating_sub(begun.elapsed())).await;
        }
    }

    async fn send(&self, claimed: &ClaimedDelivery) -> Result<Answer, Failure> {
        let (id, body) = (claimed.event.to_string(), Message::of(claimed).into_body());
        let headers = self.headers(claimed, &id, &body);
        self.shared.client.post(&claimed.url, headers, body).await
    }

    fn headers(&self, claimed: &ClaimedDelivery, id: &str, body: &str) -> HeaderMap {
        // Receivers refuse signatures from minutes ago, or from the future.
        let timestamp = claimed.claimed_at.timestamp();
        let sign = |version, key| {
            let secret = self.shared.vault.webhook_secret(claimed.endpoint, version, key);
            let secret = secret.expect("only endpoints are claimed whose master keys are here");
            secret.sign(id, timestamp, body.as_bytes())
        };
        let mut signatures = sign(claimed.secret_version, claimed.secret_key);
        if let Some(key) = claimed.previous_secret_key.filter(|_| claimed.secret_version > 1) {
            signatures = format!("{signatures} {}", sign(claimed.secret_version - 1, key));
        }
        let text = |text: String| HeaderValue::try_from(text).expect("ids, numbers and base64 are ASCII");
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (HeaderName::from_static(signature::ID), text(id.to_owned())),
            (HeaderName::from_static(signature::TIMESTAMP), text(timestamp.to_string())),
            (HeaderName::from_static(signature::SIGNATURE), text(signatures)),
            (HeaderName::from_static(TRACEPARENT), text(claimed.trace.to_string())),
        ]);
        if let Some(state) = claimed.trace.state() {
            headers.insert(HeaderName::from_static(TRACESTATE), text(state.to_owned()));
        }
        headers
    }

    /// Stores an outcome, retrying until the lease ends: after that, another sender owns the delivery. `None`
    /// if the outcome couldn't be stored, was stored already, or belongs to another sender.
    async fn note(&self, outcome: Outcome, lease_ends_at: Instant) -> Option<AttemptEffect> {
        let Shared { db, outcomes, options, .. } = &*self.shared;
        let give_up_after = options.give_up_after();
        let mut failures = 0;
        loop {
            let noted = match outcomes.call(Party::Caller(outcome.merchant), outcome.clone()).await {
                Ok(Some(noted)) => Ok(noted),
                Ok(None) => {
                    let outcome = outcome.clone();
                    db.run_retrying(move |conn| {
                        outbox::note(conn, std::slice::from_ref(&outcome), give_up_after)
                    })
                    .await
                    .map(|noted| noted.into_iter().next().flatten())
                }
                Err(error) => Err(error),
            };
            let error = match noted {
                Ok(noted) => return noted,
                Err(error) => error,
            };
            if Instant::now() >= lease_ends_at {
                log::warn!("the outcome of {} can't be noted: {}", outcome.id, error.detailed());
                return None;
            }
            tokio::time::sleep(time::backoff(DATABASE_PAUSE, failures, DATABASE_PAUSE_MAX)).await;
            failures += 1;
        }
    }

    /// Disables an endpoint that has failed for `give_up_after`, or, after 410, that fails at all. If that fails, the
    /// next 410 or [`keep_disabling`](Self::keep_disabling) tries again.
    async fn disable(&self, endpoint: EndpointKey, give_up_after: Duration) {
        let Shared { db, metrics, .. } = &*self.shared;
        let disabled = db
            .run_retrying(move |conn| conn.transaction(|conn| outbox::disable(conn, endpoint, give_up_after)))
            .await;
        match disabled {
            Ok(true) => {
                metrics.webhook_endpoints_disabled.inc();
                let reason = if give_up_after.is_zero() {
                    "it's gone (410)"
                } else {
                    "it has taken nothing for too long"
                };
                log::warn!("{} was disabled: {reason}", endpoint.1);
            }
            Ok(false) => {}
            Err(error) => log::warn!("{} can't be disabled: {}", endpoint.1, error.detailed()),
        }
    }
}

/// The scope of an attempt.
fn scope_of(claimed: &ClaimedDelivery) -> Arc<Scope> {
    let scope = Scope::of_event(claimed.event.to_string(), claimed.trace.clone());
    scope.set_merchant(claimed.merchant);
    Arc::new(scope)
}

/// The record of an attempt, and its consequence.
fn outcome_of(
    claimed: &ClaimedDelivery,
    sent: Result<Answer, Failure>,
    duration: Duration,
    options: &Options,
) -> Outcome {
    let retry_after =
        sent.as_ref().ok().and_then(|answer| answer.retry_after).map(|wish| wish.min(PAUSE_MAX));
    let (status, error, excerpt) = match sent {
        Ok(Answer { status: status @ 300..=399, excerpt, .. }) => {
            (Some(status), Some(REDIRECTED), Some(excerpt))
        }
        Ok(Answer { status, excerpt, .. }) => (Some(status), None, Some(excerpt)),
        Err(failure) => (None, Some(failure.as_str()), None),
    };
    let attempt = json!({
        "number": claimed.number,
        "started_at": Timestamp(claimed.claimed_at),
        "duration_ms": u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        "status": status,
        "error": error,
        "response_excerpt": excerpt,
    });
    Outcome {
        merchant: claimed.merchant,
        id: claimed.id,
        number: claimed.number,
        tried_since: claimed.tried_since,
        has_succeeded: status.is_some_and(|status| (200..300).contains(&status)),
        pause: options.pause_after(claimed.number).max(retry_after.unwrap_or_default()),
        retry_after,
        attempt,
    }
}

/// A message: the same bytes with each attempt.
#[derive(Serialize)]
struct Message<'a> {
    id: EventId,
    #[serde(rename = "type")]
    kind: &'a str,
    /// Time of the event.
    timestamp: Timestamp,
    data: &'a Value,
    /// Present if `data` only names the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_omitted: Option<bool>,
}

impl<'a> Message<'a> {
    fn of(claimed: &'a ClaimedDelivery) -> Self {
        Self {
            id: claimed.event,
            kind: &claimed.kind,
            timestamp: Timestamp(claimed.event_created_at),
            data: &claimed.data,
            data_omitted: None,
        }
    }

    /// The message as JSON. A message that is too large only names its object; the receiver can fetch it with
    /// the event.
    fn into_body(self) -> String {
        let json = |message: &Message<'_>| serde_json::to_string(message).expect("it's JSON already");
        let body = json(&self);
        if body.len() <= MESSAGE_MAX {
            return body;
        }
        let data = json!({"id": self.data["id"], "object": self.data["object"]});
        json(&Message { data: &data, data_omitted: Some(true), ..self })
    }
}

/// The attempts of this instance that are under way.
#[derive(Default)]
struct Places {
    taken: Mutex<Occupancy>,
    /// Notified whenever an attempt ends.
    has_freed: Notify,
}

#[derive(Default)]
struct Occupancy {
    by_endpoint: HashMap<EndpointKey, i32>,
    all: usize,
    by_failing: usize,
    /// Endpoints with an attempt that ended since the last call of `take_freed`.
    freed: HashSet<EndpointKey>,
}

/// The place that an attempt occupies while it lives.
struct Place {
    places: Arc<Places>,
    endpoint: EndpointKey,
    endpoint_is_failing: bool,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Occupancy> {
        // Each change is atomic, so a panic elsewhere can't have left a partial one.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, options: &Options) -> Capacity {
        let taken = self.taken();
        let (all, per_endpoint) = (options.delivery_concurrency, options.delivery_concurrency_per_endpoint);
        Capacity {
            places: (all as usize).saturating_sub(taken.all),
            places_for_failing: (all.div_ceil(2) as usize).saturating_sub(taken.by_failing),
            places_per_endpoint: per_endpoint,
            places_per_merchant: options.concurrency_per_merchant(),
            in_flight: taken.by_endpoint.iter().map(|(endpoint, count)| (*endpoint, *count)).collect(),
        }
    }

    /// Whether more than half of the places are taken.
    fn are_scarce(&self, options: &Options) -> bool {
        self.taken().all * 2 > options.delivery_concurrency as usize
    }

    /// Takes the endpoints with an attempt that ended since the last call.
    fn take_freed(&self) -> Vec<EndpointKey> {
        self.taken().freed.drain().collect()
    }

    fn take(self: &Arc<Self>, endpoint: EndpointKey, endpoint_is_failing: bool) -> Place {
        let mut taken = self.taken();
        *taken.by_endpoint.entry(endpoint).or_default() += 1;
        taken.all += 1;
        taken.by_failing += usize::from(endpoint_is_failing);
        Place { places: Arc::clone(self), endpoint, endpoint_is_failing }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.by_endpoint.get_mut(&self.endpoint) {
            *count -= 1;
            if *count == 0 {
                taken.by_endpoint.remove(&self.endpoint);
            }
        }
        taken.all -= 1;
        taken.by_failing -= usize::from(self.endpoint_is_failing);
        taken.freed.insert(self.endpoint);
        drop(taken);
        self.places.has_freed.notify_one();
    }
}
