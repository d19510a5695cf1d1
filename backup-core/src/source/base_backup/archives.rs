//! The archives of a base backup and its manifest: one conversation, cut into streams.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{Mutex, oneshot, watch};

use super::Facts;
use super::entries::{Entries, NoTar};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::postgres::wire::{
    BackupEvent, BaseBackup, BaseBackupOptions, Connection, WalMessage, WalPosition, sqlstate,
};
use crate::repository::layout::StreamName;
use crate::source::files_index::IndexWriter;
use crate::source::{Lane, Named, Piece, Source};

/// The server found page checksums to be wrong, and says so after everything else.
const DATA_CORRUPTED: &str = "XX001";

/// All that the first connection gives: archives in the server's order, then the manifest.
#[derive(Debug)]
pub(super) struct ArchivesLane {
    facts: Arc<Facts>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing has been asked of the server.
    Ready(Box<Ready>),
    Running(Arc<Mutex<Conversation>>),
    Over,
}

#[derive(Debug)]
struct Ready {
    connection: Connection,
    request: BaseBackupOptions,
    index: Option<IndexWriter>,
    started: oneshot::Sender<WalPosition>,
    ended: watch::Sender<Option<WalPosition>>,
}

/// The conversation with the server, of which the streams take turns in reading their part.
struct Conversation {
    backup: BaseBackup,
    index: Option<IndexWriter>,
    ended: watch::Sender<Option<WalPosition>>,
    /// The archive that is being read.
    entries: Option<Entries>,
}

impl ArchivesLane {
    pub(super) fn new(
        facts: Arc<Facts>,
        connection: Connection,
        request: BaseBackupOptions,
        index: Option<IndexWriter>,
        started: oneshot::Sender<WalPosition>,
        ended: watch::Sender<Option<WalPosition>>,
    ) -> Self {
        Self { facts, state: State::Ready(Box::new(Ready { connection, request, index, started, ended })) }
    }

    async fn advance(&mut self) -> Result<Option<Named>> {
        let conversation = match std::mem::replace(&mut self.state, State::Over) {
            State::Ready(ready) => Arc::new(Mutex::new(self.begin(*ready).await?)),
            State::Running(conversation) => conversation,
            State::Over => return Ok(None),
        };
        let mut talk = conversation.lock().await;
        let name = match talk.backup.next().await? {
            Some(BackupEvent::Archive { tablespace, .. }) => {
                let name = stream_of(talk.backup.tablespaces()[tablespace].oid)?;
                talk.entries = talk.index.is_some().then(|| Entries::of(name.as_str()));
                name
            }
            Some(BackupEvent::Manifest) => "backup_manifest".parse()?,
            Some(BackupEvent::End(stop)) => {
                drop(talk);
                self.end(conversation, stop).await?;
                return Ok(None);
            }
            other => return Err(out_of_order(other.as_ref())),
        };
        drop(talk);
        self.state = State::Running(Arc::clone(&conversation));
        Ok(Some((name, Box::new(ArchiveSource(conversation)))))
    }

    /// Asks for the backup, which makes a checkpoint.
    async fn begin(&self, ready: Ready) -> Result<Conversation> {
        let Ready { connection, request, index, started, ended } = ready;
        let backup = connection.base_backup(&request).await?;
        let tablespaces = backup.tablespaces().iter().filter_map(|tablespace| {
            let (oid, location) = (tablespace.oid?, tablespace.location.as_ref()?);
            Some(json!({ "oid": oid, "location": location.to_string_lossy() }))
        });
        self.facts.findings.set_detail("tablespaces", tablespaces.collect());
        self.facts.report_start(backup.start());
        // Nobody listens when the log is not wanted, or its stream has failed and said so.
        let _ = started.send(backup.start());
        Ok(Conversation { backup, index, ended, entries: None })
    }

    /// Everything was sent. The server's last word decides what it is worth.
    async fn end(&self, conversation: Arc<Mutex<Conversation>>, stop: WalPosition) -> Result<()> {
        let conversation = Arc::into_inner(conversation).map(Mutex::into_inner);
        let mut talk = conversation.ok_or_else(|| Error::internal(Stage::Source, "an archive is still being read"))?;
        match talk.backup.next().await {
            Ok(None) => {}
            Ok(other) => return Err(out_of_order(other.as_ref())),
            Err(error) if sqlstate(&error) == Some(DATA_CORRUPTED) => {
                self.facts.findings.damaged();
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                self.facts.findings.warnings().push(cause.unwrap_or_else(|| error.to_string()));
            }
            Err(error) => return Err(error),
        }
        if let Some(index) = &mut talk.index {
            index.finish().await;
        }
        let start = talk.backup.start();
        // The log's stream learns here how far it has to go, and the time from the server.
        if !self.facts.wal_included {
            let stopped = self.server_time(talk.backup, stop).await?;
            self.facts.report(start, stop, stopped);
        } else {
            talk.ended.send_replace(Some(stop));
        }
        Ok(())
    }

    /// What time it is on the server. Its clock stands in whatever a streaming server says.
    async fn server_time(&self, backup: BaseBackup, stop: WalPosition) -> Result<Timestamp> {
        let connection = backup.into_connection().await?;
        let from = self.facts.segment_size.start_of(stop.lsn);
        let mut stream = connection.start_replication(None, from, stop.timeline).await?;
        match stream.next().await? {
            Some(WalMessage::Data { time, .. } | WalMessage::Keepalive { time, .. }) => Ok(time),
            None => Err(Error::new(ErrorKind::Source, Stage::Source, "the server stopped before it told the time")),
        }
    }
}

impl Lane for ArchivesLane {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Named>>> {
        self.advance().boxed()
    }
}

impl Conversation {
    /// Fills `buffer` from the current stream; what is left empty is the stream's end.
    async fn fill(&mut self, mut buffer: Buffer) -> Result<Buffer> {
        while !buffer.spare().is_empty() {
            let n = self.backup.read(buffer.spare()).await?;
            if n == 0 {
                if let Some(entries) = self.entries.take() {
                    entries.finish().map_err(no_tar)?;
                }
                break;
            }
            self.watch(&buffer.spare()[..n]).await?;
            buffer.advance(n);
        }
        Ok(buffer)
    }

    /// Notes down which files begin in `data`.
    async fn watch(&mut self, mut data: &[u8]) -> Result<()> {
        let (Some(entries), Some(index)) = (&mut self.entries, &mut self.index) else { return Ok(()) };
        while let Some(entry) = entries.next(&mut data).map_err(no_tar)? {
            index.push(&entry).await;
        }
        Ok(())
    }
}

/// One stream of the conversation.
#[derive(Debug)]
struct ArchiveSource(Arc<Mutex<Conversation>>);

impl Source for ArchiveSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        async {
            let mut conversation = self.0.lock().await;
            let buffer = conversation.fill(buffer).await?;
            Ok((!buffer.is_empty()).then_some(Piece::Buffer(buffer)))
        }
        .boxed()
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("backup", &self.backup).finish_non_exhaustive()
    }
}

/// The name of a tablespace's stream; the data directory is the one without an OID.
fn stream_of(oid: Option<u32>) -> Result<StreamName> {
    match oid {
        None => "base".parse(),
        Some(oid) => format!("tablespace-{oid}").parse(),
    }
}

fn no_tar(error: NoTar) -> Error {
    Error::new(ErrorKind::Source, Stage::Source, "the server sends something else than tar archives").with_source(error)
}

fn out_of_order(event: Option<&BackupEvent>) -> Error {
    let message = match event {
        None => "the base backup ended early".to_owned(),
        Some(event) => format!("the base backup is out of order: {event:.60?}"),
    };
    Error::new(ErrorKind::Source, Stage::Source, message)
}
