//! A TCP proxy that misbehaves on demand, before Postgres, the acquirer or the service.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use socket2::SockRef;

use crate::support::free_port;

/// How soon a change of the weather is noticed.
const TICK: Duration = Duration::from_millis(10);

/// What a proxy does to what passes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Each piece of an answer is held back for `base_ms`, and up to `jitter_ms` more or less.
    Slow {
        base_ms: u64,
        jitter_ms: u64,
    },
    /// After about this many bytes of an answer both ends are reset.
    Resets {
        after_bytes: u64,
    },
    /// Connections are accepted and nothing gets through; what was sent arrives when it's over, as with TCP when
    /// packets get lost.
    BlackHole,
    /// The same, but connections that were there, or made meanwhile, stay silent for good, and still take what's sent.
    Oblivion,
    /// Connections are refused, and those that were there are reset.
    Refused,
}

/// Where it leads to and how it is there at the moment.
struct State {
    weather: Weather,
    /// Counts the changes.
    change: u64,
    target: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    resets: AtomicU64,
    is_over: AtomicBool,
    rng: Mutex<StdRng>,
}

impl Shared {
    fn weather(&self) -> (Weather, u64) {
        let state = self.state.lock().unwrap();
        (state.weather, state.change)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Waits for the end of the proxy.
    fn forget(&self) {
        while !self.is_over() {
            thread::sleep(TICK);
        }
    }

    fn up_to(&self, max: u64) -> u64 {
        self.rng.lock().unwrap().random_range(0..=max)
    }
}

/// A running proxy, which ends when this is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one on 127.0.0.1.
    pub fn start(target: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { weather: Weather::Fair, change: 0, target }),
            resets: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        });
        let listening = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || listen(listener, port, &shared))
        };
        Self { shared, port, listening: Some(listening) }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it's reached by HTTP.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many connections were reset.
    pub fn resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Relaxed)
    }

    /// Changes what happens to all connections, those included that are there.
    pub fn set(&self, weather: Weather) {
        let mut state = self.shared.state.lock().unwrap();
        state.weather = weather;
        state.change += 1;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn listen(listener: TcpListener, port: u16, shared: &Arc<Shared>) {
    let mut listener = Some(listener);
    while !shared.is_over() {
        let is_open = shared.weather().0 != Weather::Refused;
        if !is_open {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
        }
        let Some(listener) = &listener else {
            thread::sleep(TICK);
            continue;
        };
        listener.set_nonblocking(true).unwrap();
        match listener.accept() {
            Ok((client, _)) => {
                let shared = Arc::clone(shared);
                thread::spawn(move || connect(client, &shared));
            }
            Err(_) => thread::sleep(TICK / 5),
        }
    }
}

/// Both ends of a connection.
struct Link {
    client: TcpStream,
    server: TcpStream,
    is_broken: AtomicBool,
    /// Bytes of answers since the weather changed.
    answered: AtomicU64,
    changed: AtomicU64,
    is_forgotten: AtomicBool,
}

impl Link {
    /// Lets both ends be reset instead of closed, as soon as both directions have noticed.
    fn reset(&self, shared: &Shared) {
        if self.is_broken.swap(true, Ordering::Relaxed) {
            return;
        }
        shared.resets.fetch_add(1, Ordering::Relaxed);
        for end in [&self.client, &self.server] {
            let _ = SockRef::from(end).set_linger(Some(Duration::ZERO));
        }
    }
}

fn connect(client: TcpStream, shared: &Arc<Shared>) {
    while shared.weather().0 == Weather::BlackHole && !shared.is_over() {
        thread::sleep(TICK);
    }
    if shared.weather().0 == Weather::Oblivion {
        return shared.forget();
    }
    let target = shared.state.lock().unwrap().target;
    // Dropped, if the server isn't there: the client sees its connection end.
    let Ok(server) = TcpStream::connect(target) else { return };
    for end in [&client, &server] {
        end.set_nonblocking(false).unwrap();
        let _ = end.set_nodelay(true);
        end.set_read_timeout(Some(TICK)).unwrap();
    }
    let change = shared.weather().1;
    let link = Arc::new(Link {
        client,
        server,
        is_broken: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        changed: AtomicU64::new(change),
        is_forgotten: AtomicBool::new(false),
    });
    let requests = {
        let (link, shared) = (Arc::clone(&link), Arc::clone(shared));
        thread::spawn(move || forward(&link, &link.client, &link.server, false, &shared))
    };
    forward(&link, &link.server, &link.client, true, shared);
    let _ = requests.join();
}

/// Forwards one direction until it ends or breaks.
fn forward(link: &Link, mut from: &TcpStream, mut to: &TcpStream, is_answer: bool, shared: &Shared) {
    let mut piece = [0; 16 * 1024];
    loop {
        if shared.weather().0 == Weather::Refused || shared.is_over() {
            link.reset(shared);
        }
        if shared.weather().0 == Weather::Oblivion {
            link.is_forgotten.store(true, Ordering::Relaxed);
        }
        if link.is_broken.load(Ordering::Relaxed) {
            return;
        }
        let length = match from.read(&mut piece) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return link.reset(shared),
        };
        let passing = pass(link, length, is_answer, shared);
        if to.write_all(&piece[..passing]).is_err() || passing < length {
            return link.reset(shared);
        }
    }
}

/// Waits as long as the weather says; returns how much of the piece gets through.
fn pass(link: &Link, length: usize, is_answer: bool, shared: &Shared) -> usize {
    loop {
        let (weather, change) = shared.weather();
        match weather {
            _ if shared.is_over() => return 0,
            Weather::Oblivion => thread::sleep(TICK),
            Weather::Refused => return 0,
            _ if link.is_forgotten.load(Ordering::Relaxed) => thread::sleep(TICK),
            Weather::Fair => return length,
            Weather::BlackHole => thread::sleep(TICK),
            Weather::Slow { .. } | Weather::Resets { .. } if !is_answer => return length,
            Weather::Slow { base_ms, jitter_ms } => {
                let ms = (base_ms + shared.up_to(2 * jitter_ms)).saturating_sub(jitter_ms);
                thread::sleep(Duration::from_millis(ms));
                return length;
            }
            Weather::Resets { after_bytes } => {
                if link.changed.swap(change, Ordering::Relaxed) != change {
                    // Not all connections at the same place.
                    link.answered.store(shared.up_to(after_bytes), Ordering::Relaxed);
                }
                let before = link.answered.fetch_add(length as u64, Ordering::Relaxed);
                let left = after_bytes.saturating_sub(before);
                return length.min(usize::try_from(left).unwrap_or(usize::MAX));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::support::eventually;

    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        address
    }

    fn dial(proxy: &Proxy) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()))?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(stream)
    }

    fn ask(mut stream: &TcpStream, length: usize) -> std::io::Result<()> {
        stream.write_all(&vec![7; length])?;
        stream.read_exact(&mut vec![0; length])
    }

    #[test]
    fn each_weather_is_as_it_says() {
        let proxy = Proxy::start(echo(), 1);
        let stream = dial(&proxy).unwrap();
        ask(&stream, 100).unwrap();

        proxy.set(Weather::Slow { base_ms: 100, jitter_ms: 10 });
        let asked = Instant::now();
        ask(&stream, 1).unwrap();
        assert!(asked.elapsed() >= Duration::from_millis(90), "{:?}", asked.elapsed());

        proxy.set(Weather::BlackHole);
        let is_silence = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        assert!(is_silence(ask(&stream, 3).unwrap_err().kind()));
        let new = dial(&proxy).unwrap();
        assert!(is_silence(ask(&new, 3).unwrap_err().kind()));
        proxy.set(Weather::Fair);
        // What was sent meanwhile arrives.
        (&stream).read_exact(&mut [0; 3]).unwrap();
        (&new).read_exact(&mut [0; 3]).unwrap();

        let old = dial(&proxy).unwrap();
        ask(&old, 1).unwrap();
        proxy.set(Weather::Oblivion);
        let forgotten = [old, dial(&proxy).unwrap()];
        assert!(is_silence(ask(&forgotten[0], 3).unwrap_err().kind()));
        proxy.set(Weather::Fair);
        for stream in &forgotten {
            assert!(is_silence(ask(stream, 3).unwrap_err().kind()));
        }
        let (stream, new) = (dial(&proxy).unwrap(), dial(&proxy).unwrap());
        ask(&stream, 3).unwrap();

        proxy.set(Weather::Resets { after_bytes: 10 });
        assert_eq!(ask(&stream, 100).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(proxy.resets(), 1);

        proxy.set(Weather::Refused);
        eventually("the refusal", || {
            dial(&proxy).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
        let is_broken = |kind| matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        assert!(is_broken(ask(&new, 1).unwrap_err().kind()));
        proxy.set(Weather::Fair);
        eventually("the proxy", || dial(&proxy).is_ok_and(|stream| ask(&stream, 1).is_ok()));
    }
}
