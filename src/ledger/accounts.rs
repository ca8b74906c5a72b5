//! The accounts that a merchant can have.

/// Kinds of accounts; each merchant has at most one of each per currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountKind {
    /// Asset: what the acquirer owes us.
    AcquirerClearing,
    /// Asset: what we hold.
    Bank,
    /// Liability: what we owe the merchant. Below zero only through a dispute.
    MerchantPayable,
    /// Liability: on its way to the merchant's bank.
    PayoutsInTransit,
    /// Liability: held back while a dispute is open.
    DisputesHeld,
    /// Income: our fees.
    FeeRevenue,
}

impl AccountKind {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::AcquirerClearing,
        Self::Bank,
        Self::MerchantPayable,
        Self::PayoutsInTransit,
        Self::DisputesHeld,
        Self::FeeRevenue,
    ];

    /// Its name in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AcquirerClearing => "acquirer_clearing",
            Self::Bank => "bank",
            Self::MerchantPayable => "merchant_payable",
            Self::PayoutsInTransit => "payouts_in_transit",
            Self::DisputesHeld => "disputes_held",
            Self::FeeRevenue => "fee_revenue",
        }
    }
}
