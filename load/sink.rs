//! Receives webhooks as fast as they come, and counts them: the counterpart of `load/deliveries.py`.
//!
//! `sink [ADDRESS]` listens there (by default on a free port of this host), prints its address, and then
//! answers every request: a POST with 200; a GET with the number of messages so far, and the number of them
//! under a repeated `webhook-id`.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Messages received so far.
#[derive(Default)]
struct Seen {
    /// Path and id: several endpoints may receive the same event.
    ids: HashSet<String>,
    messages: usize,
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address)?;
    println!("http://{}", listener.local_addr()?);
    let seen = Arc::<Mutex<Seen>>::default();
    for stream in listener.incoming() {
        let (stream, seen) = (stream?, Arc::clone(&seen));
        // A client that hangs up early hasn't delivered.
        std::thread::spawn(move || answer_all(stream, &seen));
    }
    Ok(())
}

/// Answers the requests on a connection until it's closed.
fn answer_all(stream: TcpStream, seen: &Mutex<Seen>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let is_message = line.starts_with("POST ");
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut id) = (0, String::new());
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "webhook-id" => id = format!("{path} {}", value.trim()),
                _ => {}
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        let Ok(mut seen) = seen.lock() else { return Ok(()) };
        let answer = if is_message {
            seen.messages += 1;
            seen.ids.insert(id);
            String::new()
        } else {
            format!("{{\"messages\": {}, \"repeated\": {}}}", seen.messages, seen.messages - seen.ids.len())
        };
        drop(seen);
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())?;
    }
}
