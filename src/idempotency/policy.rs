//! The rules that the engine follows for an operation.

use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::base::ids::MerchantId;

use super::fingerprint::Recipe;

/// Declares a choice that is stored and shown as a word.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All words.
            pub const WORDS: &[&str] = &[$($word,)*];

            /// Word that is stored.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("must be one of {}", Self::WORDS.join(", "))),
                }
            }
        }
    };
}

choices! {
    /// Whether idempotency keys have effect.
    Enforcement {
        /// Keys are required, and each executes once.
        Enforce = "enforce",
        /// Every request is executed as if it had no key. The service counts what the engine would have done.
        Observe = "observe",
        /// Every request is executed as if it had no key.
        Off = "off",
    }
}
choices! {
    /// Treatment of a key that comes back with another request.
    OnMismatch {
        /// The request is refused.
        Reject = "reject",
        /// The request gets the answer of the first one, if that had the same method and path. A warning is
        /// logged.
        Replay = "replay",
    }
}
choices! {
    /// The form of the body that is compared.
    FingerprintKind {
        /// Its canonical JSON.
        CanonicalJson = "canonical_json",
        /// Its bytes.
        RawBody = "raw_body",
    }
}
choices! {
    /// Treatment of a key that comes back after its lifetime.
    OnExpired {
        /// The key is refused until it's forgotten.
        Reject = "reject",
        /// The key is free at once.
        Execute = "execute",
    }
}
impl FingerprintKind {
    /// The recipe of the fingerprint.
    pub fn recipe(self) -> Recipe {
        match self {
            Self::CanonicalJson => Recipe::CanonicalJson,
            Self::RawBody => Recipe::RawBody,
        }
    }
}

/// The rules by which an operation treats its idempotency keys and its callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Policy {
    /// Whether keys have effect.
    pub enforcement: Enforcement,
    /// Percentage of merchants for which `enforcement` holds. For the others the next weaker one holds
    /// (`observe` instead of `enforce`, `off` instead of `observe`). Raising the percentage never drops a
    /// merchant.
    #[schema(minimum = 0, maximum = 100, example = 100)]
    pub rollout_percent: u8,
    /// Time for which an answer is kept and replayed.
    #[schema(minimum = 60, maximum = 2_592_000, example = 86_400)]
    pub ttl_seconds: u32,
    /// Time after that for which the key is refused rather than free.
    #[schema(minimum = 0, maximum = 31_536_000, example = 2_592_000)]
    pub tombstone_seconds: u32,
    /// Treatment of a key that comes back with another request.
    pub on_mismatch: OnMismatch,
    /// The form of the body that is compared.
    pub fingerprint: FingerprintKind,
    /// Treatment of a key that comes back after its lifetime.
    pub on_expired: OnExpired,
    /// Maximum wait that a duplicate can ask for with `Prefer: wait=N`.
    #[schema(minimum = 0, maximum = 30, example = 30)]
    pub wait_max_seconds: u8,
    /// Requests per second that an instance takes from one merchant. 0: any number. Further ones are refused with
    /// `rate_limited`. A request that finds its key known, whatever its answer, counts a tenth.
    #[schema(minimum = 0, maximum = 100_000, example = 0)]
    pub rate_per_second: u32,
    /// Requests that an instance takes from one merchant at once, if that has sent none for a while. 0: as many as in a
    /// second.
    #[schema(minimum = 0, maximum = 1_000_000, example = 0)]
    pub burst: u32,
    /// Requests of one merchant that an instance has under way at the same time, including duplicates that wait. 0: any
    /// number. Further ones are refused with `rate_limited`.
    #[schema(minimum = 0, maximum = 100_000, example = 0)]
    pub concurrency_max: u32,
    /// Settings that only this operation has.
    #[serde(flatten)]
    #[schema(ignore)]
    pub own: OwnSettings,
}

impl Default for Policy {
    /// Keys are required, live for a day and are refused for another thirty days. Nothing is limited.
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Enforce,
            rollout_percent: 100,
            ttl_seconds: 24 * 60 * 60,
            tombstone_seconds: 30 * 24 * 60 * 60,
            on_mismatch: OnMismatch::Reject,
            fingerprint: FingerprintKind::CanonicalJson,
            on_expired: OnExpired::Reject,
            wait_max_seconds: 30,
            rate_per_second: 0,
            burst: 0,
            concurrency_max: 0,
            own: OwnSettings::default(),
        }
    }
}

impl Policy {
    /// Time after its answer for which a key is remembered.
    pub fn remembered(&self) -> Duration {
        Duration::from_secs(u64::from(self.ttl_seconds) + u64::from(self.tombstone_seconds))
    }

    /// The enforcement for keys of `merchant`: `enforcement`, or the next weaker one outside the rollout.
    pub fn enforcement_for(&self, merchant: MerchantId) -> Enforcement {
        if rollout_bucket(merchant) < self.rollout_percent {
            return self.enforcement;
        }
        match self.enforcement {
            Enforcement::Enforce => Enforcement::Observe,
            Enforcement::Observe | Enforcement::Off => Enforcement::Off,
        }
    }
}

/// A setting that only one operation has: its name, its possible values and its default. It's a column of
/// `idempotency_policies`.
#[derive(Clone, Copy, Debug)]
pub struct PolicySetting {
    /// Name in the API and of the column.
    pub name: &'static str,
    /// Possible values.
    pub kind: SettingKind,
    /// Default value.
    pub default: SettingValue,
    /// Meaning, for the OpenAPI document.
    pub meaning: &'static str,
}

/// The possible values of a setting.
#[derive(Clone, Copy, Debug)]
pub enum SettingKind {
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A number from the first to the second.
    Number(u32, u32),
}

/// The value of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingValue {
    /// A word.
    Word(&'static str),
    /// A number.
    Number(u32),
}

impl PolicySetting {
    /// Converts `value`, if it's a possible value of the setting.
    pub fn parse(&self, value: &serde_json::Value) -> Option<SettingValue> {
        match self.kind {
            SettingKind::Choice(words) => {
                let word = value.as_str()?;
                words.iter().find(|known| **known == word).map(|word| SettingValue::Word(word))
            }
            SettingKind::Number(least, most) => {
                let number = u32::try_from(value.as_u64()?).ok()?;
                (least..=most).contains(&number).then_some(SettingValue::Number(number))
            }
        }
    }
}

impl Serialize for SettingValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Word(word) => serializer.serialize_str(word),
            Self::Number(number) => serializer.serialize_u32(*number),
        }
    }
}

/// The values of the settings that only one operation has, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnSettings(Vec<(&'static str, SettingValue)>);

impl OwnSettings {
    /// Iterates over the values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, SettingValue)> {
        self.0.iter().copied()
    }

    /// Adds values.
    pub(super) fn extend(&mut self, values: impl IntoIterator<Item = (&'static str, SettingValue)>) {
        self.0.extend(values);
    }

    /// Sets the value of `name`, if there is such a setting.
    pub fn set(&mut self, name: &str, value: SettingValue) {
        for (known, current) in &mut self.0 {
            if *known == name {
                *current = value;
            }
        }
    }

    fn get(&self, name: &str) -> Option<SettingValue> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// The word that the setting `name` has. Empty if there is no such setting.
    pub fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            Some(SettingValue::Word(word)) => word,
            _ => "",
        }
    }

    /// The number that the setting `name` has. 0 if there is no such setting.
    pub fn number(&self, name: &str) -> u32 {
        match self.get(name) {
            Some(SettingValue::Number(number)) => number,
            _ => 0,
        }
    }
}

impl Serialize for OwnSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Position of a merchant in a rollout, 0 to 99: the same on every instance and for every operation, and
/// independent of the merchant's creation time.
fn rollout_bucket(merchant: MerchantId) -> u8 {
    let hash = Sha256::digest(merchant.0.as_bytes());
    let number = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    u8::try_from(number % 100).expect("a remainder of 100 fits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn raising_the_percentage_never_drops_a_merchant() {
        let merchants: Vec<_> = (0..2_000).map(|n| MerchantId(Uuid::from_u128(n))).collect();
        let mut before = 0;
        for percent in 0..=100 {
            let policy = Policy { rollout_percent: percent, ..Policy::default() };
            let narrower = Policy { rollout_percent: percent.saturating_sub(1), ..Policy::default() };
            let enforced =
                |policy: &Policy, merchant| policy.enforcement_for(merchant) == Enforcement::Enforce;
            assert!(merchants.iter().all(|&m| enforced(&policy, m) || !enforced(&narrower, m)));
            let count = merchants.iter().filter(|&&m| enforced(&policy, m)).count();
            assert!(count >= before);
            // Evenly spread, within what two thousand draws allow.
            assert!(count.abs_diff(usize::from(percent) * 20) < 120, "{count} at {percent} %");
            before = count;
        }
        assert_eq!(before, merchants.len());
    }

    #[test]
    fn outside_of_the_rollout_the_next_weaker_enforcement_holds() {
        let merchant = MerchantId(Uuid::nil());
        for (enforcement, outside) in [
            (Enforcement::Enforce, Enforcement::Observe),
            (Enforcement::Observe, Enforcement::Off),
            (Enforcement::Off, Enforcement::Off),
        ] {
            let policy = |rollout_percent| Policy { enforcement, rollout_percent, ..Policy::default() };
            assert_eq!(policy(100).enforcement_for(merchant), enforcement);
            assert_eq!(policy(0).enforcement_for(merchant), outside);
        }
    }
}
