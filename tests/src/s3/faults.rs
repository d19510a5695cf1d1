//! What goes wrong with requests, and the answers that it leaves.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::CONTENT_LENGTH;
use hyper::http::response::Parts;

use super::{Body, Recorded, whole};

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It is answered with this status, and not performed.
    Status(u16),
    /// The connection is reset, and it is not performed.
    Reset,
    /// It is performed, and the connection is reset instead of an answer.
    LoseAnswer,
    /// It is performed; the answer comes after so long.
    AnswerLate(Duration),
    /// It is performed; the answer ends in the middle of its body.
    Truncate,
    /// It is performed; one byte in the middle of the answer's body is another.
    Corrupt,
    /// It is performed; the answer's body takes this long.
    Slow(Duration),
    /// It is performed after so long.
    Delay(Duration),
    /// It is performed when its body has come at so many bytes a second, all such requests taken together.
    Throttle(u64),
    /// Its condition is ignored: what exists is replaced.
    IgnoreCondition,
}

/// Which requests go wrong, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    pub(super) fault: Fault,
    method: &'static str,
    contains: String,
    skip: usize,
    pub(super) times: usize,
    pub(super) struck: usize,
    /// One of so many is struck, at random.
    one_in: u64,
    random: u64,
}

impl Rule {
    /// Every request whose method is `method` and whose path or query contains `contains` goes wrong.
    pub fn new(fault: Fault, method: &'static str, contains: impl Into<String>) -> Self {
        Self { fault, method, contains: contains.into(), skip: 0, times: usize::MAX, struck: 0, one_in: 1, random: 1 }
    }

    /// Not the first `n` of them.
    #[must_use]
    pub fn after(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    /// Only so many.
    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.times = n;
        self
    }

    /// Only one of `n`, at random but the same in every run.
    #[must_use]
    pub fn one_in(mut self, n: u64) -> Self {
        self.one_in = n;
        self
    }

    pub(super) fn strikes(&mut self, request: &Recorded) -> bool {
        if request.method != self.method || !request.target.contains(&self.contains) || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        // Knuth's MMIX; its high bits are good.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if !(self.random >> 33).is_multiple_of(self.one_in) {
            return false;
        }
        self.times -= 1;
        self.struck += 1;
        true
    }
}

/// Closing the connection will tell the client that it was reset, not that it ended.
pub(super) fn reset(socket: &OwnedFd) -> io::Error {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    io::ErrorKind::ConnectionReset.into()
}

pub(super) async fn truncated(response: Response<Body>) -> io::Result<Response<Body>> {
    let (parts, bytes) = collected(response).await?;
    let half = Ok(Frame::data(bytes.slice(..bytes.len() / 2)));
    let broken = Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    // The length in the header is still that of the whole.
    let body = StreamBody::new(stream::iter([half, broken]).then(|frame| async {
        tokio::task::yield_now().await;
        frame
    }));
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

pub(super) async fn corrupted(response: Response<Body>) -> io::Result<Response<Body>> {
    let (parts, bytes) = collected(response).await?;
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    Ok(Response::from_parts(parts, whole(bytes.into())))
}

pub(super) async fn slow(response: Response<Body>, time: Duration) -> io::Result<Response<Body>> {
    const PIECES: usize = 16;
    let (parts, bytes) = collected(response).await?;
    let cuts: Vec<usize> = (0..=PIECES).map(|i| bytes.len() * i / PIECES).collect();
    let pieces: Vec<Bytes> = cuts.windows(2).map(|cut| bytes.slice(cut[0]..cut[1])).collect();
    let pieces = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(time / u32::try_from(PIECES).unwrap_or(1)).await;
        Ok::<_, io::Error>(Frame::data(piece))
    });
    Ok(Response::from_parts(parts, StreamBody::new(pieces).boxed_unsync()))
}

async fn collected(response: Response<Body>) -> io::Result<(Parts, Bytes)> {
    let (mut parts, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes();
    parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
    Ok((parts, bytes))
}
