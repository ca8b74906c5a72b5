//! `oncepay dev` as a user runs it.

use crate::support::*;

#[test]
fn placeholder() {
    let _ = fresh_key();
}
