//! A port that is taken before its server starts.

use std::net::{SocketAddr, TcpListener};

/// A port that a server will serve on.
pub struct Listener {
    listener: TcpListener,
}

impl Listener {
    /// Takes the port. The error is a sentence, which names the setting that chose it.
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

    /// Where it will be reached.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// The port.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }
}
