//! What is read of one object, piece by piece, and from another repository when one fails in between.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, Result as StoreResult,
};

use super::{PATIENCE, Sources};

/// Of a file so much is read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// The body of an object that goes on elsewhere when it breaks off.
struct Body {
    sources: Arc<Sources>,
    /// Which source it comes from.
    place: usize,
    location: Path,
    body: BoxStream<'static, StoreResult<Bytes>>,
    /// What is still to come.
    left: Range<u64>,
    /// The whole object's size.
    size: u64,
    /// How often it may still go on elsewhere.
    tries: usize,
}

pub(super) async fn get(sources: Arc<Sources>, location: Path, options: GetOptions) -> StoreResult<GetResult> {
    let question = |store: Arc<dyn ObjectStore>| {
        let (location, options) = (location.clone(), options.clone());
        async move { store.get_opts(&location, options).await }
    };
    let (result, source) = sources.ask(&location, question).await?;
    let place = sources.place_of(source);
    let GetResult { payload, meta, range, attributes, extensions } = result;
    let payload = if options.head {
        payload
    } else {
        let (left, size, tries) = (range.clone(), meta.size, sources.sources.len());
        let body = pieces(payload, range.clone());
        let body = Body { sources: Arc::clone(&sources), place, location, body, left, size, tries };
        GetResultPayload::Stream(stream::try_unfold(body, Body::next).boxed())
    };
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

impl Body {
    async fn next(mut self) -> StoreResult<Option<(Bytes, Self)>> {
        loop {
            let piece = match self.tries {
                0 => self.body.try_next().await,
                _ => tokio::time::timeout(PATIENCE, self.body.try_next()).await.unwrap_or_else(|_| Err(broken_off())),
            };
            let error = match piece {
                Ok(Some(bytes)) => {
                    self.left.start += bytes.len() as u64;
                    return Ok(Some((bytes, self)));
                }
                Ok(None) if self.left.is_empty() => return Ok(None),
                Ok(None) => broken_off(),
                Err(error) => error,
            };
            if self.tries == 0 {
                return Err(error);
            }
            self.tries -= 1;
            self.go_on(error).await?;
        }
    }

    /// Asks for the rest; from the same source last of all.
    async fn go_on(&mut self, error: StoreError) -> StoreResult<()> {
        let source = &self.sources.sources[self.place];
        let others = self.sources.in_order();
        if let Some(next) = others.into_iter().find(|other| !std::ptr::eq(*other, source)) {
            self.sources.left(source, &error, next);
        }
        let (location, rest) = (&self.location, GetRange::Bounded(self.left.clone()));
        let question = |store: Arc<dyn ObjectStore>| {
            let (location, options) = (location.clone(), GetOptions::new().with_range(Some(rest.clone())));
            async move { store.get_opts(&location, options).await }
        };
        let (found, source) = self.sources.ask(&self.location, question).await?;
        if found.meta.size != self.size {
            return Err(error);
        }
        self.place = self.sources.place_of(source);
        self.body = pieces(found.payload, self.left.clone());
        Ok(())
    }
}

fn broken_off() -> StoreError {
    StoreError::Generic { store: "repository", source: "the body broke off".into() }
}

/// The bytes of `range`. A file is read in pieces, so that one that cannot be read any more is left for another repository.
fn pieces(payload: GetResultPayload, range: Range<u64>) -> BoxStream<'static, StoreResult<Bytes>> {
    let file = match payload {
        GetResultPayload::Stream(body) => return body,
        GetResultPayload::File(file, _) => Arc::new(file),
    };
    let next = move |left: Range<u64>| {
        let file = Arc::clone(&file);
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let start = left.start;
            let len = usize::try_from(left.end - start).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, start).map(|()| Bytes::from(bytes))
            });
            let read = read.await.unwrap_or_else(|e| Err(e.into()));
            let bytes = read.map_err(|e| StoreError::Generic { store: "repository", source: Box::new(e) })?;
            Ok(Some((bytes, start + len as u64..left.end)))
        }
    };
    stream::try_unfold(range, next).boxed()
}
