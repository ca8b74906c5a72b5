//! The payment methods of the sandbox. The simulator has the same ones. To the rest of the service, a payment
//! method is an opaque token.

use std::fmt;
use std::str::FromStr;

/// A payment method of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestCard {
    /// `pm_card_visa`: approves.
    Visa,
    /// `pm_card_declined`: declines.
    Declined,
    /// `pm_card_insufficient_funds`: declines for lack of money.
    InsufficientFunds,
    /// `pm_card_slow`: approves after two seconds.
    Slow,
    /// `pm_card_timeout`: approves, but the first answer is lost.
    Timeout,
    /// `pm_card_error_once`: fails the first time without effect, then approves.
    ErrorOnce,
    /// `pm_card_async`: neither approves nor declines until the processor sends an event.
    Async,
}

impl TestCard {
    /// All payment methods.
    pub const ALL: [Self; 7] = [
        Self::Visa,
        Self::Declined,
        Self::InsufficientFunds,
        Self::Slow,
        Self::Timeout,
        Self::ErrorOnce,
        Self::Async,
    ];

    /// Checks that `token` names one of the payment methods. The error is the end of a sentence whose subject
    /// is the token.
    pub(super) fn check(token: &str) -> Result<(), String> {
        token.parse::<Self>().map(|_| ()).map_err(|error| error.to_string())
    }

    /// Returns the token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Visa => "pm_card_visa",
            Self::Declined => "pm_card_declined",
            Self::InsufficientFunds => "pm_card_insufficient_funds",
            Self::Slow => "pm_card_slow",
            Self::Timeout => "pm_card_timeout",
            Self::ErrorOnce => "pm_card_error_once",
            Self::Async => "pm_card_async",
        }
    }
}

/// A token that names no payment method of the sandbox.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a known payment method; the sandbox has {}", TestCard::ALL.map(TestCard::as_str).join(", "))]
pub struct UnknownTestCard;

impl FromStr for TestCard {
    type Err = UnknownTestCard;
    fn from_str(token: &str) -> Result<Self, UnknownTestCard> {
        Self::ALL.into_iter().find(|method| method.as_str() == token).ok_or(UnknownTestCard)
    }
}

impl fmt::Display for TestCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
