//! Connections to receivers, which can't make us read without end.
//!
//! A receiver may send informational answers, headers, chunks or TLS records for as long as it likes, and a client skips
//! or collects them one by one. So each request comes with an allowance of bytes: reading more is an error, which closes
//! the connection. The bytes are counted below TLS, where nothing is left out, and the allowance is renewed above it,
//! where only our own requests are written.
//!
//! Thousands of tiny records or chunks take milliseconds to parse, and many receivers may send them at once, or byte by
//! byte. So whatever goes beyond an ordinary answer is read in small pieces with pauses, which leave the processor to
//! others.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_native_tls::TlsStream;
use tower_service::Service;

/// Maximum number of bytes that are read for a request, with all that belongs to TLS.
const READ_MAX: usize = 32 * 1024;
/// What is read of that without pauses, in bytes and in pieces: an ordinary answer, or an ordinary TLS handshake. Behind
/// TLS, a piece may be the five bytes that tell what follows.
const AT_ONCE_BYTES: usize = 8 * 1024;
const AT_ONCE_PIECES: u32 = 64;
/// Maximum size of a piece, and the pause before each that isn't read at once.
const PIECE_MAX: usize = 2 * 1024;
const PAUSE: Duration = Duration::from_millis(50);

/// The receiver has sent more than an answer may have.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than {READ_MAX} bytes")]
pub(super) struct AnswerTooLong;

/// The connection wasn't there in time.
#[derive(Debug, thiserror::Error)]
#[error("connecting took too long")]
pub(super) struct ConnectTimeout;

/// What has been read on a connection since the last request was sent.
#[derive(Clone, Debug, Default)]
struct Allowance(Arc<Used>);

#[derive(Debug, Default)]
struct Used {
    bytes: AtomicUsize,
    pieces: AtomicU32,
}

impl Allowance {
    fn renew(&self) {
        self.0.bytes.store(0, Ordering::Relaxed);
        self.0.pieces.store(0, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        self.0.pieces.fetch_add(1, Ordering::Relaxed);
        match self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes {
            ..=READ_MAX => Ok(()),
            _ => Err(io::Error::other(AnswerTooLong)),
        }
    }

    /// Whether there is a pause before the next piece.
    fn is_slow(&self) -> bool {
        self.0.bytes.load(Ordering::Relaxed) >= AT_ONCE_BYTES
            || self.0.pieces.load(Ordering::Relaxed) >= AT_ONCE_PIECES
    }
}

/// A TCP connection whose bytes are counted.
pub(super) struct Counted {
    inner: TokioIo<TcpStream>,
    allowance: Allowance,
    /// The pause before the next piece, if one is due.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Read for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let mut piece = [0; PIECE_MAX];
        let room = buffer.remaining().min(piece.len());
        let mut read = ReadBuf::new(&mut piece[..room]);
        match Pin::new(&mut self.inner).poll_read(cx, read.unfilled()) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        self.allowance.take(read.filled().len())?;
        if self.allowance.is_slow() {
            self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
        }
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A connection as HTTP sees it.
pub(super) struct Stream {
    transport: Transport,
    allowance: Allowance,
}

enum Transport {
    Plain(Counted),
    Secure(TokioIo<TlsStream<TokioIo<Counted>>>),
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Secure(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Secure(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        // Once per request. A receiver that takes it in many small pieces gets no more for that.
        if matches!(written, Poll::Ready(Ok(1..))) && bytes.starts_with(b"POST ") {
            self.allowance.renew();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Connects to the addresses that a resolver allows.
#[derive(Clone)]
pub(super) struct Connector<R> {
    http: HttpConnector<R>,
    tls: tokio_native_tls::TlsConnector,
    timeout: Duration,
}

impl<R> Connector<R> {
    /// Makes a connector with this time limit for a connection, TLS included. The error is a sentence.
    pub(super) fn new(resolver: R, timeout: Duration) -> Result<Self, String> {
        let tls = native_tls::TlsConnector::new()
            .map_err(|error| format!("Can't set up the client for webhook endpoints: {error}."))?;
        let mut http = HttpConnector::new_with_resolver(resolver);
        http.enforce_http(false);
        http.set_nodelay(true);
        // Divided among the addresses of a name: the first one may be dead.
        http.set_connect_timeout(Some(timeout));
        // The kernel would take some MiB before anybody reads them.
        http.set_recv_buffer_size(Some(READ_MAX));
        Ok(Self { http, tls: tls.into(), timeout })
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl<R> Service<Uri> for Connector<R>
where
    R: Service<Name> + Clone + Send + Sync + 'static,
    R::Response: Iterator<Item = SocketAddr>,
    R::Future: Send,
    R::Error: Into<BoxError>,
    HttpConnector<R>: Service<Uri, Response = TokioIo<TcpStream>, Future: Send, Error: Into<BoxError>>,
{
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::poll_ready(&mut self.http, cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let is_secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let (connecting, tls) = (self.http.call(uri), self.tls.clone());
        let connect = async move {
            let inner = connecting.await.map_err(Into::into)?;
            let allowance = Allowance::default();
            let counted = Counted { inner, allowance: allowance.clone(), pause: None };
            let transport = match is_secure {
                true => Transport::Secure(TokioIo::new(tls.connect(&host, TokioIo::new(counted)).await?)),
                false => Transport::Plain(counted),
            };
            Ok(Stream { transport, allowance })
        };
        let timeout = self.timeout;
        Box::pin(async move {
            tokio::time::timeout(timeout, connect).await.unwrap_or_else(|_| Err(ConnectTimeout.into()))
        })
    }
}
