//! An acquirer beside something else, in the same process.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::Settings;

/// An acquirer on a thread of its own.
pub struct Thread {
    /// Where it's reached.
    pub address: SocketAddr,
    /// Where its control is, if it has one.
    pub control_address: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Thread {
    /// Migrates the database and starts it. The error is a sentence.
    pub fn start(settings: Settings) -> Result<Self, String> {
        let (started, starting) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let running = match super::start(settings) {
                    Ok(running) => running,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let addresses = (running.address(), running.control_address());
                // If nobody is there any more, nobody needs it.
                if started.send(Ok(addresses)).is_ok() {
                    let _ = stopped.await;
                }
                running.stop().await;
            });
        });
        let (address, control_address) =
            starting.recv().map_err(|_| "The acquirer ended at once.".to_owned()).flatten()?;
        Ok(Self { address, control_address, stop, thread })
    }

    /// Ends it, when requests that are being handled are answered.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
