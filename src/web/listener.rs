//! A port that is bound before its server starts.

use std::net::{SocketAddr, TcpListener};

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
