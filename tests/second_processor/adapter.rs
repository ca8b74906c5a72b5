//! Crossbank's adapter: an example of the code that a new provider needs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use oncepay::base::metrics::Registry;
use oncepay::base::money::{Currency, Money};
use oncepay::base::signature::Refusal;
use oncepay::error::FieldError;
use oncepay::processor::calls::Kinds;
use oncepay::processor::metrics::Metrics;
use oncepay::processor::{
    Adapter, Asked, Authorization, Books, Breaker, CallRefusal, Change, Decline, Event, Messages, Notice,
    OperationKind, OperationStatus, Page, Processor, ProcessorCall, ProcessorError, ProcessorOperation,
    RefusalReason, calls,
};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;
use url::Url;
use url::form_urlencoded::Serializer;

use super::fake::{API_KEY, SECRET, sign};

/// Maximum difference between the time of a signature and now.
const TOLERANCE_S: u64 = 300;
/// Interval of the health check.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Makes the adapter for the Crossbank at `url`.
pub fn adapter(url: &str, request_timeout: Duration) -> Adapter {
    let client = reqwest::Client::builder()
        .connect_timeout(request_timeout)
        .timeout(request_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let metrics = Metrics::new(&Registry::new());
    let breaker = Breaker::new(metrics.processor_available);
    let client = Arc::new(CrossbankClient { client, url: url.parse().unwrap(), breaker });
    Adapter {
        processor: Arc::clone(&client) as _,
        books: Some(client),
        messages: Arc::new(CrossbankMessages),
    }
}

struct CrossbankClient {
    client: reqwest::Client,
    url: Url,
    breaker: Breaker,
}

/// An entry of Crossbank's books, as it sends it.
#[derive(Deserialize)]
struct Entry {
    entry: String,
    mark: i64,
    verb: String,
    state: String,
    denial: Option<String>,
    hold: Option<String>,
    dedupe: String,
    account: String,
    order: String,
    minor: Option<i64>,
    currency: Option<String>,
    at_ms: i64,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<Entry>,
    last: bool,
}

#[derive(Deserialize)]
struct Fault {
    fault: String,
}

impl TryFrom<Entry> for ProcessorOperation {
    type Error = ProcessorError;

    fn try_from(entry: Entry) -> Result<Self, ProcessorError> {
        let currency: Option<Currency> =
            entry.currency.as_ref().and_then(|code| code.to_uppercase().parse().ok());
        let kind = match entry.verb.as_str() {
            "hold" => OperationKind::Authorize,
            "collect" => OperationKind::Capture,
            "release" => OperationKind::Void,
            "reverse" => OperationKind::Refund,
            "transfer" => OperationKind::Payout,
            other => OperationKind::Other(other.to_owned()),
        };
        let status = match entry.state.as_str() {
            "done" => OperationStatus::Succeeded,
            "undecided" => OperationStatus::Pending,
            "denied" => {
                OperationStatus::Declined(entry.denial.as_deref().map_or_else(Decline::generic, Decline::new))
            }
            "arrived" => OperationStatus::Paid,
            "returned" => OperationStatus::Failed,
            other => OperationStatus::Other(other.to_owned()),
        };
        Ok(Self {
            id: entry.entry,
            sequence: entry.mark,
            kind,
            idempotency_key: entry.dedupe,
            status,
            authorization_id: entry.hold,
            amount: entry.minor.zip(currency).map(|(minor, currency)| Decimal::new(minor, currency.scale())),
            currency: currency.map(|currency| currency.code().to_owned()),
            merchant: entry.account,
            reference: entry.order,
            created_at: DateTime::from_timestamp_millis(entry.at_ms).ok_or(ProcessorError::AnswerLost)?,
        })
    }
}

/// Converts an amount to Crossbank's minor units: JPY has none, a KWD has a thousand fils.
fn minor(amount: Money) -> i64 {
    let scale = amount.currency().scale();
    let minor = amount.amount() * Decimal::from(10_u32.pow(scale));
    i64::try_from(minor).expect("amounts have at most 12 digits before the point")
}

fn money(amount: Money) -> Vec<(&'static str, String)> {
    vec![("minor", minor(amount).to_string()), ("currency", amount.currency().code().to_ascii_lowercase())]
}

/// It makes no difference between kinds of calls.
const KINDS: Kinds = Kinds { call: "any", find: "any" };

impl CrossbankClient {
    fn request(&self, method: reqwest::Method, path: &[&str]) -> reqwest::RequestBuilder {
        let mut url = self.url.clone();
        url.path_segments_mut().expect("it was checked").pop_if_empty().push("v2").extend(path);
        self.client.request(method, url).header("X-Api-Key", API_KEY)
    }

    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ProcessorError> {
        let result = read(request).await;
        // This provider limits all calls of an account together.
        self.breaker.record(KINDS.call, &result);
        result
    }

    async fn call(
        &self,
        call: &ProcessorCall,
        asked: Asked<'_>,
        path: &[&str],
        fields: Vec<(&'static str, String)>,
    ) -> Result<ProcessorOperation, ProcessorError> {
        let form = form(call, fields);
        let send = || {
            let request = self
                .request(reqwest::Method::POST, path)
                .header("Content-Type", "application/x-www-form-urlencoded")
                .body(form.clone());
            async { self.send::<Entry>(request).await?.try_into() }
        };
        // An adapter in production replaces its client then, so that the connection isn't used again.
        let mismatched = |error: &ProcessorError| log::error!("{error}");
        calls::once(call, &asked, &self.breaker, KINDS, mismatched, || self.find(call), send).await
    }
}

/// Makes the body of a call.
fn form(call: &ProcessorCall, fields: Vec<(&'static str, String)>) -> String {
    Serializer::new(String::new())
        .append_pair("dedupe", &call.key)
        .append_pair("account", &call.merchant.to_string())
        .append_pair("order", &call.reference)
        .extend_pairs(fields)
        .finish()
}

async fn read<T: serde::de::DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, ProcessorError> {
    let answer = request.send().await.map_err(|error| match error.is_connect() {
        true => ProcessorError::Unreachable,
        false => ProcessorError::AnswerLost,
    })?;
    let retry_after = answer.headers().get("Retry-After").and_then(|value| value.to_str().ok());
    if let Some(busy) = ProcessorError::busy(answer.status().as_u16(), retry_after) {
        return Err(busy);
    }
    match answer.status() {
        status if status.is_success() => answer.json().await.map_err(|_| ProcessorError::AnswerLost),
        status if status.is_client_error() => {
            let Fault { fault } = answer.json().await.map_err(|_| ProcessorError::AnswerLost)?;
            Err(match fault.as_str() {
                "no_such_entry" | "no_such_path" | "dedupe_reused" => {
                    ProcessorError::Rejected { code: fault }
                }
                "no_such_hold" => {
                    ProcessorError::Refused(CallRefusal::new(&fault, RefusalReason::NothingHeld))
                }
                _ => ProcessorError::Refused(CallRefusal::new(&fault, RefusalReason::Other)),
            })
        }
        _ => Err(ProcessorError::Failed),
    }
}

#[async_trait]
impl Processor for CrossbankClient {
    fn check_payment_method(&self, token: &str) -> Result<(), String> {
        match token.starts_with("src_") {
            true => Ok(()),
            false => Err("must be a source of Crossbank (src_…)".to_owned()),
        }
    }

    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &str,
        capture: Option<&ProcessorCall>,
    ) -> Result<Authorization, ProcessorError> {
        let mut fields = money(amount);
        fields.push(("source", payment_method.to_owned()));
        fields.extend(capture.map(|capture| ("collect_dedupe", capture.key.clone())));
        let asked = Asked::to(OperationKind::Authorize).of(amount);
        self.call(call, asked, &["holds"], fields).await?.into_authorization(amount)
    }

    async fn capture(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        let asked = Asked::to(OperationKind::Capture).of(amount).on(authorization_id);
        self.call(call, asked, &["holds", authorization_id, "collect"], money(amount)).await?.into_done()
    }

    async fn void(&self, call: &ProcessorCall, authorization_id: &str) -> Result<(), ProcessorError> {
        let asked = Asked::to(OperationKind::Void).on(authorization_id);
        self.call(call, asked, &["holds", authorization_id, "release"], Vec::new()).await?.into_done()
    }

    async fn refund(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        let asked = Asked::to(OperationKind::Refund).of(amount).on(authorization_id);
        self.call(call, asked, &["holds", authorization_id, "reverse"], money(amount)).await?.into_done()
    }

    async fn payout(
        &self,
        call: &ProcessorCall,
        amount: Money,
        destination: &str,
    ) -> Result<(), ProcessorError> {
        let mut fields = money(amount);
        fields.push(("to", destination.to_owned()));
        let asked = Asked::to(OperationKind::Payout).of(amount);
        self.call(call, asked, &["transfers"], fields).await?.into_done()
    }

    async fn find(&self, call: &ProcessorCall) -> Result<Option<ProcessorOperation>, ProcessorError> {
        let request = self.request(reqwest::Method::GET, &["entries", &call.key]);
        match self.send::<Entry>(request).await {
            Ok(entry) => entry.try_into().map(Some),
            Err(ProcessorError::Rejected { code }) if code == "no_such_entry" => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_available(&self) -> bool {
        !self.breaker.is_open()
    }

    async fn watch(&self) {
        let is_healthy = || {
            let asked = self.request(reqwest::Method::GET, &["ping"]).send();
            async { asked.await.is_ok_and(|answer| answer.status().is_success()) }
        };
        self.breaker.watch(PROBE_INTERVAL, is_healthy).await;
    }
}

#[async_trait]
impl Books for CrossbankClient {
    async fn operations(&self, after: i64, limit: usize) -> Result<Page, ProcessorError> {
        let mut url = self.url.join("/v2/entries").unwrap();
        url.query_pairs_mut()
            .append_pair("newer_than", &after.to_string())
            .append_pair("max", &limit.to_string());
        let Entries { entries, last } = self.send(self.client.get(url).header("X-Api-Key", API_KEY)).await?;
        let operations = entries.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Page { operations, has_more: !last })
    }
}

/// Crossbank's messages, signed in one header, with the id of the event in the body.
pub struct CrossbankMessages;

/// Types of events that are read into a notice.
const TYPES: [&str; 10] = [
    "hold.approved",
    "hold.collected",
    "hold.denied",
    "reversal.bounced",
    "transfer.arrived",
    "transfer.returned",
    "remittance.sent",
    "chargeback.opened",
    "chargeback.dropped",
    "chargeback.upheld",
];

const MALFORMED: Refusal = Refusal::Malformed("has no `crossbank-signature` that can be read");

impl Messages for CrossbankMessages {
    fn verify<'a>(
        &self,
        header: &dyn Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<String, Refusal> {
        let signature = header("crossbank-signature").ok_or(MALFORMED)?;
        let part = |name: &str| signature.split(',').find_map(|part| part.strip_prefix(name));
        let (at, sent) = part("t=").zip(part("v1=")).ok_or(MALFORMED)?;
        let seconds: i64 = at.parse().map_err(|_| MALFORMED)?;
        if now.timestamp().abs_diff(seconds) > TOLERANCE_S {
            return Err(Refusal::OutOfTime);
        }
        if !bool::from(sign(SECRET, at, body).as_bytes().ct_eq(sent.as_bytes())) {
            return Err(Refusal::Forged);
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let id = body["event"]["id"].as_str().filter(|id| !id.is_empty());
        id.map(str::to_owned).ok_or(Refusal::Malformed("has no `event.id`"))
    }

    fn read(&self, body: &Map<String, Value>) -> Result<Event, Vec<FieldError>> {
        let mut errors = Vec::new();
        let name = text(body.get("event").unwrap_or(&Value::Null), "/event", "name", &mut errors);
        let kind = name.unwrap_or_default();
        let notice = TYPES
            .contains(&kind)
            .then(|| read_notice(kind, body.get("subject").unwrap_or(&Value::Null), &mut errors));
        if errors.is_empty() {
            Ok(Event { kind: kind.to_owned(), notice: notice.flatten(), occurred_at: None })
        } else {
            Err(errors)
        }
    }

    fn types(&self) -> &'static [&'static str] {
        &TYPES
    }
}

/// Takes a text. Records an error if it's missing.
fn text<'a>(of: &'a Value, at: &str, name: &str, errors: &mut Vec<FieldError>) -> Option<&'a str> {
    let text = of[name].as_str().filter(|text| (1..=100).contains(&text.len()));
    if text.is_none() {
        let detail = "must be a text of 1 to 100 bytes".to_owned();
        errors.push(FieldError { pointer: format!("{at}/{name}"), detail });
    }
    text
}

/// Takes the id of one of our objects. Records an error if there is none.
fn id<T: std::str::FromStr>(of: &Value, name: &str, errors: &mut Vec<FieldError>) -> Option<T> {
    let id = text(of, "/subject", name, errors)?.parse().ok();
    if id.is_none() {
        let detail = "must be the id of an object of Oncepay".to_owned();
        errors.push(FieldError { pointer: format!("/subject/{name}"), detail });
    }
    id
}

fn read_notice(kind: &str, subject: &Value, errors: &mut Vec<FieldError>) -> Option<Notice> {
    let merchant = id(subject, "account", errors);
    let change = match kind {
        "hold.approved" | "hold.collected" => {
            id(subject, "order", errors).map(|id| Change::ChargeSucceeded(id, None))
        }
        "hold.denied" => {
            let decline = subject["denial"].as_str().map_or_else(Decline::generic, Decline::new);
            id(subject, "order", errors).map(|id| Change::ChargeFailed(id, decline))
        }
        "reversal.bounced" => id(subject, "order", errors).map(|id| Change::RefundFailed(id, None)),
        "transfer.arrived" => id(subject, "order", errors).map(|id| Change::PayoutPaid(id, None)),
        "transfer.returned" => id(subject, "order", errors).map(|id| Change::PayoutFailed(id, None)),
        "remittance.sent" => {
            let currency: Option<Currency> = text(subject, "/subject", "currency", errors)
                .and_then(|code| code.to_uppercase().parse().ok());
            let minor = subject["minor"].as_i64().filter(|minor| *minor > 0);
            if minor.is_none() {
                let detail = "must be a positive integer".to_owned();
                errors.push(FieldError { pointer: "/subject/minor".to_owned(), detail });
            }
            let money = currency
                .zip(minor)
                .map(|(currency, minor)| Money::from_stored(Decimal::new(minor, currency.scale()), currency));
            id(subject, "remittance", errors).zip(money).map(|(id, money)| Change::SettlementPaid(id, money))
        }
        _ => {
            let charge_id = id(subject, "order", errors);
            let dispute = text(subject, "/subject", "case", errors).map(str::to_owned);
            charge_id.zip(dispute).map(|(charge_id, dispute)| match kind {
                "chargeback.dropped" => Change::DisputeWon { charge_id, dispute },
                "chargeback.upheld" => Change::DisputeLost { charge_id, dispute },
                _ => {
                    let reason = subject["story"].as_str().map(str::to_owned);
                    Change::DisputeOpened { charge_id, dispute, amount: None, reason }
                }
            })
        }
    };
    Some(Notice { merchant: merchant?, change: change? })
}
