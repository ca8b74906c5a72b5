//! Places for requests: to wait for the database, or to have a large body.
//!
//! A queue that grows without a bound answers nobody in time: each request in it waits longer than its client
//! does. And what many clients send together must not take all memory. So requests without a place are refused at
//! once, which costs next to nothing. While there is room, anybody gets in. When it is full, only those who have less
//! than their share do: the party that fills it is refused, and not the others.
//!
//! Not promised: an exact bound. Latecomers with less than their share may add up to as many again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntGauge};

use super::party::Party;
use crate::error::Failure;

/// A number of places.
#[derive(Debug)]
pub struct Admission {
    places_max: usize,
    taken: Mutex<Taken>,
    gauge: IntGauge,
    refusals: IntCounter,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_party: HashMap<Party, usize>,
}

impl Admission {
    /// Makes `places_max` places. `gauge` shows how many are taken, and `refusals` counts those who got none.
    pub fn new(places_max: usize, gauge: IntGauge, refusals: IntCounter) -> Arc<Self> {
        Arc::new(Self { places_max, taken: Mutex::default(), gauge, refusals })
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
                self.refusals.inc();
                return Err(Failure::Overloaded);
            }
        }
        taken.total += 1;
        *taken.by_party.entry(party).or_default() += 1;
        self.gauge.inc();
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
        self.gauge.dec();
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

    fn admission(places_max: usize) -> Arc<Admission> {
        let (gauge, refusals) = (IntGauge::new("taken", "Taken."), IntCounter::new("refusals", "Refusals."));
        Admission::new(places_max, gauge.unwrap(), refusals.unwrap())
    }

    fn merchant(number: u128) -> Party {
        Party::Caller(MerchantId(Uuid::from_u128(number)))
    }

    #[test]
    fn the_party_that_fills_the_places_is_refused_and_no_other() {
        let admission = admission(10);
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
        let admission = admission(10);
        let places: Vec<_> = (0..1_000).filter_map(|number| admission.enter(merchant(number)).ok()).collect();
        assert_eq!(places.len(), 20);
    }
}
