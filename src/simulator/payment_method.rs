//! The payment methods of the simulator, by token.

use std::fmt;
use std::str::FromStr;

/// A payment method of the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PaymentMethod {
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
    /// `pm_card_async`: neither approves nor declines until the processor decides.
    Async,
}

impl PaymentMethod {
    /// All payment methods.
    pub(super) const ALL: [Self; 7] = [
        Self::Visa,
        Self::Declined,
        Self::InsufficientFunds,
        Self::Slow,
        Self::Timeout,
        Self::ErrorOnce,
        Self::Async,
    ];

    /// Returns the token.
    pub(super) fn as_str(self) -> &'static str {
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

/// A token that names no payment method.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a known payment method; there are {}", PaymentMethod::ALL.map(PaymentMethod::as_str).join(", "))]
pub(super) struct UnknownPaymentMethod;

impl FromStr for PaymentMethod {
    type Err = UnknownPaymentMethod;
    fn from_str(token: &str) -> Result<Self, UnknownPaymentMethod> {
        Self::ALL.into_iter().find(|method| method.as_str() == token).ok_or(UnknownPaymentMethod)
    }
}

impl fmt::Display for PaymentMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
