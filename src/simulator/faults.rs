//! Faults on purpose.

use std::future::Future;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use actix_web::{HttpResponse, ResponseError, web};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::outbox::Delivery;
use super::schema::Kind;

/// Maximum time that a request stays in the black hole.
const BLACK_HOLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Kinds of requests that rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Call {
    Authorize,
    Capture,
    Void,
    Refund,
    Payout,
    Find,
    List,
}

impl From<Kind> for Call {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Authorize => Self::Authorize,
            Kind::Capture => Self::Capture,
            Kind::Void => Self::Void,
            Kind::Refund => Self::Refund,
            Kind::Payout => Self::Payout,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// Waits before the request is handled.
    Delay,
    /// Takes effect and breaks the connection.
    DropAnswer,
    /// Answers 500, without effect.
    ErrorBefore,
    /// Answers 429, without effect.
    RateLimited,
    /// Takes effect and answers 500.
    ErrorAfter,
    /// Takes effect and doesn't answer.
    BlackHole,
}

/// A fault, and the conditions under which it happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    fault: Fault,
    /// Kinds of requests to which it applies. All if absent.
    kinds: Option<Vec<Call>>,
    /// Percentage of these requests.
    #[serde(default = "always")]
    percent: u8,
    /// Maximum number of times. Unlimited if absent.
    times: Option<u64>,
    /// Length of a delay.
    #[serde(default)]
    delay_ms: u64,
    /// `Retry-After` of `rate_limited`. Not sent if absent.
    retry_after_s: Option<u64>,
    /// Number of times that it has happened.
    #[serde(default, skip_deserializing)]
    hits: u64,
}

fn always() -> u8 {
    100
}

/// Faults of event deliveries.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Webhooks {
    /// Delay of each event.
    delay_ms: u64,
    /// Percentage of events that are sent twice.
    duplicate_percent: u8,
    /// Maximum random delay of each event, in addition.
    shuffle_window_ms: u64,
    /// Decision on pending authorizations.
    async_decision: AsyncDecision,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AsyncDecision {
    #[default]
    Succeeded,
    Failed,
}

/// All faults.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Plan {
    rules: Vec<Rule>,
    seed: u64,
    webhooks: Webhooks,
}

impl Plan {
    /// Checks the plan. The error is a sentence.
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.rules.iter().any(|rule| !(1..=100).contains(&rule.percent)) {
            return Err("percent must be 1 to 100.".to_owned());
        }
        if self.webhooks.duplicate_percent > 100 {
            return Err("duplicate_percent must be 0 to 100.".to_owned());
        }
        Ok(())
    }
}

/// The plan in force. The same plan and the same requests in the same order have the same faults, and so have
/// events.
pub(super) struct Faults {
    state: Mutex<State>,
}

struct State {
    plan: Plan,
    for_requests: StdRng,
    /// Separate, since the timing of events is independent.
    for_events: StdRng,
}

impl From<Plan> for State {
    fn from(plan: Plan) -> Self {
        let random = || StdRng::seed_from_u64(plan.seed);
        Self { for_requests: random(), for_events: random(), plan }
    }
}

/// The faults of one request.
#[derive(Debug, PartialEq, Eq)]
struct RequestFaults {
    delay: Duration,
    fault: Option<Fault>,
    retry_after_s: Option<u64>,
}

impl Faults {
    pub(super) fn none() -> Self {
        Self { state: Mutex::new(Plan::default().into()) }
    }

    /// Replaces the plan.
    pub(super) fn replace(&self, plan: Plan) {
        *self.state() = plan.into();
    }

    /// The plan in force, with hits.
    pub(super) fn plan(&self) -> Plan {
        self.state().plan.clone()
    }

    /// Draws the delivery of the next event.
    pub(super) fn draw_delivery(&self) -> Delivery {
        let State { plan, for_events: random, .. } = &mut *self.state();
        let webhooks = &plan.webhooks;
        let shuffled_ms = random.random_range(0..=webhooks.shuffle_window_ms);
        let is_doubled = random.random_range(0..100) < webhooks.duplicate_percent;
        Delivery {
            delay: Duration::from_millis(webhooks.delay_ms.saturating_add(shuffled_ms)),
            times: if is_doubled { 2 } else { 1 },
        }
    }

    /// True if pending authorizations are approved.
    pub(super) fn issuers_approve(&self) -> bool {
        self.state().plan.webhooks.async_decision == AsyncDecision::Succeeded
    }

    /// Answers a request with `handle`, unless a fault applies.
    pub(super) async fn around(
        &self,
        call: Call,
        handle: impl Future<Output = Result<HttpResponse, Error>> + 'static,
    ) -> HttpResponse {
        let fate = self.draw(call);
        // Runs in a task of its own: a processor that has received the request goes on, whether or not its
        // client still waits.
        let answer = actix_web::rt::spawn(async move {
            tokio::time::sleep(fate.delay).await;
            if fate.fault == Some(Fault::ErrorBefore) {
                return Error::Failed.error_response();
            }
            if fate.fault == Some(Fault::RateLimited) {
                return Error::RateLimited { retry_after_s: fate.retry_after_s }.error_response();
            }
            handle.await.unwrap_or_else(|error| error.error_response())
        })
        .await
        .unwrap_or_else(|_| Error::Failed.error_response());
        match fate.fault {
            None | Some(Fault::Delay | Fault::ErrorBefore | Fault::RateLimited) => answer,
            Some(Fault::ErrorAfter) => Error::Failed.error_response(),
            Some(Fault::DropAnswer) => lost_answer(),
            Some(Fault::BlackHole) => {
                tokio::time::sleep(BLACK_HOLE_TIMEOUT).await;
                lost_answer()
            }
        }
    }

    /// Delays add up. Of the other faults, the first that hits applies.
    fn draw(&self, call: Call) -> RequestFaults {
        let State { plan, for_requests: random, .. } = &mut *self.state();
        let mut fate = RequestFaults { delay: Duration::ZERO, fault: None, retry_after_s: None };
        for rule in &mut plan.rules {
            let is_over = rule.times.is_some_and(|times| rule.hits >= times);
            let concerns = rule.kinds.as_ref().is_none_or(|kinds| kinds.contains(&call));
            let is_shadowed = rule.fault != Fault::Delay && fate.fault.is_some();
            if is_over || !concerns || is_shadowed || random.random_range(0..100) >= rule.percent {
                continue;
            }
            rule.hits += 1;
            match rule.fault {
                Fault::Delay => {
                    fate.delay = fate.delay.saturating_add(Duration::from_millis(rule.delay_ms));
                }
                fault => {
                    fate.fault = Some(fault);
                    fate.retry_after_s = rule.retry_after_s;
                }
            }
        }
        fate
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is atomic, so a panic elsewhere can't have left a partial one.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An answer that breaks off: its body fails, and the server then closes the connection.
pub(super) fn lost_answer() -> HttpResponse {
    let broken = io::Error::new(io::ErrorKind::ConnectionAborted, "the answer is lost on purpose");
    HttpResponse::Ok().streaming(futures_util::stream::once(async { Err::<web::Bytes, _>(broken) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(plan: serde_json::Value) -> Faults {
        let faults = Faults::none();
        faults.replace(serde_json::from_value(plan).unwrap());
        faults
    }

    #[test]
    fn rules_hit_their_kinds_as_often_as_they_say() {
        let faults = faults(json!({"rules": [
            {"fault": "delay", "delay_ms": 20, "kinds": ["capture"]},
            {"fault": "drop_answer", "kinds": ["capture"], "times": 1},
            {"fault": "error_after"},
        ]}));
        let fate = |delay_ms, fault| RequestFaults {
            delay: Duration::from_millis(delay_ms),
            fault: Some(fault),
            retry_after_s: None,
        };
        assert_eq!(faults.draw(Call::Capture), fate(20, Fault::DropAnswer));
        assert_eq!(faults.draw(Call::Capture), fate(20, Fault::ErrorAfter));
        assert_eq!(faults.draw(Call::Find), fate(0, Fault::ErrorAfter));
        let hits: Vec<_> = faults.plan().rules.iter().map(|rule| rule.hits).collect();
        assert_eq!(hits, [2, 1, 2]);
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let fates = |seed: u64| {
            let faults = faults(json!({"rules": [{"fault": "error_before", "percent": 30}], "seed": seed}));
            (0..200).map(|_| faults.draw(Call::Payout).fault.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let hits = fates(7).into_iter().filter(|&hit| hit).count();
        assert!((30..90).contains(&hits), "{hits} of 200");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for plan in [
            json!({"rules": [{"fault": "delay", "percent": 0}]}),
            json!({"rules": [{"fault": "delay", "percent": 101}]}),
            json!({"webhooks": {"duplicate_percent": 101}}),
        ] {
            assert!(serde_json::from_value::<Plan>(plan.clone()).unwrap().validate().is_err(), "{plan}");
        }
        for plan in [json!({"rule": []}), json!({"rules": [{"fault": "fire"}]})] {
            assert!(serde_json::from_value::<Plan>(plan.clone()).is_err(), "{plan}");
        }
    }
}
