//! The engine alone, guarding the handler of a toy domain: seats in a theater, each of which can be booked
//! once.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, test as http, web};
use diesel::connection::SimpleConnection;
use diesel::{PgConnection, RunQueryDsl, sql_query, sql_types::Text};
use futures_util::future::LocalBoxFuture;
use oncepay::base::{ids::MerchantId, metrics::Registry};
use oncepay::error::Failure;
use oncepay::idempotency::{
    Context, Descriptor, Engine, Host, HttpHost, IdempotentRequest, Identity, Input, LocalOperation,
    Operation, Recovery, Reply, Settings, Timing, metrics::Metrics,
};
use oncepay::storage::{self, db::Db};

use crate::support::*;

struct Theater;

impl Host for Theater {
    type Error = Failure;
    type Caller = ();
}

impl HttpHost for Theater {
    fn identify(&self, _: &HttpRequest, (): ()) -> LocalBoxFuture<'static, Result<Identity, Failure>> {
        Box::pin(async { Ok(Identity { merchant: MerchantId(uuid::Uuid::nil()), proof: None, actor: None }) })
    }
    fn confirm(&self, _: &HttpRequest, (): ()) -> LocalBoxFuture<'static, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
    fn request_id(&self, _: &HttpRequest) -> String {
        "req_1".to_owned()
    }
}

struct BookSeat {
    seat: String,
}

impl Operation for BookSeat {
    type Host = Theater;
    const DESCRIPTOR: Descriptor<()> = Descriptor::new("seats.book", "POST", "/seats/{seat}", ());

    fn read(input: &Input<'_, Theater>) -> Result<Self, Failure> {
        Ok(Self { seat: input.parameter("seat").into_owned() })
    }
}

impl LocalOperation for BookSeat {
    fn execute(&self, conn: &mut PgConnection, _: &Context<'_, Theater>) -> Result<Reply, Failure> {
        let booked = sql_query("INSERT INTO seats VALUES ($1) ON CONFLICT DO NOTHING")
            .bind::<Text, _>(&self.seat)
            .execute(conn)?;
        Reply::json(if booked == 1 { StatusCode::CREATED } else { StatusCode::CONFLICT }, &self.seat)
    }
}

async fn book(
    engine: web::Data<Engine<Theater>>,
    request: IdempotentRequest<BookSeat>,
) -> Result<HttpResponse, Failure> {
    engine.run_local(request).await
}

#[test]
fn a_seat_is_booked_once_however_often_the_request_is_sent() {
    let database = TestDatabase::new();
    database
        .as_owner()
        .batch_execute("CREATE TABLE seats (seat text PRIMARY KEY); GRANT ALL ON seats TO oncepay_app")
        .unwrap();
    let second = Duration::from_secs(1);
    let recovery = Recovery { interval: second, delay: second, attempts_max: 1, concurrency: 1 };
    let timing =
        Timing { request_deadline: 5 * second, lease: 5 * second, processor_timeout: second, recovery };
    let registry = Registry::new();
    actix_web::rt::System::new().block_on(async {
        let db = Db::new(&database.app_url, 2, second, storage::metrics::Metrics::new(&registry));
        let settings = Settings { timing, batch_size_max: 1 };
        let engine =
            Engine::new(db, Arc::new(Theater), settings, &[BookSeat::DESCRIPTOR], Metrics::new(&registry));
        let app = App::new().app_data(web::Data::new(engine)).route("/seats/{seat}", web::post().to(book));
        let app = http::init_service(app).await;
        for (seat, key, status, replayed) in [
            ("A1", Some("alice"), 201, Some("false")),
            ("A1", Some("alice"), 201, Some("true")),
            ("A1", Some("bob"), 409, Some("false")),
            ("A1", Some("bob"), 409, Some("true")),
            ("A2", Some("alice"), 422, None),
            ("A2", None, 400, None),
        ] {
            let mut request = http::TestRequest::post().uri(&format!("/seats/{seat}")).set_json(());
            if let Some(key) = key {
                request = request.insert_header(("Idempotency-Key", key));
            }
            let answer = http::call_service(&app, request.to_request()).await;
            let header = answer.headers().get("Idempotent-Replayed").map(|value| value.to_str().unwrap());
            assert_eq!((answer.status().as_u16(), header), (status, replayed), "{seat} for {key:?}");
        }
    });
    assert_eq!(database.rows("seats"), 1);
}
