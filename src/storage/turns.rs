//! A queue in which parties take turns.
//!
//! Promised: what is [`Party::First`] comes out before all else. Between two items of another party, each other party
//! that has items gets one out. Items of one party come out in the order in which they went in. An item that nobody
//! wants any more takes no turn, and items that nobody wants make up half of a long line at most. A step takes constant
//! time, spread over all steps.

use std::collections::{HashMap, VecDeque};

use super::party::Party;

/// Something in a queue.
pub trait Item {
    /// Whether anybody still waits for it.
    fn is_wanted(&self) -> bool;
}

/// Items of several parties.
#[derive(Debug)]
pub struct Turns<T> {
    first: Line<T>,
    lines: HashMap<Party, Line<T>>,
    /// The parties with items, the next one first.
    order: VecDeque<Party>,
}

/// Items of one party.
#[derive(Debug)]
struct Line<T> {
    items: VecDeque<T>,
    /// Number of items at which unwanted ones are looked for.
    look_at: usize,
}

/// Length of a line that is never searched for unwanted items.
const SHORT: usize = 64;

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), look_at: SHORT }
    }
}

impl<T: Item> Line<T> {
    fn push(&mut self, item: T) {
        if self.items.len() >= self.look_at {
            self.items.retain(Item::is_wanted);
            self.look_at = SHORT.max(2 * self.items.len());
        }
        self.items.push_back(item);
    }

    fn pop(&mut self) -> Option<T> {
        std::iter::from_fn(|| self.items.pop_front()).find(Item::is_wanted)
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { first: Line::default(), lines: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T: Item> Turns<T> {
    /// Adds an item of `party`.
    pub fn push(&mut self, party: Party, item: T) {
        if party == Party::First {
            return self.first.push(item);
        }
        let line = self.lines.entry(party).or_insert_with(|| {
            self.order.push_back(party);
            Line::default()
        });
        line.push(item);
    }

    /// Whether nothing is in it, wanted or not.
    pub fn is_empty(&self) -> bool {
        self.first.items.is_empty() && self.lines.is_empty()
    }

    /// Takes the next item out that somebody wants.
    pub fn pop(&mut self) -> Option<T> {
        let mut next = self.first.pop();
        while next.is_none() {
            let party = self.order.pop_front()?;
            let line = self.lines.get_mut(&party)?;
            next = line.pop();
            if line.items.is_empty() {
                // Merchants come and go, so none leaves anything behind.
                self.lines.remove(&party);
            } else {
                self.order.push_back(party);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use uuid::Uuid;

    use super::*;
    use crate::base::ids::MerchantId;

    impl Item for (&str, i32) {
        fn is_wanted(&self) -> bool {
            true
        }
    }

    /// An item that can be given up.
    impl Item for Rc<Cell<bool>> {
        fn is_wanted(&self) -> bool {
            self.get()
        }
    }

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
        turns.push(Party::First, ("first", 0));
        turns.push(Party::First, ("first", 1));
        let out: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        let expected = [
            ("first", 0),
            ("first", 1),
            ("many", 0),
            ("service", 0),
            ("few", 0),
            ("many", 1),
            ("few", 1),
            ("many", 2),
            ("many", 3),
        ];
        assert_eq!(out, expected);
        assert!(turns.lines.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn a_party_that_comes_late_waits_for_one_item_of_each_other() {
        let mut turns = Turns::default();
        for number in 0..1_000 {
            turns.push(merchant(1), ("one", number));
            turns.push(merchant(2), ("other", number));
        }
        turns.pop();
        turns.push(merchant(3), ("late", 0));
        let position = std::iter::from_fn(|| turns.pop()).position(|item| item.0 == "late");
        assert_eq!(position, Some(2));
    }

    #[test]
    fn what_was_given_up_takes_no_turn_and_no_memory() {
        let mut turns = Turns::default();
        let wanted = || Rc::new(Cell::new(true));
        for _ in 0..10_000 {
            let given_up = wanted();
            turns.push(merchant(1), Rc::clone(&given_up));
            given_up.set(false);
        }
        assert!(turns.lines[&merchant(1)].items.len() <= SHORT);
        let (late, other) = (wanted(), wanted());
        turns.push(merchant(2), wanted());
        turns.push(merchant(1), Rc::clone(&late));
        turns.push(merchant(2), Rc::clone(&other));
        assert!(Rc::ptr_eq(&turns.pop().unwrap(), &late));
        turns.pop();
        assert!(Rc::ptr_eq(&turns.pop().unwrap(), &other));
        assert!(turns.pop().is_none());
    }
}
