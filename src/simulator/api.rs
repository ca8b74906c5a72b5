//! The simulator's API.

use std::net::TcpListener;
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Server, ServiceRequest, ServiceResponse};
use actix_web::http::header::AUTHORIZATION;
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, get, post, web};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::base::money::{Currency, Money};
use crate::storage::db::Db;

use crate::error::Failure;

use super::error::Error;
use super::faults::Call;
use super::faults::{Faults, lost_answer};
use super::operations::{self, Instruction, Operation, Order};
use super::payment_method::PaymentMethod;
use super::perform::{self, PerformResult};

/// Duration of `pm_card_slow`.
const SLOW: Duration = Duration::from_secs(2);
/// Maximum time that a stopping server waits for requests under way.
const SHUTDOWN_TIMEOUT_S: u64 = 5;
/// Maximum number of characters in a text.
const TEXT_LENGTH_MAX: usize = 255;
/// Maximum size of a body, in bytes.
const BODY_LENGTH_MAX: usize = 16 * 1024;

/// The parts that the handlers share.
pub(super) struct Bank {
    pub(super) db: Db,
    pub(super) api_key: SecretString,
    pub(super) faults: Faults,
    pub(super) decide_after: Duration,
}

/// Makes a server on `listener`, not running yet.
pub(super) fn server(bank: web::Data<Bank>, listener: TcpListener) -> Result<Server, String> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(bank.clone())
            .configure(readers)
            .wrap(from_fn(authenticate))
            .service(health)
            .service(authorize)
            .service(capture)
            .service(void)
            .service(refund)
            .service(pay_out)
            .service(find)
            .service(list)
            .default_service(web::to(|| async { Err::<HttpResponse, _>(Error::RouteNotFound) }))
    })
    .workers(2)
    .shutdown_timeout(SHUTDOWN_TIMEOUT_S)
    .disable_signals()
    .listen(listener)
    .map_err(|error| format!("Can't start the simulator: {error}."))?;
    Ok(server.run())
}

/// Configures the reading of bodies, paths and queries, and its errors.
pub(super) fn readers(config: &mut web::ServiceConfig) {
    config
        .app_data(
            web::JsonConfig::default()
                .limit(BODY_LENGTH_MAX)
                .error_handler(|error, _| Error::Invalid(error.to_string()).into()),
        )
        .app_data(
            web::QueryConfig::default().error_handler(|error, _| Error::Invalid(error.to_string()).into()),
        )
        .app_data(
            web::PathConfig::default().error_handler(|error, _| Error::Invalid(error.to_string()).into()),
        );
}

async fn authenticate(
    req: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    if req.path() != "/health" {
        let bank = req.app_data::<web::Data<Bank>>().expect("the server provides it");
        let presented = req.headers().get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let expected = format!("Bearer {}", bank.api_key.expose_secret());
        if !bool::from(presented.ct_eq(expected.as_bytes())) {
            return Err(Error::Unauthorized.into());
        }
    }
    next.call(req).await
}

#[get("/health")]
async fn health(bank: web::Data<Bank>) -> Result<HttpResponse, Error> {
    bank.db
        .run_retrying(|conn| {
            diesel::RunQueryDsl::execute(diesel::sql_query("SELECT 1"), conn).map_err(Failure::from)
        })
        .await?;
    Ok(HttpResponse::Ok().json(json!({"status": "ok"})))
}

/// The merchant and the object of an operation.
#[derive(Deserialize)]
struct Parties {
    merchant: String,
    reference: String,
}

#[derive(Deserialize)]
struct Amount {
    amount: String,
    currency: String,
}

impl Amount {
    fn money(&self) -> Result<Money, Error> {
        let currency: Currency =
            self.currency.parse().map_err(|error| Error::Invalid(format!("currency {error}.")))?;
        Money::parse(&self.amount, currency).map_err(|error| Error::Invalid(format!("amount {error}.")))
    }
}

#[derive(Deserialize)]
struct AuthorizeBody {
    #[serde(flatten)]
    amount: Amount,
    payment_method: String,
    capture_key: Option<String>,
    #[serde(flatten)]
    parties: Parties,
}

#[derive(Deserialize)]
struct AmountBody {
    #[serde(flatten)]
    amount: Amount,
    #[serde(flatten)]
    parties: Parties,
}

#[derive(Deserialize)]
struct PayoutBody {
    #[serde(flatten)]
    amount: Amount,
    destination: String,
    #[serde(flatten)]
    parties: Parties,
}

#[post("/authorizations")]
async fn authorize(
    bank: web::Data<Bank>,
    req: HttpRequest,
    body: web::Json<AuthorizeBody>,
) -> Result<HttpResponse, Error> {
    let AuthorizeBody { amount, payment_method, capture_key, parties } = body.into_inner();
    let payment_method =
        payment_method.parse().map_err(|error| Error::Invalid(format!("payment_method {error}.")))?;
    let capture_key = capture_key.map(key).transpose()?;
    let instruction = Instruction::Authorize { money: amount.money()?, payment_method, capture_key };
    perform(bank, &req, instruction, parties).await
}

#[post("/authorizations/{id}/captures")]
async fn capture(
    bank: web::Data<Bank>,
    req: HttpRequest,
    id: web::Path<String>,
    body: web::Json<AmountBody>,
) -> Result<HttpResponse, Error> {
    let AmountBody { amount, parties } = body.into_inner();
    let authorization_id = text("authorization_id", id.into_inner())?;
    perform(bank, &req, Instruction::Capture { authorization_id, money: amount.money()? }, parties).await
}

#[post("/authorizations/{id}/void")]
async fn void(
    bank: web::Data<Bank>,
    req: HttpRequest,
    id: web::Path<String>,
    body: web::Json<Parties>,
) -> Result<HttpResponse, Error> {
    let authorization_id = text("authorization_id", id.into_inner())?;
    perform(bank, &req, Instruction::Void { authorization_id }, body.into_inner()).await
}

#[post("/authorizations/{id}/refunds")]
async fn refund(
    bank: web::Data<Bank>,
    req: HttpRequest,
    id: web::Path<String>,
    body: web::Json<AmountBody>,
) -> Result<HttpResponse, Error> {
    let AmountBody { amount, parties } = body.into_inner();
    let authorization_id = text("authorization_id", id.into_inner())?;
    perform(bank, &req, Instruction::Refund { authorization_id, money: amount.money()? }, parties).await
}

#[post("/payouts")]
async fn pay_out(
    bank: web::Data<Bank>,
    req: HttpRequest,
    body: web::Json<PayoutBody>,
) -> Result<HttpResponse, Error> {
    let PayoutBody { amount, destination, parties } = body.into_inner();
    let destination = text("destination", destination)?;
    perform(bank, &req, Instruction::Payout { money: amount.money()?, destination }, parties).await
}

/// Checks that the database can hold a text.
pub(super) fn text(name: &str, text: String) -> Result<String, Error> {
    if text.is_empty() || text.chars().count() > TEXT_LENGTH_MAX || text.chars().any(char::is_control) {
        return Err(Error::Invalid(format!("{name} must have 1 to {TEXT_LENGTH_MAX} printable characters.")));
    }
    Ok(text)
}

fn idempotency_key(req: &HttpRequest) -> Result<String, Error> {
    let sent = req.headers().get("Idempotency-Key").ok_or(Error::IdempotencyKeyMissing)?;
    key(sent.to_str().unwrap_or_default().to_owned())
}

fn key(text: String) -> Result<String, Error> {
    let is_key = (1..=TEXT_LENGTH_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if is_key { Ok(text) } else { Err(Error::IdempotencyKeyInvalid) }
}

/// Number of the attempt, as the client's test header gives it. No real processor knows such a header.
fn attempt(req: &HttpRequest) -> Result<Option<u32>, Error> {
    let Some(attempt) = req.headers().get("Oncepay-Attempt") else { return Ok(None) };
    let number = attempt.to_str().ok().and_then(|attempt| attempt.parse().ok()).filter(|&number| number > 0);
    number.map(Some).ok_or_else(|| Error::Invalid("Oncepay-Attempt must be a number from 1.".to_owned()))
}

async fn perform(
    bank: web::Data<Bank>,
    req: &HttpRequest,
    instruction: Instruction,
    parties: Parties,
) -> Result<HttpResponse, Error> {
    let order = Order {
        key: idempotency_key(req)?,
        instruction,
        merchant: text("merchant", parties.merchant)?,
        reference: text("reference", parties.reference)?,
    };
    let (call, attempt, shared) = (Call::from(order.instruction.kind()), attempt(req)?, bank.clone());
    Ok(bank.faults.around(call, async move { answer(&shared, order, attempt).await }).await)
}

/// Performs an order, with the behavior of its payment method.
async fn answer(bank: &Bank, order: Order, attempt: Option<u32>) -> Result<HttpResponse, Error> {
    let payment_method = order.instruction.payment_method();
    if payment_method == Some(PaymentMethod::ErrorOnce) {
        let key = order.key.clone();
        let is_first = bank
            .db
            .run_retrying(move |conn| perform::note_failure(conn, &key).map_err(Failure::from))
            .await?;
        if attempt.map_or(is_first, |attempt| attempt == 1) {
            return Err(Error::Failed);
        }
    }
    let decide_after = bank.decide_after;
    let performed = bank.db.run_retrying(move |conn| perform::perform(conn, &order, decide_after)).await?;
    let (operation, is_replay) = match performed {
        PerformResult::New(operation) => (operation, false),
        PerformResult::Replayed(operation) => (operation, true),
        PerformResult::KeyReused => return Err(Error::IdempotencyKeyReused),
    };
    match payment_method {
        Some(PaymentMethod::Slow) if !is_replay => tokio::time::sleep(SLOW).await,
        Some(PaymentMethod::Timeout) if attempt.map_or(!is_replay, |attempt| attempt == 1) => {
            return Ok(lost_answer());
        }
        _ => {}
    }
    Ok(show(&operation, is_replay))
}

fn show(operation: &Operation, is_replay: bool) -> HttpResponse {
    let mut answer = match operation.refusal() {
        Some(refusal) => actix_web::ResponseError::error_response(&Error::Refused(refusal)),
        None if is_replay => HttpResponse::Ok().json(operation.to_json()),
        None => HttpResponse::Created().json(operation.to_json()),
    };
    if is_replay {
        let name = actix_web::http::header::HeaderName::from_static("idempotent-replayed");
        answer.headers_mut().insert(name, actix_web::http::header::HeaderValue::from_static("true"));
    }
    answer
}

#[get("/operations/by-key/{key}")]
async fn find(
    bank: web::Data<Bank>,
    req: HttpRequest,
    key: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let (key, attempt, shared) = (text("idempotency_key", key.into_inner())?, attempt(&req)?, bank.clone());
    let handle = async move {
        let found =
            shared.db.run_retrying(move |conn| operations::find(conn, &key).map_err(Failure::from)).await?;
        let operation = found.ok_or(Error::OperationNotFound)?;
        if operation.is_authorization_with(PaymentMethod::Timeout) && attempt == Some(1) {
            return Ok(lost_answer());
        }
        Ok(HttpResponse::Ok().json(operation.to_json()))
    };
    Ok(bank.faults.around(Call::Find, handle).await)
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: i64,
    #[serde(default = "Page::default_limit")]
    limit: i64,
}

impl Page {
    fn default_limit() -> i64 {
        100
    }
}

#[get("/operations")]
async fn list(bank: web::Data<Bank>, page: web::Query<Page>) -> Result<HttpResponse, Error> {
    let Page { after, limit } = page.into_inner();
    if !(1..=1000).contains(&limit) {
        return Err(Error::Invalid("limit must be 1 to 1000.".to_owned()));
    }
    let shared = bank.clone();
    let handle = async move {
        let (operations, has_more) = shared
            .db
            .run_retrying(move |conn| operations::list(conn, after, limit).map_err(Failure::from))
            .await?;
        let operations: Vec<_> = operations.iter().map(Operation::to_json).collect();
        Ok(HttpResponse::Ok().json(json!({"operations": operations, "has_more": has_more})))
    };
    Ok(bank.faults.around(Call::List, handle).await)
}
