//! What a connection and the middleware around its requests tell each other.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::HttpMessage;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures_util::{Stream, StreamExt};

use super::Refusal;

/// Size of the pieces of an answer in bytes: what a client that doesn't read can have waiting here, more or less.
const PIECE_BYTES: usize = 16 * 1024;

/// Shared by a [`Connection`](super::Connection) and the middleware, for one request at a time.
#[derive(Debug, Default)]
pub struct Link {
    refusal: RefCell<Option<Refusal>>,
    is_body_broken: Cell<bool>,
    body_reader: RefCell<Option<Waker>>,
    is_answered: Cell<bool>,
}

impl Link {
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.refusal.replace(Some(refusal));
    }

    /// Takes the refusal of the request that is being answered, if it is refused.
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.refusal.take()
    }

    pub(super) fn break_body(&self) {
        self.is_body_broken.set(true);
        if let Some(reader) = self.body_reader.take() {
            reader.wake();
        }
    }

    pub(super) fn take_answered(&self) -> bool {
        self.is_answered.take()
    }
}

/// A request's body, kept until the request is answered. actix-http reads on and on from a client whose chunked body
/// nobody wants any more, but closes the connection if somebody still might.
#[derive(Clone)]
pub struct HeldBody(Rc<RefCell<Payload>>);

impl HeldBody {
    /// Takes hold of the body of `request`. `None` if it has none.
    pub fn of(request: &mut ServiceRequest, link: &Rc<Link>) -> Option<Self> {
        let payload = match request.take_payload() {
            Payload::None => return None,
            payload => payload,
        };
        let held = Self(Rc::new(RefCell::new(payload)));
        let reader = BodyReader { body: held.clone(), link: Rc::clone(link) };
        request.set_payload(Payload::Stream { payload: Box::pin(reader) });
        Some(held)
    }
}

struct BodyReader {
    body: HeldBody,
    link: Rc<Link>,
}

impl Stream for BodyReader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.body.0.borrow_mut().poll_next_unpin(context);
        if next.is_pending() {
            if self.link.is_body_broken.get() {
                return Poll::Ready(Some(Err(PayloadError::EncodingCorrupted)));
            }
            self.link.body_reader.replace(Some(context.waker().clone()));
        }
        next
    }
}

/// The body of an answer, which goes out in pieces, and whose end lets the next request in.
pub struct Answer {
    body: BoxBody,
    piece: Bytes,
    _request_body: Option<HeldBody>,
    link: Option<Rc<Link>>,
}

impl Answer {
    /// Makes the answer to the request that `link` passed on, with the body of that request.
    pub fn new(body: BoxBody, request_body: Option<HeldBody>, link: Option<Rc<Link>>) -> Self {
        Self { body, piece: Bytes::new(), _request_body: request_body, link }
    }
}

impl MessageBody for Answer {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if this.piece.is_empty() {
            match Pin::new(&mut this.body).poll_next(context) {
                Poll::Ready(Some(Ok(bytes))) => this.piece = bytes,
                other => return other,
            }
        }
        let length = this.piece.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(this.piece.split_to(length))))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.is_answered.set(true);
        }
    }
}
