//! A queue in which parties take turns.
//!
//! Promised: between two items of one party, each other party that has items gets one out. Items of one party
//! come out in the order in which they went in. Each step takes the same time, however many items there are.

use std::collections::{HashMap, VecDeque};

use super::party::Party;

/// Items of several parties.
#[derive(Debug)]
pub struct Turns<T> {
    lines: HashMap<Party, VecDeque<T>>,
    /// The parties with items, the next one first.
    order: VecDeque<Party>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { lines: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    /// Adds an item of `party`.
    pub fn push(&mut self, party: Party, item: T) {
        let line = self.lines.entry(party).or_default();
        if line.is_empty() {
            self.order.push_back(party);
        }
        line.push_back(item);
    }

    /// Takes the next item out.
    pub fn pop(&mut self) -> Option<T> {
        let party = self.order.pop_front()?;
        let line = self.lines.get_mut(&party)?;
        let item = line.pop_front();
        if line.is_empty() {
            // Merchants come and go, so none leaves anything behind.
            self.lines.remove(&party);
        } else {
            self.order.push_back(party);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::base::ids::MerchantId;

    fn merchant(number: u128) -> Party {
        Party::Caller(MerchantId(Uuid::from_u128(number)))
    }

    #[test]
    fn parties_take_turns_and_each_keeps_its_order() {
        let mut turns = Turns::default();
        for number in 0..4 {
            turns.push(merchant(1), ("many", number));
        }
        turns.push(Party::Service, ("service", 0));
        turns.push(merchant(2), ("few", 0));
        turns.push(merchant(2), ("few", 1));
        let out: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        let expected =
            [("many", 0), ("service", 0), ("few", 0), ("many", 1), ("few", 1), ("many", 2), ("many", 3)];
        assert_eq!(out, expected);
        assert!(turns.lines.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn a_party_that_comes_late_waits_for_one_item_of_each_other() {
        let mut turns = Turns::default();
        for number in 0..1_000 {
            turns.push(merchant(1), number);
            turns.push(merchant(2), number);
        }
        turns.pop();
        turns.push(merchant(3), -1);
        let position = std::iter::from_fn(|| turns.pop()).position(|item| item == -1);
        assert_eq!(position, Some(2));
    }
}
