//! Helpers for the integration tests.
//!
//! # A test
//!
//! Name a test by what it shows, as a sentence. Give it a database, start a service on that, send requests, and check what the
//! API answers and what the database holds:
//!
//! ```ignore
//! #[test]
//! fn a_retry_gets_the_first_answer_again() {
//!     let database = TestDatabase::new();
//!     let app = App::start(&database);
//!     let client = app.client.as_merchant(&database.merchant());
//!     let first = client.charge("order-1", &visa()).expect(201);
//!     let retry = client.charge("order-1", &visa()).expect(201);
//!     assert!(retry.is_replay());
//!     assert_eq!(retry.body, first.body);
//!     assert_eq!((database.rows("charges"), app.runs()), (1, 1));
//! }
//! ```
//!
//! Declare values in this order, database first: Rust drops them in reverse, and the service must end before its database. A
//! struct drops its fields in the order of their declaration, so there the database comes last.
//!
//! # Which helper for what
//!
//! | to … | take |
//! |---|---|
//! | get an empty, migrated database | [`TestDatabase::new`] |
//! | get one on a server that the test may break or restart | [`TestDatabase::on`] |
//! | get a merchant, an operator key | [`TestDatabase::merchant`], [`TestDatabase::operator_key`] |
//! | look at the data | [`TestDatabase::count`], [`TestDatabase::text`], [`TestDatabase::rows`] |
//! | act as a role | [`TestDatabase::as_app`], [`TestDatabase::as_owner`], [`TestDatabase::as_superuser`], with [`execute`] |
//! | make a key old, end a lease, change a policy | [`TestDatabase::age_key`], [`TestDatabase::end_lease`], [`App::set_policy`] |
//! | run the service in this process | [`App::start`]; with other settings [`App::start_with`] |
//! | run a second instance | [`App::start_sharing`], with the first one's `sandbox` |
//! | run the service in a process, to kill or stop it | [`Process::start`]; to read its log [`Process::start_logging`] |
//! | know why the service refuses to start | [`Process::refusal`] |
//! | run a command that goes on, and read what it says | [`running::Running`] |
//! | put PgBouncer between the service and its database | [`pooler::Pooler::start`] |
//! | have the processor answer over HTTP, and fail | [`acquirer::Acquirer::start`], [`App::start_at`] |
//! | have the processor send webhooks, too | [`App::start_with_acquirer`] |
//! | receive webhooks as a merchant does | [`acquirer::Receiver::start`] |
//! | know how often the handler ran, and what the processor was asked | [`App::runs`], `app.sandbox.calls()` |
//! | get a body for `POST /v1/charges`, a new key, a free port | [`visa`], [`with_method`], [`fresh_key`], [`free_port`] |
//!
//! # The database
//!
//! All tests of a run share one Postgres server ([`database`] says which), and each test has a database of its own, copied from
//! a migrated template. [`App::start`] connects to it as `oncepay_app`, as in production. Dropping a [`TestDatabase`] runs the
//! audit, so every test also checks the books. A test that damages the data on purpose calls [`TestDatabase::skip_audit`].
//!
//! # Requests
//!
//! [`Client`] has verbs: `get`, `charge`, `send(method, path, key, body)`. Derive a client for another caller with
//! `as_merchant`, `with_key` or `like`. `request` and `change` return a [`client::Request`], to add, repeat or remove headers
//! before `send`; `try_send` returns the error when no answer comes. `delivery` signs a webhook of the processor.
//!
//! [`Response`] has `expect(status)`, `expect_problem(status, code)`, `json`, `field`, `header`, `pointers` and `is_replay`.
//! Every answer is checked against the OpenAPI document, so a test fails when an operation answers a status, a code or a header
//! that its documentation lacks, or a body that its schema doesn't allow. [`Client::metrics`] reads counters.
//!
//! # Faults
//!
//! * **Die or stop at a point**: start a [`Process`] with `ONCEPAY_FAULT=kill:after_claim` or `stop:…`. The crate's module of
//!   fault points lists them. Then [`Process::was_killed`] or [`Process::wait_until_stopped`], and [`Process::go_on`].
//! * **A processor that fails**: [`acquirer::Acquirer::control`] sets rules (drop an answer, answer 500, answer late),
//!   [`acquirer::Acquirer::refuse`] closes its port, [`acquirer::Acquirer::stop`] ends it.
//! * **A database that is gone**: [`TestDatabase::cut_off`].
//! * **A scene**: `tests/faults/` has instances that restart by themselves, clients that retry, a proxy with bad weather, and a
//!   Postgres of the scene's own. `Scene::start(Setup::of("…"))` begins the load, `strike` plays a fault, and `finish` compares
//!   what the clients saw with what the database and the processor hold.
//!
//! # Waiting
//!
//! Never sleep for an effect: wait for it with [`eventually`], which fails after 30 seconds. Wait for a state that the test can
//! see: [`TestDatabase::lock_waits`] for a request that queues for a lock, a metric for a worker's turn, a row for an outcome.
//! Let time pass by changing rows ([`TestDatabase::age_key`], [`TestDatabase::end_lease`]) instead of waiting for a clock. Assert
//! counts and order, not durations: a busy machine is slow.
//!
//! [`App`]s don't recover unfinished requests by themselves, since most tests look at those. Set `recovery_interval_ms` where the
//! recovery worker is the subject.
//!
//! # The log
//!
//! [`log`](mod@log) watches all lines of the test process: none may show an API key, a secret, a body, or a key of
//! [`fresh_key`].

pub mod acquirer;
pub mod app;
pub mod client;
pub mod cluster;
pub mod database;
pub mod document;
pub mod log;
pub mod pooler;
pub mod running;
pub mod statements;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use app::{App, Process};
pub use client::{ACQUIRER_WEBHOOK, Client, Response};
pub use database::{Merchant, TestDatabase, execute, lock_charges, lock_rows};
pub use document::{document, mismatch, resolved_document, target};

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    eventually_or(condition, || format!("{what} didn't come about"));
}

/// The same, where only the end knows what to say of it.
pub fn eventually_or(condition: impl Fn() -> bool, complaint: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{}", complaint());
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that is free and that nobody is given who asks for any: those come from 32768 on. Each is handed out once: whoever
/// has it may be dead at the moment, and wants it back.
pub fn free_port() -> u16 {
    static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (0..1000)
        .map(|_| rand::random_range(15_000..32_000))
        // To look whether a port is free takes it for a moment, in which nobody else could have it.
        .find(|port| handed_out.insert(*port) && is_free(port))
        .expect("one of a thousand ports is free")
}

#[test]
fn no_port_is_handed_out_twice() {
    // Of so many drawn at random, some would be the same.
    let ports: Vec<u16> = (0..1_000).map(|_| free_port()).collect();
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
}

/// A charge of 12.50 USD on a card that approves.
pub fn visa() -> Value {
    with_method("pm_card_visa")
}

/// A charge of 12.50 USD with another payment method.
pub fn with_method(payment_method: &str) -> Value {
    json!({"amount": "12.50", "currency": "USD", "payment_method": payment_method})
}

/// A key that nobody has used.
pub fn fresh_key() -> String {
    format!("{}{}", log::KEY_MARK, uuid::Uuid::new_v4())
}
