//! Amounts of money: a decimal number together with its currency.
//!
//! Floats never touch an amount. In memory it is a [`Decimal`] with checked arithmetic, in the database a
//! `numeric`, and on the wire a decimal *string* at exactly the currency's ISO 4217 scale (`"12.50"` USD,
//! `"1250"` JPY, `"12.500"` KWD).

use std::fmt;

use rust_decimal::{Decimal, RoundingStrategy};

pub use super::currency::{Currency, MalformedCode, UnknownCurrency, Withdrawn};

/// Maximum number of integer digits in an amount: just under a trillion units.
pub const INTEGER_DIGITS_MAX: usize = 12;

/// A positive amount in a currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Money {
    amount: Decimal,
    currency: Currency,
}

/// The reason why a text isn't an amount. `Display` is a sentence for the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Sign, exponent, white space, separators, or no digits at all.
    #[error("must be a decimal string of digits with at most one point, such as \"12.50\"")]
    Syntax,
    /// More integer digits than [`INTEGER_DIGITS_MAX`].
    #[error("must have at most {INTEGER_DIGITS_MAX} digits before the decimal point")]
    TooLarge,
    /// More decimals than the currency has.
    #[error("must have at most {scale} decimals in {currency}")]
    TooManyDecimals {
        /// Decimals of the currency.
        scale: u32,
        /// The currency.
        currency: Currency,
    },
    /// Zero.
    #[error("must be greater than zero")]
    NotPositive,
}

impl Money {
    /// Parses `amount` as a client wrote it. Errors in the order checked: syntax, integer digits,
    /// decimals, zero.
    pub fn parse(amount: &str, currency: Currency) -> Result<Self, AmountError> {
        let (integer, fraction) = match amount.split_once('.') {
            Some((integer, fraction)) => (integer, Some(fraction)),
            None => (amount, None),
        };
        let is_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !is_digits(integer) || fraction.is_some_and(|f| !is_digits(f)) {
            return Err(AmountError::Syntax);
        }
        if integer.len() > INTEGER_DIGITS_MAX {
            return Err(AmountError::TooLarge);
        }
        let decimals = fraction.map_or(0, str::len);
        if decimals > currency.scale() as usize {
            return Err(AmountError::TooManyDecimals { scale: currency.scale(), currency });
        }
        let amount = Decimal::from_str_exact(amount).map_err(|_| AmountError::Syntax)?;
        if amount.is_zero() {
            return Err(AmountError::NotPositive);
        }
        Ok(Self { amount, currency })
    }

    /// Makes an amount from the database, which was checked before it was stored.
    pub fn from_stored(amount: Decimal, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// The number.
    pub fn amount(self) -> Decimal {
        self.amount
    }

    /// The currency.
    pub fn currency(self) -> Currency {
        self.currency
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.currency.format(self.amount), self.currency)
    }
}

/// An amount as a client wrote it, while the object with its currency isn't looked up yet. It's valid in some
/// currency; [`in_currency`](Self::in_currency) checks it against the object's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainAmount(String);

impl PlainAmount {
    /// Parses an amount that is valid in some currency. Errors as with [`Money::parse`].
    pub fn parse(amount: &str) -> Result<Self, AmountError> {
        Money::parse(amount, Currency::finest()).map(|_| Self(amount.to_owned()))
    }

    /// The amount in `currency`. Can only fail for too many decimals.
    pub fn in_currency(&self, currency: Currency) -> Result<Money, AmountError> {
        Money::parse(&self.0, currency)
    }
}

/// A merchant's price per capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pricing {
    /// Share of the captured amount, 0 to 1.
    pub rate: Decimal,
    /// Fixed amount added to that share, in the currency of the charge, at least 0.
    pub fixed: Decimal,
}

impl Pricing {
    /// The fee for a capture of `captured`: rate × amount + fixed, rounded half-even to the currency's scale
    /// (so that the roundings of many charges don't add up in anybody's favor), and never more than the
    /// amount. May be zero. In a currency that is only stored, it's rounded to the decimals of the amount.
    pub fn fee(self, captured: Money) -> Decimal {
        // At most 16 + 5 digits, far from the 28 that a Decimal holds.
        (self.rate * captured.amount + self.fixed)
            .round_dp_with_strategy(
                captured.currency.scale_of_share(captured.amount),
                RoundingStrategy::MidpointNearestEven,
            )
            .min(captured.amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    #[test]
    fn amounts_are_parsed_and_printed_at_the_scale_of_their_currency() {
        let cases = [
            ("12.50", "USD", Ok("12.50 USD")),
            ("12.5", "USD", Ok("12.50 USD")),
            ("12", "USD", Ok("12.00 USD")),
            ("0.01", "USD", Ok("0.01 USD")),
            ("1250", "JPY", Ok("1250 JPY")),
            ("1.005", "KWD", Ok("1.005 KWD")),
            ("999999999999.99", "USD", Ok("999999999999.99 USD")),
            ("1.005", "USD", Err(AmountError::TooManyDecimals { scale: 2, currency: currency("USD") })),
            ("1.0", "JPY", Err(AmountError::TooManyDecimals { scale: 0, currency: currency("JPY") })),
            ("1000000000000", "USD", Err(AmountError::TooLarge)),
            ("999999999999999999", "USD", Err(AmountError::TooLarge)),
            ("0", "USD", Err(AmountError::NotPositive)),
            ("0.00", "USD", Err(AmountError::NotPositive)),
        ];
        for (amount, code, expected) in cases {
            let money = Money::parse(amount, currency(code)).map(|m| m.to_string());
            assert_eq!(money, expected.map(str::to_owned), "{amount} {code}");
        }
    }

    #[test]
    fn what_is_no_plain_decimal_is_refused() {
        for text in [
            "", ".", "5.", ".5", "-1", "+1", "1e3", "1E3", "NaN", "inf", " 1", "1 ", "1,000", "1_0", "1.2.3",
            "٣", "0x1",
        ] {
            assert_eq!(Money::parse(text, currency("USD")), Err(AmountError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn fees_are_rounded_half_even_and_never_exceed_the_amount() {
        let pricing =
            |rate: &str, fixed: &str| Pricing { rate: rate.parse().unwrap(), fixed: fixed.parse().unwrap() };
        let cases = [
            ("0.029", "0.30", "12.50", "USD", "0.66"), // 0.6625
            ("0.01", "0", "0.50", "USD", "0.00"),      // 0.005: a tie goes to the even 0
            ("0.01", "0", "1.50", "USD", "0.02"),      // 0.015: a tie goes to the even 2
            ("0.01", "0", "2.50", "USD", "0.02"),      // 0.025: a tie goes to the even 2
            ("0.029", "0.30", "0.10", "USD", "0.10"),  // 0.3029, more than the amount
            ("0.029", "0", "1250", "JPY", "36"),       // 36.25
            ("0.029", "0", "1.234", "KWD", "0.036"),   // 0.035786
            ("1", "5", "3.00", "USD", "3.00"),
            ("0", "0", "3.00", "USD", "0"),
        ];
        for (rate, fixed, amount, code, expected) in cases {
            let captured = Money::parse(amount, currency(code)).unwrap();
            let expected: Decimal = expected.parse().unwrap();
            assert_eq!(pricing(rate, fixed).fee(captured), expected, "{rate} {fixed} {amount} {code}");
        }
    }

    #[test]
    fn a_fee_in_an_unknown_currency_has_no_more_decimals_than_the_amount() {
        let pricing = Pricing { rate: "0.029".parse().unwrap(), fixed: "0.30".parse().unwrap() };
        for (amount, expected) in [("12.5000", "0.7"), ("1250.0000", "37"), ("12.3456", "0.6580")] {
            let captured = Money::from_stored(amount.parse().unwrap(), Currency::stored("ZZZ").unwrap());
            assert_eq!(pricing.fee(captured), expected.parse().unwrap(), "{amount}");
        }
    }

    mod properties {
        use super::*;

        proptest::proptest! {
            #[test]
            fn amounts_are_plain_decimals_that_fit(
                text in "[0-9]{0,14}[.]?[0-9]{0,4}|[-+0-9.,eE_ ٣]{0,12}", which in 0usize..3,
            ) {
                let currency = currency(["USD", "JPY", "KWD"][which]);
                let (whole, decimals) = text.split_once('.').unwrap_or((&text, "0"));
                let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let is_positive = text.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
                let scale = if text.contains('.') { decimals.len() } else { 0 };
                let fits = whole.len() <= INTEGER_DIGITS_MAX && scale <= currency.scale() as usize;
                let is_amount = is_number(whole) && is_number(decimals) && is_positive && fits;
                let read = Money::parse(&text, currency);
                proptest::prop_assert_eq!(read.is_ok(), is_amount, "{:?}", read);
                if let Ok(money) = read {
                    // Shown at the currency's scale, it's the same amount.
                    let shown = money.to_string();
                    let shown = shown.split(' ').next().unwrap_or_default();
                    proptest::prop_assert_eq!(Money::parse(shown, currency), Ok(money));
                    proptest::prop_assert_eq!(money.amount(), text.parse::<Decimal>().unwrap());
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_fee_is_within_zero_and_the_amount_at_the_currencys_scale(
            units in 1i64..99_999_999_999, rate in 0u32..=100_000, fixed in 0u32..100_000, which in 0usize..3,
        ) {
            let currency = currency(["USD", "JPY", "KWD"][which]);
            let captured = Money::from_stored(Decimal::new(units, currency.scale()), currency);
            let pricing = Pricing { rate: Decimal::new(rate.into(), 5), fixed: Decimal::new(fixed.into(), 4) };
            let fee = pricing.fee(captured);
            proptest::prop_assert!(fee >= Decimal::ZERO && fee <= captured.amount());
            proptest::prop_assert!(fee.normalize().scale() <= currency.scale());
        }
    }
}
