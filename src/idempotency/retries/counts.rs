//! The counts of one instance, until they are stored.

use std::array;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{BOUNDS_S, Found, bucket};

/// Counters of one operation, by what was found and by bound.
type Counters = [[AtomicU64; BOUNDS_S.len()]; Found::ALL.len()];

/// Counters of an instance.
pub struct Counts(HashMap<&'static str, Box<Counters>>);

/// A number of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Name of the operation.
    pub operation: &'static str,
    /// What the requests found under their keys.
    pub found: Found,
    /// Number of the bound of their delay, in [`BOUNDS_S`].
    pub bucket: usize,
    /// How many they are.
    pub requests: u64,
}

impl Counts {
    /// Makes counters for `operations`.
    pub fn new(operations: impl Iterator<Item = &'static str>) -> Self {
        let zeros = || Box::new(array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))));
        Self(operations.map(|operation| (operation, zeros())).collect())
    }

    /// Counts a request for `operation` under a key that was claimed before `delay`.
    pub fn count(&self, operation: &str, found: Found, delay: Duration) {
        self.add(operation, found, bucket(delay), 1);
    }

    fn add(&self, operation: &str, found: Found, bucket: usize, requests: u64) {
        if let Some(counters) = self.0.get(operation) {
            counters[found as usize][bucket].fetch_add(requests, Ordering::Relaxed);
        }
    }

    /// Takes all counts, and leaves zeros.
    pub fn take(&self) -> Vec<Count> {
        let mut taken = Vec::new();
        for (operation, counters) in &self.0 {
            for (found, counters) in Found::ALL.into_iter().zip(counters.iter()) {
                for (bucket, counter) in counters.iter().enumerate() {
                    let requests = counter.swap(0, Ordering::Relaxed);
                    if requests > 0 {
                        taken.push(Count { operation, found, bucket, requests });
                    }
                }
            }
        }
        taken
    }

    /// Puts back counts that couldn't be stored.
    pub fn put_back(&self, taken: &[Count]) {
        for count in taken {
            self.add(count.operation, count.found, count.bucket, count.requests);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_counted_once_and_what_is_put_back_is_not_lost() {
        let counts = Counts::new(["a"].into_iter());
        for delay_s in [1, 1, 86_400] {
            counts.count("a", Found::Answer, Duration::from_secs(delay_s));
        }
        counts.count("unknown", Found::Answer, Duration::ZERO);
        let taken = counts.take();
        let numbers: Vec<_> = taken.iter().map(|count| (BOUNDS_S[count.bucket], count.requests)).collect();
        assert_eq!(numbers, [(1, 2), (86_400, 1)]);
        assert!(counts.take().is_empty());
        counts.put_back(&taken);
        assert_eq!(counts.take(), taken);
    }
}
