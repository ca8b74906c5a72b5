//! A client's connection, between the socket and actix-http.
//!
//! actix-http answers what it can't parse by itself, with an empty body, or not at all. It also parses up to seventeen
//! requests of a connection ahead, and keeps their answers, however large, for a client that doesn't read. So it gets a
//! connection's bytes through [`Connection`], which reads them first:
//!
//! * a head that actix-http would refuse, or that is too large or too slow, is replaced by a request for its
//!   [`Refusal`]. The middleware answers that like any other request: with a problem, its id, its log line.
//! * a body that breaks off or whose chunks are malformed ends with an error at its reader, which then answers.
//! * the next request is passed on when the last one's answer has been handed to the operating system.
//! * a client that doesn't take its answer for [`Limits::write`] is disconnected.
//!
//! What isn't plainly well-formed is read with actix-http's own decoder. So both agree on what is, and on where it ends.
//!
//! Not promised: a bound for the number of connections, which is the server's.

mod answer;
mod plain;
mod refusal;
mod upgrade;

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_codec::Decoder;
use actix_http::ServiceConfig;
use actix_http::h1::{Codec, Message, MessageType};
use actix_web::rt::net::TcpStream;
use actix_web::rt::time::{Sleep, sleep};
use actix_web::web::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::Error;

pub use answer::{Answer, HeldBody, Link};
pub use refusal::Refusal;

/// Maximum size of a request line in bytes.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;

/// Maximum size of a request's head in bytes.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Size of a read in bytes.
const READ_BYTES: usize = 8 * 1024;

/// Bytes that a client may send ahead while its last request is being answered.
const AHEAD_BYTES_MAX: usize = 8 * 1024;

/// Maximum waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection, or from the first byte of a later request, to the end of the head.
    pub head: Duration,
    /// From an answer to the first byte of the next request.
    pub keep_alive: Duration,
    /// Between two steps of a client that takes an answer.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(5),
            write: Duration::from_secs(30),
        }
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// The rest of a head.
    Head,
    /// Another request.
    Request,
}

/// What the next bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A request's head.
    Head,
    /// This many more bytes of the body of the request that is being answered.
    Plain(u64),
    /// The body of such a request, as the decoder reads it.
    Coded,
    /// The next request: held back until the last one is answered.
    Ahead,
    /// Of no interest: the request is refused, and the connection will be closed.
    Ignored,
}

/// A connection that passes on well-formed requests, one at a time.
pub struct Connection {
    stream: TcpStream,
    link: Rc<Link>,
    limits: Limits,
    codec: Codec,
    stage: Stage,
    /// Bytes received and not yet passed on.
    inbox: Vec<u8>,
    /// Number of these that have been read and may be passed on.
    admitted: usize,
    is_first: bool,
    read_timer: Option<(Awaited, Pin<Box<Sleep>>)>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Makes a connection of `stream`. `config` is that of the thread's connections.
    pub fn new(stream: TcpStream, config: ServiceConfig, limits: Limits) -> Self {
        Self {
            stream,
            link: Rc::default(),
            limits,
            codec: Codec::new(config),
            stage: Stage::Head,
            inbox: Vec::new(),
            admitted: 0,
            is_first: true,
            read_timer: None,
            write_timer: None,
        }
    }

    /// What the connection and the middleware tell each other.
    pub fn link(&self) -> Rc<Link> {
        Rc::clone(&self.link)
    }

    /// Address of the client.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// Reads what has been received, up to the end of a request.
    fn admit(&mut self) {
        if self.stage == Stage::Head {
            // Old clients send an empty line after a request (RFC 9112, section 2.2).
            let received = &self.inbox[self.admitted..];
            let empty = received.iter().take_while(|byte| b"\r\n".contains(byte)).count();
            self.inbox.drain(self.admitted..self.admitted + empty);
        }
        if self.stage == Stage::Head
            && let Some((head, body)) = plain::measure(&self.inbox[self.admitted..])
        {
            self.admitted += head;
            self.begin(Stage::Plain(body));
        }
        match self.stage {
            Stage::Plain(rest) => {
                let received = self.inbox.len() - self.admitted;
                let length = usize::try_from(rest).unwrap_or(usize::MAX).min(received);
                self.admitted += length;
                let rest = rest - length as u64;
                self.stage = if rest == 0 { Stage::Ahead } else { Stage::Plain(rest) };
            }
            Stage::Head | Stage::Coded if self.admitted < self.inbox.len() => self.decode(),
            _ => {}
        }
    }

    /// Begins to answer a request, whose body comes next.
    fn begin(&mut self, body: Stage) {
        (self.stage, self.is_first, self.read_timer) = (body, false, None);
    }

    /// Reads what isn't plain.
    fn decode(&mut self) {
        if self.stage == Stage::Head {
            upgrade::hide(&mut self.inbox[self.admitted..]);
        }
        let mut rest = BytesMut::from(&self.inbox[self.admitted..]);
        while matches!(self.stage, Stage::Head | Stage::Coded) {
            let decoded = self.codec.decode(&mut rest);
            let read = self.inbox.len() - rest.len();
            match decoded {
                Ok(Some(Message::Item(_))) => {
                    if let Some(error) = too_large(&self.inbox[self.admitted..read]) {
                        return self.refuse(error);
                    }
                    self.begin(match self.codec.message_type() {
                        MessageType::None => Stage::Ahead,
                        MessageType::Payload | MessageType::Stream => Stage::Coded,
                    });
                }
                Ok(Some(Message::Chunk(Some(_)))) => {}
                Ok(Some(Message::Chunk(None))) => self.stage = Stage::Ahead,
                Ok(None) if self.stage == Stage::Coded => {
                    self.admitted = read;
                    return;
                }
                Ok(None) => {
                    if let Some(error) = too_large(&self.inbox[self.admitted..]) {
                        self.refuse(error);
                    }
                    return;
                }
                Err(error) if self.stage == Stage::Head => {
                    return self.refuse(refusal::reason(&error, &self.inbox[self.admitted..]));
                }
                Err(_) => {
                    self.inbox.truncate(self.admitted);
                    self.stage = Stage::Ignored;
                    return self.link.break_body();
                }
            }
            self.admitted = read;
        }
    }

    /// Replaces the head that is being read by a request for its refusal. Its announced body never comes, so that
    /// actix-http closes the connection, and only after the client had the time to read the answer.
    fn refuse(&mut self, error: Error) {
        let stand_in = refusal::stand_in(&self.inbox[self.admitted..]);
        self.inbox.truncate(self.admitted);
        self.inbox.extend_from_slice(&stand_in);
        self.admitted = self.inbox.len();
        (self.stage, self.read_timer) = (Stage::Ignored, None);
        self.link.refuse(Refusal(error));
    }

    /// Passes admitted bytes on. `false` if there are none.
    fn pass_on(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let length = self.admitted.min(buffer.remaining());
        if length == 0 {
            return false;
        }
        buffer.put_slice(&self.inbox[..length]);
        self.inbox.drain(..length);
        self.admitted -= length;
        if self.inbox.is_empty() && self.inbox.capacity() > READ_BYTES {
            self.inbox = Vec::new();
        }
        true
    }

    /// Receives bytes, and returns how many. 0 if the client sends no more.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        if self.stage != Stage::Ignored {
            self.inbox.extend_from_slice(buffer.filled());
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// What is late, if something is. Otherwise, wakes the task when it will be.
    fn poll_lateness(&mut self, context: &mut Context<'_>) -> Poll<Awaited> {
        if self.stage != Stage::Head {
            return Poll::Pending;
        }
        let awaited = match self.inbox.is_empty() && !self.is_first {
            true => Awaited::Request,
            false => Awaited::Head,
        };
        let timer = match &mut self.read_timer {
            Some((running, timer)) if *running == awaited => timer,
            timer => {
                let limit = match awaited {
                    Awaited::Head => self.limits.head,
                    Awaited::Request => self.limits.keep_alive,
                };
                &mut timer.insert((awaited, Box::pin(sleep(limit)))).1
            }
        };
        timer.as_mut().poll(context).map(|()| awaited)
    }
}

/// The error for a head, or the beginning of one, that is larger than allowed.
fn too_large(head: &[u8]) -> Option<Error> {
    if head.len() <= REQUEST_LINE_BYTES_MAX {
        return None;
    }
    let line = refusal::request_line(head);
    if line.len() > REQUEST_LINE_BYTES_MAX {
        return Some(Error::UriTooLong { limit_bytes: REQUEST_LINE_BYTES_MAX });
    }
    (head.len() > HEAD_BYTES_MAX).then_some(Error::HeadersTooLarge)
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            this.admit();
            if this.pass_on(buffer) {
                return Poll::Ready(Ok(()));
            }
            // Woken by the end of the answer.
            if this.stage == Stage::Ahead && this.inbox.len() >= AHEAD_BYTES_MAX {
                return Poll::Pending;
            }
            match this.poll_receive(context)? {
                Poll::Ready(0) if this.inbox.is_empty() => return Poll::Ready(Ok(())),
                // The answer to the last request comes first.
                Poll::Ready(0) if this.stage == Stage::Ahead => return Poll::Pending,
                Poll::Ready(0) => this.refuse(Error::RequestMalformed("it ends within its head")),
                Poll::Ready(_) => {}
                Poll::Pending => match ready!(this.poll_lateness(context)) {
                    Awaited::Head => {
                        this.refuse(Error::HeadTimeout { limit_s: this.limits.head.as_secs() });
                    }
                    // As if the client had ended the connection.
                    Awaited::Request => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        if written.is_ready() {
            this.write_timer = None;
            return written;
        }
        let limit = this.limits.write;
        let timer = this.write_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client doesn't read its answer")))
    }

    /// Is called when all bytes have been written.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.link.take_answered() && this.stage == Stage::Ahead {
            this.stage = Stage::Head;
            // actix-http won't read again before it's woken.
            if !this.inbox.is_empty() || this.poll_lateness(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn a_client_that_takes_nothing_of_its_answer_is_disconnected() {
        actix_web::rt::System::new().block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            server.set_nonblocking(true).unwrap();
            let limits = Limits { write: Duration::from_millis(50), ..Limits::default() };
            let stream = TcpStream::from_std(server).unwrap();
            let mut connection = Connection::new(stream, ServiceConfig::default(), limits);
            let mut written = 0;
            let error = loop {
                let bytes = [0; 64 * 1024];
                match poll_fn(|context| Pin::new(&mut connection).poll_write(context, &bytes)).await {
                    Ok(length) => written += length,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(written > 0);
            drop(client);
        });
    }
}
