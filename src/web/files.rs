//! Answers that are the same for all who ask: made once, compressed once.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use actix_web::http::header::{
    self, AcceptEncoding, ContentEncoding, ETag, Encoding, EntityTag, Header, HeaderValue,
};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Content that is too small to be worth compressing, in bytes.
const COMPRESSED_BYTES_MIN: usize = 1024;

/// A file that is served from memory. All connections share its bytes.
#[derive(Debug)]
pub struct File {
    media_type: String,
    plain: Bytes,
    compressed: OnceLock<Bytes>,
    /// Digest of the content, in hexadecimal.
    digest: String,
}

impl File {
    /// Makes a file of this media type.
    pub fn new(media_type: impl Into<String>, content: impl Into<Bytes>) -> Self {
        let plain = content.into();
        let digest = hex::encode(&Sha256::digest(&plain)[..16]);
        Self { media_type: media_type.into(), plain, compressed: OnceLock::new(), digest }
    }

    /// Answers `request`: compressed if the client takes that, and with a strong `ETag`.
    pub async fn answer(self: &Arc<Self>, request: &HttpRequest) -> Result<HttpResponse, Error> {
        let is_compressed = self.plain.len() >= COMPRESSED_BYTES_MIN && accepts_gzip(request);
        let suffix = if is_compressed { "-gzip" } else { "" };
        let tag = EntityTag::new_strong(format!("{}{suffix}", self.digest));
        let mut answer = HttpResponse::Ok();
        answer
            .insert_header(ETag(tag))
            .insert_header((header::VARY, HeaderValue::from_name(header::ACCEPT_ENCODING)));
        answer.content_type(self.media_type.as_str());
        if !is_compressed {
            return Ok(answer.body(self.plain.clone()));
        }
        answer.insert_header(ContentEncoding::Gzip);
        let bytes = match self.compressed.get() {
            Some(bytes) => bytes.clone(),
            None => {
                let file = Arc::clone(self);
                web::block(move || file.compressed.get_or_init(|| compress(&file.plain)).clone())
                    .await
                    .map_err(Error::internal)?
            }
        };
        Ok(answer.body(bytes))
    }
}

fn accepts_gzip(request: &HttpRequest) -> bool {
    let offered = [Encoding::gzip(), Encoding::identity()];
    let accepted = AcceptEncoding::parse(request).ok();
    accepted.and_then(|accepted| accepted.negotiate(offered.iter())) == Some(Encoding::gzip())
}

fn compress(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("memory takes all that is written").into()
}
