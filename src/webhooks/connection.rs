//! Connections to receivers, which can't make us read without end.
//!
//! A receiver may send informational answers, headers, chunks or TLS records for as long as it likes, and a client skips
//! or collects them one by one. So each request comes with an allowance of bytes: reading more is an error, which closes
//! the connection. The bytes are counted below TLS, where nothing is left out, and the allowance is renewed above it,
//! where only our own requests are written.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_native_tls::TlsStream;
use tower_service::Service;

/// Maximum number of bytes that are read for a request, with all that belongs to TLS.
const READ_MAX: usize = 64 * 1024;

/// The receiver has sent more than an answer may have.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than {READ_MAX} bytes")]
pub(super) struct AnswerTooLong;

/// The connection wasn't there in time.
#[derive(Debug, thiserror::Error)]
#[error("connecting took too long")]
pub(super) struct ConnectTimeout;

/// The bytes that may still be read on a connection.
#[derive(Clone, Debug)]
struct Allowance(Arc<AtomicUsize>);

impl Allowance {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(READ_MAX)))
    }

    fn renew(&self) {
        self.0.store(READ_MAX, Ordering::Relaxed);
    }

    fn take(&self, read: usize) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        match left.checked_sub(read) {
            Some(left) => {
                self.0.store(left, Ordering::Relaxed);
                Ok(())
            }
            None => Err(io::Error::other(AnswerTooLong)),
        }
    }
}

/// A TCP connection whose bytes are counted.
pub(super) struct Counted {
    inner: TokioIo<TcpStream>,
    allowance: Allowance,
}

impl Read for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // At a time no more than fits on the stack. TLS and HTTP ask for less as a rule.
        let mut chunk = [0; 8 * 1024];
        let room = buffer.remaining().min(chunk.len());
        let mut read = ReadBuf::new(&mut chunk[..room]);
        match Pin::new(&mut self.inner).poll_read(cx, read.unfilled()) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        self.allowance.take(read.filled().len())?;
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
            let allowance = Allowance::new();
            let counted = Counted { inner, allowance: allowance.clone() };
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
