//! Named points at which a test lets the process die or stop, to see how the others react.
//!
//! They exist in debug builds only: a release build compiles each into nothing, so that no setting can turn
//! them on in production.
//!
//! | point | state |
//! |---|---|
//! | `after_conflict` | another request was found to have claimed the key, or taken it over |
//! | `before_takeover` | a request was found abandoned; it's taken over next |
//! | `after_claim` | an external operation's claim, or its takeover, is committed |
//! | `before_processor` | nothing since; the processor is called next |
//! | `after_processor` | the processor has answered |
//! | `in_finish` | effects and answer are written, not committed |
//! | `after_commit_before_response` | they are committed; the client hasn't got its answer |
//! | `local_after_claim` | a local operation's claim is written, not committed |
//! | `local_before_commit` | effects and answer are written, not committed |
//! | `local_after_commit_before_response` | they are committed; the client hasn't got its answer |
//! | `shared_after_claim` | the claims of requests that share a transaction are written, not committed |
//! | `shared_before_commit` | so are what they reserve or change, and their answers |
//! | `delivery_before_send` | a delivery is claimed; it's sent next |
//! | `delivery_after_send` | the endpoint has answered, or not; its outcome is noted next |
//!
//! A test can also break promises, to see that its checks notice:
//!
//! | promise | broken |
//! |---|---|
//! | `claim` | a duplicate of a running request is executed, too, under a key of its own |
//!
//! It can also set the host's clock off, by `ONCEPAY_CLOCK_OFFSET_S` seconds.

use chrono::TimeDelta;

/// The points of external operations at which a process can die.
pub const EXTERNAL_POINTS: &[&str] =
    &["after_claim", "before_processor", "after_processor", "in_finish", "after_commit_before_response"];
/// The points of local operations.
pub const LOCAL_POINTS: &[&str] =
    &["local_after_claim", "local_before_commit", "local_after_commit_before_response"];

/// `ONCEPAY_FAULT` in the environment, as `action:name`.
#[cfg(debug_assertions)]
fn fault() -> Option<(&'static str, &'static str)> {
    static FAULT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    FAULT.get_or_init(|| std::env::var("ONCEPAY_FAULT").ok()).as_deref()?.split_once(':')
}

/// A point in the code. With `ONCEPAY_FAULT=kill:name` in the environment, a debug build kills itself here
/// with SIGKILL, which no destructor and no handler survives. With `stop:name` it stops itself here once,
/// with SIGSTOP, until it gets SIGCONT.
#[cfg(debug_assertions)]
pub fn reach(point: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::signal::{Signal, kill, raise};
    use nix::unistd::Pid;

    static HAS_STOPPED: AtomicBool = AtomicBool::new(false);
    match fault() {
        Some(("kill", name)) if name == point => {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            // The signal takes effect on the way out of the system call at the latest.
            std::process::abort();
        }
        Some(("stop", name)) if name == point && !HAS_STOPPED.swap(true, Ordering::SeqCst) => {
            // To this thread, so that it goes no further.
            let _ = raise(Signal::SIGSTOP);
        }
        _ => {}
    }
}

/// Whether the process should die or stop at `point`.
#[cfg(debug_assertions)]
pub fn is_set(point: &str) -> bool {
    fault().is_some_and(|(_, name)| name == point)
}

/// Whether to break a promise: in a debug build with `ONCEPAY_FAULT=break:name` in the environment.
#[cfg(debug_assertions)]
pub fn breaks(promise: &str) -> bool {
    fault() == Some(("break", promise))
}

/// Offset of the host's clock: in a debug build with `ONCEPAY_CLOCK_OFFSET_S=seconds` in the environment.
#[cfg(debug_assertions)]
pub fn clock_offset() -> TimeDelta {
    static OFFSET: std::sync::OnceLock<TimeDelta> = std::sync::OnceLock::new();
    *OFFSET.get_or_init(|| {
        let seconds = std::env::var("ONCEPAY_CLOCK_OFFSET_S").ok().and_then(|seconds| seconds.parse().ok());
        seconds.and_then(TimeDelta::try_seconds).unwrap_or_default()
    })
}

/// Does nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_point: &str) {}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn is_set(_point: &str) -> bool {
    false
}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn breaks(_promise: &str) -> bool {
    false
}

/// Zero, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn clock_offset() -> TimeDelta {
    TimeDelta::zero()
}
