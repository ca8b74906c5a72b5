//! The main port, which can be closed for a while.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use actix_web::dev::Server;
use actix_web::web;
use tokio::sync::{mpsc, oneshot};

use super::api::{self, Bank};

/// Pause before the port is bound again if another program has it.
const BIND_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Sends orders to the keeper of the port.
#[derive(Clone)]
pub(super) struct Listener {
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    Refuse { duration: Duration, done: oneshot::Sender<()> },
    Stop { done: oneshot::Sender<()> },
}

impl Listener {
    /// Serves on `address`, where `server` has been started. Must be called inside an actix system.
    pub(super) fn open(bank: web::Data<Bank>, server: Server, address: SocketAddr) -> Self {
        let (orders, taken) = mpsc::unbounded_channel();
        actix_web::rt::spawn(async move {
            if let Err(error) = keep(bank, server, address, taken).await {
                log::error!("the simulator is closed for good: {error}");
            }
        });
        Self { orders }
    }

    /// Closes the port and its connections, and opens it again after `duration`. Returns when it's closed.
    pub(super) async fn refuse(&self, duration: Duration) {
        let (done, is_done) = oneshot::channel();
        // The keeper is gone only if it was stopped, and then the port is closed, too.
        let _ = self.orders.send(Order::Refuse { duration, done });
        let _ = is_done.await;
    }

    /// Closes the port for good, after the requests under way are answered.
    pub(super) async fn stop(&self) {
        let (done, is_done) = oneshot::channel();
        let _ = self.orders.send(Order::Stop { done });
        let _ = is_done.await;
    }
}

async fn keep(
    bank: web::Data<Bank>,
    mut server: Server,
    address: SocketAddr,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Result<(), String> {
    loop {
        let handle = server.handle();
        let running = actix_web::rt::spawn(server);
        let order = orders.recv().await;
        handle.stop(!matches!(order, Some(Order::Refuse { .. }))).await;
        let _ = running.await;
        let mut open_at = match order {
            Some(Order::Refuse { duration, done }) => {
                let _ = done.send(());
                Instant::now() + duration
            }
            Some(Order::Stop { done }) => {
                let _ = done.send(());
                return Ok(());
            }
            None => return Ok(()),
        };
        let listener = loop {
            match tokio::time::timeout_at(open_at.into(), orders.recv()).await {
                Err(_) => match TcpListener::bind(address) {
                    Ok(listener) => break listener,
                    Err(error) => {
                        log::warn!("the simulator can't have {address} back yet: {error}");
                        open_at = Instant::now() + BIND_AGAIN_AFTER;
                    }
                },
                Ok(Some(Order::Refuse { duration, done })) => {
                    let _ = done.send(());
                    open_at = Instant::now() + duration;
                }
                Ok(Some(Order::Stop { done })) => {
                    let _ = done.send(());
                    return Ok(());
                }
                Ok(None) => return Ok(()),
            }
        };
        server = api::server(bank.clone(), listener)?;
    }
}
