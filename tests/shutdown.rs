//! A process that ends in the middle of its work, the way it's meant to.

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use oncepay::storage::db;

use crate::support::*;

/// Names the database to the process that ends.
const ENDING: &str = "ONCEPAY_TEST_ENDING";

/// What OpenSSL frees at exit is in use by whoever connects at the time; it was a segmentation fault, about one
/// in fifty times that the service was told to stop as soon as it had started.
#[test]
fn a_process_that_is_connecting_ends_well() {
    if let Ok(url) = std::env::var(ENDING) {
        let (connected, each) = mpsc::channel();
        for _ in 0..8 {
            let (url, connected) = (url.clone().into(), connected.clone());
            thread::spawn(move || while connected.send(db::connect(&url).is_ok()).is_ok() {});
        }
        assert!(each.iter().take(16).all(|is_ok| is_ok));
        std::process::exit(0);
    }
    let database = TestDatabase::new();
    for _ in 0..20 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shutdown::a_process_that_is_connecting_ends_well"])
            .env(ENDING, database::exposed(&database.app_url))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn an_instance_that_is_told_to_stop_says_so_before_it_closes() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut process = Process::start(&database, &[("ONCEPAY_SHUTDOWN_DELAY_MS", "2000")]);
    let client = process.client.as_merchant(&merchant);
    // A request under way, and a duplicate that waits for it.
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let held = "lease_expires_at = statement_timestamp() + interval '1 hour'";
    execute(&mut database.as_owner(), &format!("UPDATE idempotency_keys SET {held} WHERE key = 'k'"));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let request = client.request("POST", "/v1/charges").idempotency_key("k");
            let asked = Instant::now();
            let told = request.json(&with_method("pm_card_timeout")).header("Prefer", "wait=30").send();
            (told, asked.elapsed())
        });
        eventually("the duplicate", || client.metrics().value("oncepay_idempotency_waiters", &[]) == 1.0);
        client.get("/readyz").expect(200);
        process.signal(libc::SIGTERM);
        eventually("that it isn't ready", || client.get("/readyz").status == 503);
        let told = client.get("/readyz").expect_problem(503, "instance_stopping");
        assert!(told.header("Retry-After").is_some());
        let meanwhile = client.charge("meanwhile", &visa()).expect(201);
        assert_eq!(meanwhile.header("Connection"), Some("close"), "the next one goes elsewhere");
        let (told, waited) = waiting.join().unwrap();
        let told = told.expect_problem(409, "idempotency_request_in_progress");
        assert_eq!(told.header("Preference-Applied"), None);
        assert!(waited.as_secs() < 20, "it was told at once, after {waited:?}");
        let again = client.request("POST", "/v1/charges").idempotency_key("k");
        let again = again.json(&with_method("pm_card_timeout")).header("Prefer", "wait=30").send();
        again.expect_problem(409, "idempotency_request_in_progress");
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while !process.has_ended() {
        assert!(Instant::now() < deadline, "it doesn't end");
        thread::sleep(Duration::from_millis(20));
    }
}
