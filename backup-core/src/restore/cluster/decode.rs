//! Undoing the compression that the server applied, on the thread that unpacks.

use std::io::{self, Read};
use std::pin::Pin;

use async_compression::tokio::bufread::{GzipDecoder, Lz4Decoder, ZstdDecoder};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::layout::ServerCompression;
use crate::restore::worker::Incoming;

/// What is read of the compressed stream at once.
const READ_BYTES: usize = 64 << 10;

/// The tar stream inside of `incoming`.
pub(super) fn decode(incoming: Incoming, compression: ServerCompression) -> Box<dyn Read> {
    let incoming = Blocking(incoming);
    // Servers write one frame or member, or several one after the other.
    macro_rules! decoder {
        ($decoder:ident) => {{
            let mut decoder = $decoder::new(BufReader::with_capacity(READ_BYTES, incoming));
            decoder.multiple_members(true);
            Box::new(Decoder(Box::pin(decoder)))
        }};
    }
    match compression {
        ServerCompression::None => Box::new(incoming.0),
        ServerCompression::Gzip => decoder!(GzipDecoder),
        ServerCompression::Lz4 => decoder!(Lz4Decoder),
        ServerCompression::Zstd => decoder!(ZstdDecoder),
    }
}

/// Reads where it is asked to, without waiting for anything but its own thread.
struct Blocking(Incoming);

impl AsyncRead for Blocking {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        room: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let n = self.get_mut().0.read(room.initialize_unfilled());
        std::task::Poll::Ready(n.map(|n| room.advance(n)))
    }
}

/// A decoder that is driven by a thread of its own.
struct Decoder(Pin<Box<dyn AsyncRead>>);

impl Read for Decoder {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        futures::executor::block_on(self.0.read(room))
    }
}
