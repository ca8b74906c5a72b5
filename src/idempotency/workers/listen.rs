//! Notifications from other instances, by Postgres's `LISTEN`: answers that requests here wait for, and
//! changed policies.
//!
//! They only speed things up. Every consumer also polls, so a lost notification costs a second at most.

use std::sync::Weak;
use std::time::Duration;

use diesel::{PgConnection, QueryResult, RunQueryDsl};
use secrecy::SecretString;

use crate::storage::db;

use crate::idempotency::engine::Inner;
use crate::idempotency::host::Host;
use crate::idempotency::store::ANSWERS_CHANNEL;

/// Channel on which the database announces changed policies.
const POLICIES_CHANNEL: &str = "oncepay_policies";

/// Poll interval of the socket while requests wait. A poll costs a system call, and nothing on the server's
/// side.
const POLL_BUSY: Duration = Duration::from_millis(20);
/// The same while no request waits.
const POLL_IDLE: Duration = Duration::from_millis(100);
/// Pause before a lost connection is reopened.
const RECONNECT: Duration = Duration::from_secs(1);

/// Starts a thread that listens on a connection of its own, until the engine is gone.
pub fn start<H: Host>(engine: Weak<Inner<H>>, url: SecretString) {
    let run = move || {
        let mut was_connected = true;
        while engine.strong_count() > 0 {
            let ended = db::connect(&url).and_then(|mut conn| {
                was_connected = true;
                listen(&mut conn, &engine).map_err(|error| error.to_string())
            });
            if let Err(error) = ended {
                // Once per outage, not once per attempt.
                if std::mem::take(&mut was_connected) {
                    log::warn!("listening for notifications was interrupted: {error}");
                }
                std::thread::sleep(RECONNECT);
            }
        }
    };
    std::thread::Builder::new()
        .name("oncepay-listen".to_owned())
        .spawn(run)
        .expect("the operating system has room for a thread");
}

fn listen<H: Host>(conn: &mut PgConnection, engine: &Weak<Inner<H>>) -> QueryResult<()> {
    for channel in [ANSWERS_CHANNEL, POLICIES_CHANNEL] {
        diesel::sql_query(format!("LISTEN {channel}")).execute(conn)?;
    }
    // Earlier notifications are missed.
    if let Some(engine) = engine.upgrade() {
        engine.waiters.look(None);
        engine.policies.changed();
    }
    loop {
        let Some(engine) = engine.upgrade() else { return Ok(()) };
        for notification in conn.notifications_iter() {
            let notification = notification?;
            match notification.channel.as_str() {
                ANSWERS_CHANNEL => engine.waiters.look(Some(&notification.payload)),
                _ => engine.policies.changed(),
            }
        }
        let pause = if engine.waiters.is_empty() { POLL_IDLE } else { POLL_BUSY };
        drop(engine);
        std::thread::sleep(pause);
    }
}
