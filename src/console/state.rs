//! What the pages share.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::cookie;
use secrecy::ExposeSecret;

use crate::base::derived_secrets::Vault;
use crate::base::ids::MerchantId;
use crate::config::DevelopmentKeys;
use crate::web::auth::merchant_of_key;
use crate::web::listener;

use super::seen::Live;

/// Maximum wait for an answer of the service's own API.
const API_TIMEOUT: Duration = Duration::from_secs(15);

/// What the pages need of the service beside its tables.
pub struct Console {
    /// Encrypts the cookies of sessions.
    pub cookie_key: cookie::Key,
    /// Address of the API on this machine.
    pub api: String,
    /// Asks the API.
    pub client: reqwest::Client,
    /// Keys of the development environment, if it is one.
    pub development_keys: Option<DevelopmentKeys>,
    /// Age at which the reconciliation misses what only our books have.
    pub reconcile_grace_s: u32,
    live: Live,
}

impl Console {
    /// Makes the console of a service that listens on `address`. The error is a sentence.
    pub fn new(
        vault: &Vault,
        address: SocketAddr,
        development_keys: Option<DevelopmentKeys>,
        reconcile_grace_s: u32,
    ) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .timeout(API_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // The service itself, whatever proxies the environment names.
            .no_proxy()
            .build()
            .map_err(|error| format!("Can't set up an HTTP client: {error}."))?;
        Ok(Self {
            cookie_key: cookie::Key::from(&vault.session_key()),
            api: format!("http://{}", listener::reachable(address)),
            client,
            development_keys,
            reconcile_grace_s,
            live: Live::default(),
        })
    }

    /// The merchant of the development environment, if it is one.
    pub fn development_merchant(&self) -> Option<MerchantId> {
        merchant_of_key(self.development_keys.as_ref()?.api_key.expose_secret())
    }

    /// What this instance has seen of late.
    pub fn live(&self) -> &Live {
        &self.live
    }
}
