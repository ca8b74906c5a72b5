//! Secrets that the service hands out, derived rather than stored.
//!
//! A secret is shown once, in the answer that created it. A retry of that request must get the same bytes, so
//! the stored answer would have to hold the secret, which readers of the database must not find. So it holds
//! a placeholder, and the service computes the secret each time from its master key and the id of the
//! secret's object (HMAC-SHA-256, RFC 2104). The secrets that sign webhooks aren't stored either.

use std::fmt;
use std::str::FromStr;

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

/// Derives secrets.
#[derive(Clone, Debug)]
pub struct Vault {
    master_key: SecretString,
}

impl Vault {
    /// Makes a vault with this master key.
    pub fn new(master_key: SecretString) -> Self {
        Self { master_key }
    }

    /// Returns the secret for `purpose` of the object `id`, as it's shown. Always the same.
    pub fn derive(&self, purpose: Purpose, id: Uuid) -> SecretString {
        match purpose {
            // 128 bits.
            Purpose::ApiKey => hex::encode(&self.derive_bytes(purpose, id)[..16]).into(),
            Purpose::WebhookSecret { .. } => Secret::new(&self.derive_bytes(purpose, id)).reveal(),
        }
    }

    /// Returns the secret that signs messages to an endpoint.
    pub fn webhook_secret(&self, id: WebhookEndpointId, version: i32) -> Secret {
        Secret::new(&self.derive_bytes(Purpose::WebhookSecret { version }, id.0))
    }

    fn derive_bytes(&self, purpose: Purpose, id: Uuid) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.master_key.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(purpose.to_string().as_bytes());
        mac.update(&[0]);
        mac.update(id.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_depend_on_key_purpose_and_object_and_on_nothing_else() {
        let derive = |key: &str, purpose, id| {
            Vault::new(key.to_owned().into()).derive(purpose, id).expose_secret().to_owned()
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
    fn purposes_survive_being_stored() {
        for purpose in [Purpose::ApiKey, Purpose::WebhookSecret { version: 12 }] {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
        assert!("webhook_secret.".parse::<Purpose>().is_err());
        assert!("coffee".parse::<Purpose>().is_err());
    }
}
