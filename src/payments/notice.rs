//! How a notice from the processor applies to an object.
//!
//! Notices come late, more than once, and in any order. For each state of the object, the domain says whether a notice
//! changes it, repeats what is known, has come too early, or contradicts our books.

use crate::base::money::Money;
use crate::processor::EventAmount;

/// The effect of a notice on our books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoticeEffect {
    /// It changed something.
    Applied,
    /// Our books said the same already.
    AlreadyApplied,
    /// Our books say otherwise and can't be changed to that. People have to find out who is right.
    Contradicts(String),
    /// What must come before it hasn't happened here yet.
    TooEarly(String),
}

impl NoticeEffect {
    /// A contradiction: the `object` has a `status` that the notice doesn't go with.
    pub fn contradicts(object: &str, status: &str) -> Self {
        Self::Contradicts(format!("The {object} is {status}."))
    }

    /// A notice that came too early: the `object` has a `status` that comes before the one that the notice is about.
    pub fn too_early(object: &str, status: &str) -> Self {
        Self::TooEarly(format!("The {object} is {status}."))
    }

    /// A contradiction, if the notice tells an amount other than the object's.
    pub fn of_other_amount(told: Option<&EventAmount>, amount: Money) -> Option<Self> {
        match told?.of(amount) {
            Ok(told) if told == amount => None,
            Ok(told) => Some(Self::Contradicts(format!("Our amount is {amount}, and the event's {told}."))),
            Err(sentence) => Some(Self::Contradicts(sentence)),
        }
    }
}
