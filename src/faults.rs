//! Named points at which a test lets the process die or stop, to see what the others make of it.
//!
//! They exist in debug builds only: a release build compiles each into nothing, so that no setting can
//! turn them on in production.
//!
//! | point | what has just happened |
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

/// The points of external operations at which a process can die.
pub const EXTERNAL_POINTS: &[&str] =
    &["after_claim", "before_processor", "after_processor", "in_finish", "after_commit_before_response"];
/// The points of local operations.
pub const LOCAL_POINTS: &[&str] =
    &["local_after_claim", "local_before_commit", "local_after_commit_before_response"];

/// A point in the code. With `ONCEPAY_FAULT=kill:name` in the environment, a debug build kills itself here with
/// SIGKILL, which no destructor and no handler survives. With `stop:name` it stops itself here once, with
/// SIGSTOP, until somebody sends SIGCONT.
#[cfg(debug_assertions)]
pub fn reach(point: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::signal::{Signal, kill, raise};
    use nix::unistd::Pid;

    static FAULT: OnceLock<Option<(String, String)>> = OnceLock::new();
    static HAS_STOPPED: AtomicBool = AtomicBool::new(false);
    let fault = FAULT.get_or_init(|| {
        let fault = std::env::var("ONCEPAY_FAULT").ok()?;
        fault.split_once(':').map(|(action, name)| (action.to_owned(), name.to_owned()))
    });
    match fault {
        Some((action, name)) if name == point && action == "kill" => {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            // The signal takes effect on the way out of the system call at the latest.
            std::process::abort();
        }
        Some((action, name))
            if name == point && action == "stop" && !HAS_STOPPED.swap(true, Ordering::SeqCst) =>
        {
            // To this thread, so that it goes no further.
            let _ = raise(Signal::SIGSTOP);
        }
        _ => {}
    }
}

/// Whether the process is to die or stop at `point`.
#[cfg(debug_assertions)]
pub fn is_set(point: &str) -> bool {
    std::env::var("ONCEPAY_FAULT")
        .is_ok_and(|fault| fault.split_once(':').is_some_and(|(_, name)| name == point))
}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn is_set(_point: &str) -> bool {
    false
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_point: &str) {}
