//! What the pages share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use actix_web::cookie;

use crate::base::derived_secrets::Vault;
use crate::config::DevelopmentKeys;

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
    live: Live,
}

impl Console {
    /// Makes the console of a service that listens on `address`. The error is a sentence.
    pub fn new(
        vault: &Vault,
        address: SocketAddr,
        development_keys: Option<DevelopmentKeys>,
    ) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .timeout(API_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // The service itself, whatever proxies the environment names.
            .no_proxy()
            .build()
            .map_err(|error| format!("Can't set up an HTTP client: {error}."))?;
        let ip = match address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Ok(Self {
            cookie_key: cookie::Key::from(&vault.session_key()),
            api: format!("http://{}", SocketAddr::new(ip, address.port())),
            client,
            development_keys,
            live: Live::default(),
        })
    }

    /// What this instance has seen of late.
    pub fn live(&self) -> &Live {
        &self.live
    }
}
