//! Permits to use something of which there are only so many, handed to [parties in turn](super::turns).
//!
//! Promised: a permit that is given back goes to the party whose turn it is, and is never lost, whenever a
//! waiting caller gives up. Without a queue, a permit costs no more than a lock that nobody else wants.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio::sync::oneshot;

use super::party::Party;
use super::turns::{Item, Turns};
use crate::base::metrics::GaugeGuard;

/// A number of permits, and those who wait for one.
#[derive(Debug)]
pub struct Permits {
    state: Mutex<State>,
    waiting: IntGauge,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Turns<oneshot::Sender<Permit>>,
}

impl Item for oneshot::Sender<Permit> {
    fn is_wanted(&self) -> bool {
        !self.is_closed()
    }
}

impl Permits {
    /// Makes `count` permits. `waiting` shows how many callers wait for one.
    pub fn new(count: usize, waiting: IntGauge) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: count, waiting: Turns::default() }), waiting })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole, so a panic elsewhere can't have left a partial one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit, as `party`.
    pub async fn acquire(self: &Arc<Self>, party: Party) -> Permit {
        let (handed, _waiting) = {
            let mut state = self.state();
            // Nobody waits while a permit is free.
            if state.free > 0 {
                state.free -= 1;
                return Permit { permits: Some(Arc::clone(self)) };
            }
            let (hand, handed) = oneshot::channel();
            state.waiting.push(party, hand);
            (handed, GaugeGuard::new(&self.waiting))
        };
        handed.await.expect("whoever takes a sender out of the queue sends")
    }

    /// Hands a permit that isn't used any more to the next one who waits.
    fn give_back(self: Arc<Self>) {
        let mut state = self.state();
        while let Some(next) = state.waiting.pop() {
            let permit = Permit { permits: Some(Arc::clone(&self)) };
            // A permit that was sent and isn't received comes back when its channel is dropped. The receiver may be
            // gone since the queue looked.
            let Err(mut unwanted) = next.send(permit) else { return };
            unwanted.permits = None;
        }
        state.free += 1;
    }
}

/// A permit, which returns when it's dropped.
#[derive(Debug)]
pub struct Permit {
    /// `None` if the permit is void.
    permits: Option<Arc<Permits>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permits) = self.permits.take() {
            permits.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use futures_util::future::join_all;
    use uuid::Uuid;

    use super::*;
    use crate::base::ids::MerchantId;

    fn permits(count: usize) -> Arc<Permits> {
        Permits::new(count, IntGauge::new("waiting", "Waiting.").unwrap())
    }

    fn merchant(number: u128) -> Party {
        Party::Caller(MerchantId(Uuid::from_u128(number)))
    }

    #[test]
    fn a_party_with_one_request_does_not_wait_for_all_of_another_s() {
        actix_web::rt::System::new().block_on(async {
            let permits = permits(1);
            let held = permits.acquire(Party::Service).await;
            let order = Mutex::new(Vec::new());
            let work = |party: Party| {
                let (permits, order) = (&permits, &order);
                async move {
                    let _permit = permits.acquire(party).await;
                    order.lock().unwrap().push(party);
                }
            };
            let mut requests: Vec<_> = (0..50).map(|_| work(merchant(1))).collect();
            requests.push(work(merchant(2)));
            tokio::join!(join_all(requests), async move { drop(held) });
            let order = order.into_inner().unwrap();
            assert_eq!(order.iter().position(|party| *party == merchant(2)), Some(1));
            assert_eq!(permits.state().free, 1);
        });
    }

    #[test]
    fn a_permit_for_somebody_who_has_given_up_is_not_lost() {
        actix_web::rt::System::new().block_on(async {
            let permits = permits(1);
            let held = permits.acquire(merchant(1)).await;
            let brief = Duration::from_millis(5);
            assert!(tokio::time::timeout(brief, permits.acquire(merchant(1))).await.is_err());
            // Gives up after the permit was sent, before it's received.
            let mut late = Box::pin(permits.acquire(merchant(2)));
            let is_waiting = poll_fn(|context| Poll::Ready(late.as_mut().poll(context).is_pending())).await;
            assert!(is_waiting);
            drop(held);
            drop(late);
            assert_eq!(permits.state().free, 1);
            drop(permits.acquire(merchant(3)).await);
        });
    }
}
