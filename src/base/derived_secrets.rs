//! Secrets that the service hands out, derived rather than stored.
//!
//! A secret is shown once, in the answer that created it. A retry of that request must get the same bytes, so
//! the stored answer would have to hold the secret, which readers of the database must not find. So it holds
//! a placeholder, and the service computes the secret each time from its master key and the id of the
//! secret's object (HMAC-SHA-256, RFC 2104). The secrets that sign webhooks aren't stored either.
//!
//! With another master key, all these secrets would be others. So the database knows which master keys it has
//! been used with: by a check value each, from which neither the key nor any other secret can be computed, and
//! under a version (`storage::master_keys`). Whatever is derived is stored with that version. A vault derives
//! nothing until its keys have been checked, and then only for the versions of its keys: better no secret than
//! a wrong one.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use uuid::Uuid;

use crate::base::ids::WebhookEndpointId;
use crate::base::signature::Secret;

/// Minimum number of characters in a master key.
pub const MASTER_KEY_LENGTH_MIN: usize = 32;

/// Purpose of a secret. Each purpose has its own secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The secret part of an API key.
    ApiKey,
    /// The secret that signs messages to a webhook endpoint.
    WebhookSecret {
        /// Version, from 1. Each replacement of the secret increments it.
        version: i32,
    },
}

const API_KEY: &str = "api_key";
const WEBHOOK_SECRET: &str = "webhook_secret.";

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey => f.write_str(API_KEY),
            Self::WebhookSecret { version } => write!(f, "{WEBHOOK_SECRET}{version}"),
        }
    }
}

impl FromStr for Purpose {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix(WEBHOOK_SECRET) {
            Some(version) => version.parse().map(|version| Self::WebhookSecret { version }).map_err(|_| ()),
            None if text == API_KEY => Ok(Self::ApiKey),
            None => Err(()),
        }
    }
}

/// Version of a master key in this database, from 1. Whatever was derived before versions were stored has the
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MasterKeyVersion(pub i32);

impl MasterKeyVersion {
    /// The first version.
    pub const FIRST: Self = Self(1);
}

/// The versions of a vault's master keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Version of the key for new secrets.
    pub current: MasterKeyVersion,
    /// Version of the key that it replaces.
    pub previous: Option<MasterKeyVersion>,
}

/// Value that identifies a master key without revealing anything that is derived from it.
pub type CheckValue = [u8; 32];

/// Input of the check value, in place of a purpose. No purpose reads like it.
const CHECK: &str = "check_value";

/// Inputs of the two halves of the key for session cookies, in place of a purpose.
const SESSION_KEY: [&str; 2] = ["session_key.encryption", "session_key.signature"];

/// Derives secrets. All clones open together.
#[derive(Clone, Debug)]
pub struct Vault {
    keys: Arc<Keys>,
}

#[derive(Debug)]
struct Keys {
    current: SecretString,
    previous: Option<SecretString>,
    versions: OnceLock<Versions>,
}

impl Vault {
    /// Makes a vault for this master key, and for the one that it replaces. It's closed: it derives nothing
    /// until it's told its keys' versions.
    pub fn new(current: SecretString, previous: Option<SecretString>) -> Self {
        Self { keys: Arc::new(Keys { current, previous, versions: OnceLock::new() }) }
    }

    /// Makes an open vault with the first master key of a database.
    pub fn of_first(master_key: SecretString) -> Self {
        let vault = Self::new(master_key, None);
        vault.open(Versions { current: MasterKeyVersion::FIRST, previous: None });
        vault
    }

    /// Opens the vault, unless it's open.
    pub fn open(&self, versions: Versions) {
        // The first word counts: the versions of keys never change.
        let _ = self.keys.versions.set(versions);
    }

    /// Whether the vault is open.
    pub fn is_open(&self) -> bool {
        self.keys.versions.get().is_some()
    }

    /// The check values of the current key and of the one that it replaces.
    pub fn check_values(&self) -> (CheckValue, Option<CheckValue>) {
        let check = |key: &SecretString| mac(key, CHECK, Uuid::nil());
        (check(&self.keys.current), self.keys.previous.as_ref().map(check))
    }

    /// Version of the master key for new secrets. `None` while the vault is closed.
    pub fn version(&self) -> Option<MasterKeyVersion> {
        self.keys.versions.get().map(|versions| versions.current)
    }

    /// Versions of the master keys for which the vault can derive secrets.
    pub fn versions(&self) -> Vec<MasterKeyVersion> {
        let versions = self.keys.versions.get();
        versions
            .into_iter()
            .flat_map(|versions| [Some(versions.current), versions.previous])
            .flatten()
            .collect()
    }

    /// Returns the secret for `purpose` of the object `id` under a master key, as it's shown. Always the same.
    /// `None` if the vault doesn't have that key.
    pub fn derive(&self, purpose: Purpose, id: Uuid, key: MasterKeyVersion) -> Option<SecretString> {
        let bytes = mac(self.key(key)?, &purpose.to_string(), id);
        Some(match purpose {
            // 128 bits.
            Purpose::ApiKey => hex::encode(&bytes[..16]).into(),
            Purpose::WebhookSecret { .. } => Secret::new(&bytes).reveal(),
        })
    }

    /// Returns the secret that signs messages to an endpoint. `None` if the vault doesn't have that master key.
    pub fn webhook_secret(
        &self,
        id: WebhookEndpointId,
        version: i32,
        key: MasterKeyVersion,
    ) -> Option<Secret> {
        let purpose = Purpose::WebhookSecret { version };
        Some(Secret::new(&mac(self.key(key)?, &purpose.to_string(), id.0)))
    }

    /// The 64 bytes with which the console's session cookies are encrypted and signed. Not stored, and the same on all
    /// instances; with another master key, everybody signs in again.
    pub fn session_key(&self) -> [u8; 64] {
        let halves = SESSION_KEY.map(|purpose| mac(&self.keys.current, purpose, Uuid::nil()));
        halves.concat().try_into().expect("two halves of 32 bytes")
    }

    fn key(&self, version: MasterKeyVersion) -> Option<&SecretString> {
        let versions = self.keys.versions.get()?;
        if versions.current == version {
            return Some(&self.keys.current);
        }
        self.keys.previous.as_ref().filter(|_| versions.previous == Some(version))
    }
}

fn mac(key: &SecretString, purpose: &str, id: Uuid) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(purpose.as_bytes());
    mac.update(&[0]);
    mac.update(id.as_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_depend_on_key_purpose_and_object_and_on_nothing_else() {
        let derive = |key: &str, purpose, id| {
            let vault = Vault::of_first(key.to_owned().into());
            vault.derive(purpose, id, MasterKeyVersion::FIRST).unwrap().expose_secret().to_owned()
        };
        let (id, webhook) = (Uuid::now_v7(), |version| Purpose::WebhookSecret { version });
        let secret = derive("a", Purpose::ApiKey, id);
        assert_eq!(secret.len(), 32);
        assert_eq!(secret, derive("a", Purpose::ApiKey, id));
        assert_ne!(secret, derive("b", Purpose::ApiKey, id));
        assert_ne!(secret, derive("a", Purpose::ApiKey, Uuid::now_v7()));
        let secret = derive("a", webhook(1), id);
        assert_ne!(secret, derive("a", webhook(2), id));
        assert!(Secret::parse(&secret).is_ok(), "{secret}");
    }

    #[test]
    fn a_vault_derives_only_what_its_checked_keys_can() {
        let key = |name: &str| SecretString::from(name.to_owned());
        let (id, first, second) = (Uuid::now_v7(), MasterKeyVersion::FIRST, MasterKeyVersion(2));
        let derive = |vault: &Vault, version| {
            let secret = vault.derive(Purpose::ApiKey, id, version);
            secret.map(|secret| secret.expose_secret().to_owned())
        };
        let vault = Vault::new(key("b"), Some(key("a")));
        assert!(!vault.is_open() && vault.versions().is_empty());
        assert_eq!((derive(&vault, first), derive(&vault, second)), (None, None));
        vault.open(Versions { current: second, previous: Some(first) });
        assert_eq!((vault.version(), vault.versions()), (Some(second), vec![second, first]));
        assert_eq!(derive(&vault, first), derive(&Vault::of_first(key("a")), first));
        assert_eq!(derive(&vault, second), derive(&Vault::of_first(key("b")), first));
        assert_eq!(derive(&vault, MasterKeyVersion(3)), None);
    }

    #[test]
    fn a_check_value_is_no_secret_that_is_handed_out() {
        let vault = Vault::of_first("a".to_owned().into());
        let (check, previous) = vault.check_values();
        assert_eq!(previous, None);
        assert!(CHECK.parse::<Purpose>().is_err(), "no purpose has its input");
        assert_ne!(check, Vault::of_first("b".to_owned().into()).check_values().0);
    }

    #[test]
    fn purposes_survive_being_stored() {
        for purpose in [Purpose::ApiKey, Purpose::WebhookSecret { version: 12 }] {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        assert!("webhook_secret.".parse::<Purpose>().is_err());
        assert!("coffee".parse::<Purpose>().is_err());
    }
}
