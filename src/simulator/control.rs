//! The control port, which makes the simulator misbehave. It asks for no key, so it's on this machine only.

use std::net::TcpListener;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpResponse, HttpServer, delete, get, post, put, web};
use chrono::{DateTime, Utc};
use diesel::PgConnection;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::base::money::Currency;

use super::api::{self, Bank};
use super::decide;
use crate::error::Failure;

use super::error::Error;
use super::faults::Plan;
use super::listener::Listener;
use super::outbox::{self, Delivery, EventType};

/// Makes a server on `listener`, not running yet.
pub(super) fn server(bank: web::Data<Bank>, main: Listener, listener: TcpListener) -> Result<Server, String> {
    let main = web::Data::new(main);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(bank.clone())
            .app_data(main.clone())
            .configure(api::readers)
            .service(replace_faults)
            .service(show_faults)
            .service(remove_faults)
            .service(refuse)
            .service(send_event)
            .service(redeliver)
            .service(settle)
            .service(decide_pending)
            .default_service(web::to(|| async { Err::<HttpResponse, _>(Error::RouteNotFound) }))
    })
    .workers(1)
    .shutdown_timeout(1)
    .disable_signals()
    .listen(listener)
    .map_err(|error| format!("Can't start the simulator's control port: {error}."))?;
    Ok(server.run())
}

#[put("/control/faults")]
async fn replace_faults(bank: web::Data<Bank>, plan: web::Json<Plan>) -> Result<HttpResponse, Error> {
    plan.validate().map_err(Error::Invalid)?;
    bank.faults.replace(plan.into_inner());
    Ok(HttpResponse::Ok().json(bank.faults.plan()))
}

#[get("/control/faults")]
async fn show_faults(bank: web::Data<Bank>) -> HttpResponse {
    HttpResponse::Ok().json(bank.faults.plan())
}

#[delete("/control/faults")]
async fn remove_faults(bank: web::Data<Bank>) -> HttpResponse {
    bank.faults.replace(Plan::default());
    HttpResponse::Ok().json(bank.faults.plan())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refuse {
    for_ms: u64,
}

/// Closes the main port, and answers when it's closed.
#[post("/control/refuse")]
async fn refuse(main: web::Data<Listener>, body: web::Json<Refuse>) -> HttpResponse {
    main.refuse(Duration::from_millis(body.for_ms)).await;
    HttpResponse::Ok().json(json!({"refused_for_ms": body.for_ms}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    #[serde(rename = "type")]
    kind: EventType,
    data: Value,
}

/// Sends an event. `refund.failed` changes the simulator's own books, too, if it has that refund; the other events
/// change nothing there.
#[post("/control/events")]
async fn send_event(bank: web::Data<Bank>, event: web::Json<Event>) -> Result<HttpResponse, Error> {
    let Event { kind, data } = event.into_inner();
    let delivery = bank.faults.draw_delivery();
    let id = bank.db.run(move |conn| add_event(conn, kind, &data, delivery)).await?;
    Ok(HttpResponse::Created().json(json!({"id": id})))
}

fn add_event(
    conn: &mut PgConnection,
    kind: EventType,
    data: &Value,
    delivery: Delivery,
) -> Result<String, Failure> {
    if kind == EventType::RefundFailed
        && let (Some(merchant), Some(reference)) = (data["merchant"].as_str(), data["reference"].as_str())
        && let Some(id) = decide::fail_refund(conn, merchant, reference, data, delivery)?
    {
        return Ok(id);
    }
    Ok(outbox::add(conn, kind, data, delivery)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Redeliver {
    after: DateTime<Utc>,
}

/// Sends the events since a time again, as a processor does on request after its client has lost them.
#[post("/control/redeliveries")]
async fn redeliver(bank: web::Data<Bank>, body: web::Json<Redeliver>) -> Result<HttpResponse, Error> {
    let after = body.after;
    let events = bank.db.run(move |conn| Ok::<_, Failure>(outbox::redeliver(conn, after)?)).await?;
    Ok(HttpResponse::Ok().json(json!({"events": events})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settle {
    merchant: String,
    currency: String,
}

#[post("/control/settlements")]
async fn settle(bank: web::Data<Bank>, body: web::Json<Settle>) -> Result<HttpResponse, Error> {
    let Settle { merchant, currency } = body.into_inner();
    let merchant = api::text("merchant", merchant)?;
    let currency: Currency =
        currency.parse().map_err(|error| Error::Invalid(format!("currency {error}.")))?;
    let delivery = bank.faults.draw_delivery();
    let settled = bank.db.run(move |conn| outbox::settle(conn, &merchant, currency, delivery)).await?;
    settled.map(|settlement| HttpResponse::Created().json(settlement)).ok_or(Error::NothingToSettle)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decide {
    reference: String,
    approve: bool,
}

/// Decides a pending authorization early.
#[post("/control/decisions")]
async fn decide_pending(bank: web::Data<Bank>, body: web::Json<Decide>) -> Result<HttpResponse, Error> {
    let Decide { reference, approve } = body.into_inner();
    let shared = bank.clone();
    let decided =
        bank.db.run(move |conn| decide::decide_now(conn, &reference, approve, &shared.faults)).await?;
    if decided {
        Ok(HttpResponse::Ok().json(json!({"approved": approve})))
    } else {
        Err(Error::NothingToDecide)
    }
}
