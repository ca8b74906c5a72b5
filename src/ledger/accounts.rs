//! The accounts that a merchant can have.

/// Kinds of accounts. Each merchant has at most one of each per currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountKind {
    /// Asset: money that the processor owes us.
    AcquirerClearing,
    /// Asset: money that we hold.
    Bank,
    /// Liability: money that we owe the merchant. Below zero only through a dispute.
    MerchantPayable,
    /// Liability: money on its way to the merchant's bank.
    PayoutsInTransit,
    /// Liability: money held back while a dispute is open.
    DisputesHeld,
    /// Income: our fees.
    FeeRevenue,
}

impl AccountKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::AcquirerClearing,
        Self::Bank,
        Self::MerchantPayable,
        Self::PayoutsInTransit,
        Self::DisputesHeld,
        Self::FeeRevenue,
    ];

    /// Name in the database and in the API.
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
