//! Named points at which a test lets the process die, to see what the next one makes of it.
//!
//! They exist in debug builds only: a release build compiles each into nothing, so that no setting can
//! turn them on in production.

/// A point in the code. With `ONCEPAY_CRASH_AT=name` in the environment, a debug build kills itself
/// here with SIGKILL, which no destructor and no handler survives.
#[cfg(debug_assertions)]
pub fn reach(point: &str) {
    use std::sync::OnceLock;
    static CRASH_AT: OnceLock<Option<String>> = OnceLock::new();
    if CRASH_AT.get_or_init(|| std::env::var("ONCEPAY_CRASH_AT").ok()).as_deref() == Some(point) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
        // The signal takes effect on the way out of the system call at the latest.
        std::process::abort();
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_point: &str) {}
