//! A port that is bound before its server starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// A port that a server will serve on.
pub struct Listener {
    listener: TcpListener,
}

impl Listener {
    /// Binds the port. The error is a sentence that names the setting of the address.
    pub fn new(listen: SocketAddr, setting: &str) -> Result<Self, String> {
        let listener = TcpListener::bind(listen).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "Port {} is taken by another program. Stop that one, or choose another port with {setting}.",
                listen.port()
            ),
            _ => format!("Can't listen on {listen}: {error}. Choose another port with {setting}."),
        })?;
        Ok(Self { listener })
    }

    /// Address of the server.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// The port.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }
}

/// The address at which a service on this machine is reached: one that listens on all addresses, at the local one.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
