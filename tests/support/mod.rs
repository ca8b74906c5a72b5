//! What the tests are made of.

pub mod acquirer;
pub mod app;
pub mod client;
pub mod database;

use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use app::{App, Process};
pub use client::{ACQUIRER_WEBHOOK, Client, Response};
pub use database::{Merchant, TestDatabase, execute};

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} didn't come about");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that is free and that nobody is given who asks for any: those come from 32768 on.
pub fn free_port() -> u16 {
    (0..1000)
        .map(|_| rand::random_range(15_000..32_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of a thousand ports is free")
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
    uuid::Uuid::new_v4().to_string()
}
