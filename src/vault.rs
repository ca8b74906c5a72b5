//! Secrets that we hand out, derived rather than stored.
//!
//! A secret is shown once, in the answer that created it. A retry of that request must get the same bytes, so
//! the stored answer would have to hold the secret, which nobody who reads the database should find. So it
//! holds a placeholder, and the secret is computed anew each time from the service's master key and the id of
//! what it belongs to (HMAC-SHA-256, RFC 2104).

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use uuid::Uuid;

/// Fewest characters of a master key.
pub const MASTER_KEY_LENGTH_MIN: usize = 32;

/// Derives secrets.
#[derive(Clone, Debug)]
pub struct Vault {
    master_key: SecretString,
}

impl Vault {
    /// A vault with this master key.
    pub fn new(master_key: SecretString) -> Self {
        Self { master_key }
    }

    /// The secret for `purpose` of the object `id`: 128 bits in hexadecimal. The same each time.
    pub fn derive(&self, purpose: &str, id: Uuid) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.master_key.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(id.as_bytes());
        hex::encode(&mac.finalize().into_bytes()[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_depend_on_key_purpose_and_object_and_on_nothing_else() {
        let vault = |key: &str| Vault::new(key.to_owned().into());
        let id = Uuid::now_v7();
        let secret = vault("a").derive("api_key", id);
        assert_eq!(secret.len(), 32);
        assert_eq!(secret, vault("a").derive("api_key", id));
        assert_ne!(secret, vault("b").derive("api_key", id));
        assert_ne!(secret, vault("a").derive("webhook", id));
        assert_ne!(secret, vault("a").derive("api_key", Uuid::now_v7()));
    }
}
