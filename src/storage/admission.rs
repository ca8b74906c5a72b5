//! The number of requests that may wait for the database at the same time.
//!
//! A queue that grows without a bound answers nobody in time: each request in it waits longer than its client
//! does. So requests that wouldn't be answered soon are refused at once, which costs next to nothing. While there
//! is room, anybody gets in. When it is full, only those who have less than their share do: the party that fills
//! it is refused, and not the others.
//!
//! Not promised: an exact bound. Latecomers with less than their share may add up to as many again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::metrics::Metrics;
use super::party::Party;
use crate::error::Failure;

/// The places for waiting requests.
#[derive(Debug)]
pub struct Admission {
    places_max: usize,
    taken: Mutex<Taken>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_party: HashMap<Party, usize>,
}

impl Admission {
    /// Makes `places_max` places.
    pub fn new(places_max: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { places_max, taken: Mutex::default(), metrics })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Each change is whole, so a panic elsewhere can't have left a partial one.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request of `party`. Errors: `overloaded`.
    pub fn enter(self: &Arc<Self>, party: Party) -> Result<Place, Failure> {
        let mut taken = self.taken();
        if taken.total >= self.places_max {
            let own = taken.by_party.get(&party).copied().unwrap_or_default();
            let parties = taken.by_party.len() + usize::from(own == 0);
            let has_share = own < self.places_max.div_ceil(parties);
            if !has_share || taken.total >= 2 * self.places_max {
                self.metrics.overloads.inc();
                return Err(Failure::Overloaded);
            }
        }
        taken.total += 1;
        *taken.by_party.entry(party).or_default() += 1;
        self.metrics.waiting_requests.inc();
        Ok(Place { admission: Arc::clone(self), party })
    }

    fn leave(&self, party: Party) {
        let mut taken = self.taken();
        taken.total -= 1;
        if let Some(own) = taken.by_party.get_mut(&party) {
            *own -= 1;
            if *own == 0 {
                taken.by_party.remove(&party);
            }
        }
        self.metrics.waiting_requests.dec();
    }
}

/// A place, which is free again when it's dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    party: Party,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.leave(self.party);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::base::ids::MerchantId;
    use crate::base::metrics::Registry;

    fn merchant(number: u128) -> Party {
        Party::Caller(MerchantId(Uuid::from_u128(number)))
    }

    #[test]
    fn the_party_that_fills_the_places_is_refused_and_no_other() {
        let admission = Admission::new(10, Metrics::new(&Registry::new()));
        let mut places: Vec<_> = (0..10).map(|_| admission.enter(merchant(1)).unwrap()).collect();
        assert!(matches!(admission.enter(merchant(1)), Err(Failure::Overloaded)));
        // Half of them would be theirs.
        places.extend((0..5).map(|_| admission.enter(merchant(2)).unwrap()));
        assert!(admission.enter(merchant(2)).is_err());
        assert!(admission.enter(merchant(1)).is_err());
        places.push(admission.enter(merchant(3)).unwrap());
        drop(places);
        assert_eq!(admission.taken().total, 0);
        assert!(admission.taken().by_party.is_empty());
        assert!(admission.enter(merchant(1)).is_ok());
    }

    #[test]
    fn many_parties_cannot_grow_the_queue_without_end() {
        let admission = Admission::new(10, Metrics::new(&Registry::new()));
        let places: Vec<_> = (0..1_000).filter_map(|number| admission.enter(merchant(number)).ok()).collect();
        assert_eq!(places.len(), 20);
    }
}
