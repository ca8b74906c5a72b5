//! Puts the database as far away as you like: a proxy that passes everything on as much later, in either direction.
//!
//! `distance TARGET MICROSECONDS` listens on a free port of this host, prints its address, and connects each caller with
//! TARGET. The time is that of one way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, target, microseconds] = &arguments[..] else { panic!("distance TARGET MICROSECONDS") };
    let delay = Duration::from_micros(microseconds.parse().expect("a number of microseconds"));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    for caller in listener.incoming() {
        let (caller, server) = (caller?, TcpStream::connect(target)?);
        carry(caller.try_clone()?, server.try_clone()?, delay)?;
        carry(server, caller, delay)?;
    }
    Ok(())
}

/// Carries bytes from one to the other until the first hangs up.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) -> std::io::Result<()> {
    to.set_nodelay(true)?;
    let (send, sent) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in sent {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // The other side learns that this one has gone.
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    Ok(())
}
