//! One lane of a backup: its streams, one after the other.

use std::sync::Arc;

use super::limits::Share;
use super::progress::Event;
use super::stream::{Context, Halt, unless_stopped, write_stream};
use crate::error::{Error, Result};
use crate::format::StreamEntry;
use crate::repository::layout::StreamName;
use crate::source::{Lane, Named};

/// A lane, and how much of the memory it gets.
#[derive(Debug)]
pub(super) struct LaneRun {
    pub(super) share: Share,
    pub(super) streams: Box<dyn Lane>,
}

impl LaneRun {
    /// Writes all streams of the lane. On error nothing unfinished is left in the store but completed volumes.
    pub(super) async fn write(mut self, context: Arc<Context>) -> Result<Vec<StreamEntry>, Halt> {
        let mut written = Vec::new();
        while let Some((name, source)) = self.next(&context).await.inspect_err(|_| context.stop.cancel())? {
            let stream = write_stream(Arc::clone(&context), name, source, self.share).await?;
            context.tell(&Event::StreamFinished { stream: stream.name.clone(), bytes: stream.bytes });
            written.push(stream);
        }
        Ok(written)
    }

    async fn next(&mut self, context: &Context) -> Result<Option<Named>, Halt> {
        let next = async { Ok(context.counters.at_end(self.streams.next()).await?) };
        let next = unless_stopped(&context.stop, next).await?;
        if let Some((name, _)) = &next {
            context.claim(name)?;
        }
        Ok(next)
    }
}

/// The error of a second stream of that name.
pub(super) fn name_taken(name: &StreamName) -> Error {
    Error::config(format!("there is already a stream '{name}'"))
}
