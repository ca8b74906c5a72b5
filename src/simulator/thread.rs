//! A simulator next to something else, in the same process.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::Settings;

/// A simulator on a thread of its own.
pub struct Thread {
    /// Address of the API.
    pub address: SocketAddr,
    /// Address of the control port, if there is one.
    pub control_address: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Thread {
    /// Migrates the database and starts the simulator. The error is a sentence.
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
                // If the starter is gone, nobody needs the simulator.
                if started.send(Ok(addresses)).is_ok() {
                    let _ = stopped.await;
                }
                running.stop().await;
            });
        });
        let (address, control_address) =
            starting.recv().map_err(|_| "The simulator ended at once.".to_owned()).flatten()?;
        Ok(Self { address, control_address, stop, thread })
    }

    /// Stops the simulator after the requests under way are answered.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
