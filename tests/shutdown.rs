//! A process that ends in the middle of its work, the way it's meant to.

use std::process::Command;
use std::sync::mpsc;
use std::thread;

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
