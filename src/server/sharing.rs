//! Work that is done once for all who ask for it at the same time.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// Maximum pause after work.
const REST_MAX: Duration = Duration::from_millis(100);

/// The result of work that many may ask for, and that is never done by two at once. It's only done in a small part of
/// the time, however many ask, since anybody may.
#[derive(Debug)]
pub struct Shared<T> {
    /// After work, there is none for this many times as long, up to [`REST_MAX`].
    rest: u32,
    last: Mutex<Option<Done<T>>>,
}

#[derive(Debug)]
struct Done<T> {
    result: T,
    began: Instant,
    ended: Instant,
}

impl<T: Clone> Shared<T> {
    /// Work that takes one part of the time in `rest` + 1.
    pub fn new(rest: u32) -> Self {
        Self { rest, last: Mutex::default() }
    }

    /// Returns the result of work that began after the call: of `work`, or of another caller's.
    pub async fn get(&self, work: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(done) = &*last {
            if done.began >= asked {
                return done.result.clone();
            }
            let rest = (done.ended.duration_since(done.began) * self.rest).min(REST_MAX);
            tokio::time::sleep_until((done.ended + rest).into()).await;
        }
        let began = Instant::now();
        let result = work.await;
        *last = Some(Done { result: result.clone(), began, ended: Instant::now() });
        result
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;

    use super::*;

    #[test]
    fn all_who_ask_at_once_share_work_that_begins_after_they_asked() {
        actix_web::rt::System::new().block_on(async {
            let (shared, runs) = (Shared::new(10), Cell::new(0));
            let work = || async {
                let run = runs.replace(runs.get() + 1);
                tokio::time::sleep(Duration::from_millis(5)).await;
                run
            };
            assert_eq!(shared.get(work()).await, 0);
            let began = Instant::now();
            let results = join_all((0..50).map(|_| shared.get(work()))).await;
            assert_eq!(results, [1; 50]);
            assert!(began.elapsed() >= Duration::from_millis(50), "there is a pause before");
            assert_eq!(shared.get(work()).await, 2, "a later caller gets no older result");
        });
    }
}
