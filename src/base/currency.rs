//! Currencies: which ones there are, how many decimals they have, and until when they're taken.
//!
//! There are three sets, each within the next:
//!
//! * what is *in use* ([`Currency::check_in_use`]): only that is taken for new money;
//! * what is *known* (`str::parse`): in use, or withdrawn by ISO 4217. A known currency has a scale and stays known for good,
//!   so that a stored request can be read again, whenever that is;
//! * what is *stored* ([`Currency::stored`]): any three letters. Whatever an earlier or a later release has stored is shown.
//!
//! The database knows the same scales (`currency_scale`); a test compares the two.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;

/// Maximum number of decimals in a stored amount.
const SCALE_MAX: u32 = 4;

/// A currency that ISO 4217 has withdrawn.
struct WithdrawnCurrency {
    code: &'static str,
    scale: u32,
    /// The first day on which it isn't taken any more, in UTC.
    from: NaiveDate,
}

const fn withdrawn(code: &'static str, scale: u32, (year, month, day): (i32, u32, u32)) -> WithdrawnCurrency {
    let from = NaiveDate::from_ymd_opt(year, month, day).expect("a day of the calendar");
    WithdrawnCurrency { code, scale, from }
}

/// The withdrawn currencies that a release has known, by ISO 4217's list three. It gives the month; the day is that on which
/// the successor became the only one. A line here stays, so that what is stored keeps its scale.
const WITHDRAWN: [WithdrawnCurrency; 5] = [
    withdrawn("BGN", 2, (2026, 1, 1)),
    withdrawn("CUC", 2, (2021, 7, 1)),
    withdrawn("HRK", 2, (2023, 1, 1)),
    withdrawn("SLL", 2, (2024, 1, 1)),
    withdrawn("ZWL", 2, (2024, 9, 1)),
];

/// A currency, such as `USD`: known to this release, or stored by another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency {
    code: [u8; 3],
    scale: Option<u32>,
}

impl Currency {
    /// All known currencies, by their codes.
    pub fn known() -> impl Iterator<Item = Self> {
        let letters = || b'A'..=b'Z';
        let codes =
            letters().flat_map(move |a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
        codes.filter_map(|code| str::from_utf8(&code).ok()?.parse().ok())
    }

    /// Makes a currency from its stored code. An unknown one can be shown, captured, refunded and disputed like any other.
    pub fn stored(code: &str) -> Result<Self, MalformedCode> {
        if let Ok(known) = code.parse() {
            return Ok(known);
        }
        let letters = <[u8; 3]>::try_from(code.as_bytes()).map_err(|_| MalformedCode)?;
        let is_code = letters.iter().all(u8::is_ascii_uppercase);
        is_code.then_some(Self { code: letters, scale: None }).ok_or(MalformedCode)
    }

    /// Checks whether new money in this currency is taken at a time. Existing objects live on in a withdrawn currency.
    ///
    /// This depends on the time. So it's asked once, by the first claim of a request and with that claim's time by the
    /// database's clock, and not by whatever reads the request: a request that was taken before the withdrawal is finished
    /// after it, and its retries get their answer.
    pub fn check_in_use(self, at: DateTime<Utc>) -> Result<(), Withdrawn> {
        match self.withdrawn() {
            Some(withdrawn) if at.date_naive() >= withdrawn.from => Err(Withdrawn { from: withdrawn.from }),
            _ => Ok(()),
        }
    }

    /// Whether the currency is, or is going to be, withdrawn: only then need [`check_in_use`](Self::check_in_use) be asked.
    pub fn is_limited_in_time(self) -> bool {
        self.withdrawn().is_some()
    }

    fn withdrawn(self) -> Option<&'static WithdrawnCurrency> {
        WITHDRAWN.iter().find(|withdrawn| withdrawn.code == self.code())
    }

    /// Maximum number of decimals of an amount: 2 for USD, 0 for JPY, 3 for KWD; for an unknown currency as many as can be
    /// stored.
    pub fn scale(self) -> u32 {
        self.scale.unwrap_or(SCALE_MAX)
    }

    /// Number of decimals to which a share of `amount` is rounded. In an unknown currency, as many as `amount` has: those are
    /// certain to exist.
    pub(super) fn scale_of_share(self, amount: Decimal) -> u32 {
        self.scale.unwrap_or_else(|| amount.normalize().scale())
    }

    /// The three-letter code.
    pub fn code(&self) -> &str {
        str::from_utf8(&self.code).expect("three ASCII letters")
    }

    /// The currency with the most decimals: an amount that is invalid in it is invalid in any.
    pub fn finest() -> Self {
        Self { code: *b"CLF", scale: Some(SCALE_MAX) }
    }

    /// `amount` as text at this currency's scale. What has more decimals all the same, or no known scale, is shown as it's
    /// stored, without zeros at the end: an amount is never rounded to be shown.
    pub fn format(self, amount: Decimal) -> String {
        // Negating zero leaves a sign, which nobody wants to read.
        let mut amount = if amount.is_zero() { Decimal::ZERO } else { amount.normalize() };
        amount.rescale(amount.scale().max(self.scale.unwrap_or_default()));
        amount.to_string()
    }
}

/// The code doesn't name a currency for payments.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an ISO 4217 currency code in upper case, such as USD, EUR, GBP, JPY, KWD or BHD")]
pub struct UnknownCurrency;

/// A stored code isn't three letters.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored currency isn't a code of three letters")]
pub struct MalformedCode;

/// The currency was withdrawn. `Display` is a sentence for the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a currency in use, which this one has not been since {from}")]
pub struct Withdrawn {
    /// The first day on which it isn't taken.
    pub from: NaiveDate,
}

/// Parses the code of a known currency with a minor unit. Precious metals, funds without a scale and test codes can't be used
/// for payments.
impl FromStr for Currency {
    type Err = UnknownCurrency;
    fn from_str(code: &str) -> Result<Self, UnknownCurrency> {
        let listed = || {
            let listed = iso_currency::Currency::from_code(code).filter(|currency| currency.code() == code);
            listed?.exponent().map(u32::from)
        };
        let withdrawn = || WITHDRAWN.iter().find(|withdrawn| withdrawn.code == code).map(|it| it.scale);
        let scale = Some(listed().or_else(withdrawn).ok_or(UnknownCurrency)?);
        let code = code.as_bytes().try_into().map_err(|_| UnknownCurrency)?;
        Ok(Self { code, scale })
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl serde::Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(currency("USD").format(-Decimal::ZERO), "0.00");
    }

    #[test]
    fn currencies_without_a_scale_and_other_spellings_are_unknown() {
        for code in ["usd", "Usd", "US", "USDX", "", "XXX", "XAU", "XTS", "ZZZ"] {
            assert_eq!(code.parse::<Currency>(), Err(UnknownCurrency), "{code}");
        }
        for (code, scale) in [("USD", 2), ("EUR", 2), ("GBP", 2), ("JPY", 0), ("KWD", 3), ("BHD", 3)] {
            assert_eq!(currency(code).scale(), scale, "{code}");
        }
        assert_eq!(currency("CLF"), Currency::finest());
    }

    #[test]
    fn a_currency_is_in_use_until_the_day_of_its_withdrawal() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let lev = currency("BGN");
        assert_eq!(lev.check_in_use(at("2025-12-31T23:59:59.999999Z")), Ok(()));
        let refused = lev.check_in_use(at("2026-01-01T00:00:00Z")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "must be a currency in use, which this one has not been since 2026-01-01"
        );
        for code in ["HRK", "ZWL", "SLL", "CUC"] {
            assert!(currency(code).check_in_use(at("2026-01-01T00:00:00Z")).is_err(), "{code}");
            assert!(currency(code).is_limited_in_time(), "{code}");
        }
        for code in ["USD", "EUR", "ZWG", "SLE", "CUP", "VES", "VED"] {
            assert_eq!(currency(code).check_in_use(at("2100-01-01T00:00:00Z")), Ok(()), "{code}");
        }
    }

    /// A later version of the crate may mark more of them, or leave some out.
    #[test]
    fn what_the_list_of_currencies_says_is_superseded_is_withdrawn_here() {
        // ISO 4217 has both bolívares in its list one.
        let both_in_use = ["VES"];
        let letters = b'A'..=b'Z';
        for a in letters.clone() {
            for b in letters.clone() {
                for c in letters.clone() {
                    let code = String::from_utf8(vec![a, b, c]).unwrap();
                    let Some(listed) = iso_currency::Currency::from_code(&code) else { continue };
                    let is_withdrawn = WITHDRAWN.iter().any(|withdrawn| withdrawn.code == code);
                    let is_expected = listed.is_superseded().is_some() && !both_in_use.contains(&&*code);
                    assert_eq!(is_withdrawn, is_expected, "{code}");
                }
            }
        }
        for withdrawn in &WITHDRAWN {
            assert_eq!(currency(withdrawn.code).scale(), withdrawn.scale, "{}", withdrawn.code);
        }
    }

    #[test]
    fn a_stored_currency_is_shown_whether_it_is_known_or_not() {
        let amount = |text: &str| text.parse::<Decimal>().unwrap();
        for (code, stored, shown) in [
            ("HRK", "12.5000", "12.50"),
            ("ZZZ", "12.5000", "12.5"),
            ("ZZZ", "1250.0000", "1250"),
            ("ZZZ", "-0.0001", "-0.0001"),
            ("ZZZ", "0.0000", "0"),
            // From before the database knew scales.
            ("JPY", "0.5000", "0.5"),
            ("USD", "1.0050", "1.005"),
        ] {
            let currency = Currency::stored(code).unwrap();
            assert_eq!((currency.code(), currency.format(amount(stored)).as_str()), (code, shown));
        }
        assert_eq!(Currency::stored("USD"), Ok(currency("USD")));
        for code in ["", "usd", "US", "USDX", "U$D", "ÄB"] {
            assert_eq!(Currency::stored(code), Err(MalformedCode), "{code}");
        }
    }
}
