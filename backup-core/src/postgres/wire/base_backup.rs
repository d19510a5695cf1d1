//! `BASE_BACKUP`: a copy of the whole cluster in tar archives, one for each tablespace.
//!
//! Since version 15 everything comes in one `CopyOut`, in which the first byte of each message tells its kind. Versions 13 and 14 open a
//! `CopyOut` for each tablespace and one for the manifest, and leave the end mark of a tar archive to the client. Here both look the same.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use bytes::{Buf, Bytes};

use super::backup_options::BaseBackupOptions;
use super::channel::confused_by;
use super::connection::{Answer, Connection, Copied, columns, text};
use super::message::ServerMessage;
use super::replication::{OPTIONS_IN_PARENTHESES, leading, read, timeline_of};
use crate::error::Result;
use crate::postgres::wal::{Lsn, Timeline};

/// The first byte of data of an archive, or of the manifest, since version 15.
const ARCHIVE_DATA: u8 = b'd';

/// Two blocks of zeros end a tar archive; servers before 15 do not send them.
static TAR_END: [u8; 1024] = [0; 1024];

/// A point in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPosition {
    /// The position.
    pub lsn: Lsn,
    /// The timeline that it lies on.
    pub timeline: Timeline,
}

/// A tablespace of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID; `None` for the data directory itself.
    pub oid: Option<u32>,
    /// Where it lies on the server; `None` for the data directory.
    pub location: Option<PathBuf>,
    /// About how large it is, where progress was asked for. The server rounds to 1 KiB, and it changes while it is copied.
    pub bytes_estimated: Option<u64>,
}

/// What happens in a base backup, in order. What is in the archives and in the manifest is [read](BaseBackup::read).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// An archive begins, and what came before it is complete.
    Archive {
        /// `base.tar`, or the OID of a tablespace and `.tar`; with `.gz`, `.lz4` or `.zst` behind it when the server compresses.
        file: String,
        /// Which tablespace it is: an index of [`BaseBackup::tablespaces`].
        tablespace: usize,
    },
    /// The backup manifest begins.
    Manifest,
    /// The log up to here makes the copy consistent. The server may still fail after that, so ask for the next event.
    End(WalPosition),
}

/// A base backup that is being received. Dropping it closes the connection, upon which the server gives up.
#[derive(Debug)]
pub struct BaseBackup {
    connection: Connection,
    start: WalPosition,
    tablespaces: Vec<Tablespace>,
    typed: bool,
    manifest_wanted: bool,
    state: State,
    /// Events that came at once and have not been asked for.
    ready: VecDeque<BackupEvent>,
    /// Which tablespaces have come, by their index.
    seen: Vec<bool>,
    manifest_seen: bool,
    ended: bool,
    /// What the archive has behind what the server sent.
    tail: &'static [u8],
    progress: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is open.
    Between,
    /// In a `CopyOut` of version 15+, nothing has begun.
    Open,
    Archive,
    Manifest,
    /// It is over: well or badly.
    Over,
}

impl Connection {
    /// Starts a base backup and waits for its checkpoint. With [`Checkpoint::Spread`](super::Checkpoint) that can take minutes.
    ///
    /// Dropping the future closes the connection. With it goes the connection when this fails, too.
    ///
    /// # Errors
    /// `Config` for options that the server's version does not have; `Source` with the server's message, or when the connection breaks.
    pub async fn base_backup(mut self, options: &BaseBackupOptions) -> Result<BaseBackup> {
        let command = options.command(self.server_major()?)?;
        let typed = self.server_major()? >= OPTIONS_IN_PARENTHESES;
        self.begin(&command).await?;
        let starts = self.result().await?;
        let [start] = <[_; 1]>::try_from(starts).map_err(|_| confused_by("its base backup has no start"))?;
        let start = position(start)?;
        let tablespaces = self.result().await?.into_iter().map(tablespace).collect::<Result<Vec<_>>>()?;
        if tablespaces.iter().filter(|tablespace| tablespace.oid.is_none()).count() != 1 {
            return Err(confused_by("its base backup has not exactly one data directory"));
        }
        let seen = vec![false; tablespaces.len()];
        Ok(BaseBackup {
            connection: self,
            start,
            tablespaces,
            typed,
            manifest_wanted: options.manifest.is_some(),
            state: State::Between,
            ready: VecDeque::new(),
            seen,
            manifest_seen: false,
            ended: false,
            tail: &[],
            progress: 0,
        })
    }

    /// The rows of one result of several.
    async fn result(&mut self) -> Result<Vec<Vec<Option<Bytes>>>> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while bytes < super::RESULT_BYTES_MAX {
            match self.answer(FAILED).await? {
                Answer::Row(row) => {
                    bytes += row.buffer().len() + 64;
                    rows.push(columns(&row)?);
                }
                Answer::Complete => return Ok(rows),
                _ => return Err(confused_by("its base backup does not begin as one does")),
            }
        }
        Err(confused_by("its base backup begins with endless rows"))
    }
}

const FAILED: &str = "the base backup failed";

impl BaseBackup {
    /// Where it starts: the log from here on is needed.
    pub fn start(&self) -> WalPosition {
        self.start
    }

    /// All tablespaces, the data directory among them, in the server's order.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// The server that is backed up.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// So many bytes of the cluster have been sent, before any compression. Version 15 and later say so about once a second.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// The next event; `None` after the last, when all is complete and the server has said so. What has not been read of an archive is
    /// passed over. Cancel safe.
    ///
    /// # Errors
    /// `Source` with the server's message, or when the connection breaks; nothing comes after that. Page checksums that are wrong are an error
    /// with SQLSTATE `XX001` *after* all data, the manifest and [`BackupEvent::End`], and were notices before.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>> {
        loop {
            // Of whatever archive was passed over.
            self.tail = &[];
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.state == State::Over {
                return Ok(None);
            }
            let received = self.connection.next_answer().await;
            self.follow(received)?;
        }
    }

    /// Reads what comes next of the archive, or of the manifest, into `room`, from the socket where it can; how many bytes that were. 0 when
    /// it has ended, when there is no room, and after an error. Cancel safe.
    ///
    /// From a Unix socket that a server keeps filling it sleeps for a tenth of a millisecond between reads, on the thread that polls it.
    ///
    /// # Errors
    /// As of [`next`](Self::next).
    pub async fn read(&mut self, room: &mut [u8]) -> Result<usize> {
        let kind = self.typed.then_some(ARCHIVE_DATA);
        while !room.is_empty() && self.ready.is_empty() && matches!(self.state, State::Archive | State::Manifest) {
            let received = match self.connection.next_answer_into(kind, room).await {
                Ok(Copied::Data(n)) => return Ok(n),
                Ok(Copied::Instead(answer)) => Ok(answer),
                Err(error) => Err(error),
            };
            self.follow(received)?;
        }
        let n = self.tail.len().min(room.len());
        let (tail, rest) = self.tail.split_at(n);
        room[..n].copy_from_slice(tail);
        self.tail = rest;
        Ok(n)
    }

    /// Makes of what was received what it means here. An error is the end.
    fn follow(&mut self, received: Result<Result<Answer, ServerMessage>>) -> Result<()> {
        let taken = received.and_then(|answer| match answer {
            Ok(answer) => self.take(answer),
            Err(message) => Err(message.into_error(FAILED)),
        });
        taken.inspect_err(|_| self.state = State::Over)
    }

    /// The connection again, for another command. Waits for the server to be ready.
    ///
    /// # Errors
    /// `Source` when it is in the middle of the backup, or gone.
    pub async fn into_connection(mut self) -> Result<Connection> {
        self.connection.settle().await?;
        Ok(self.connection)
    }

    /// Makes events of a piece of the answer.
    fn take(&mut self, answer: Answer) -> Result<()> {
        match (answer, self.state) {
            (Answer::CopyOut, State::Between) if self.ended => {
                Err(confused_by("its base backup goes on after its end"))
            }
            (Answer::CopyOut, State::Between) if self.typed => {
                self.state = State::Open;
                Ok(())
            }
            (Answer::CopyOut, State::Between) => self.untyped_begins(),
            (Answer::CopyData(data), State::Open | State::Archive | State::Manifest) if self.typed => self.typed(data),
            // Nobody reads it.
            (Answer::CopyData(_), State::Archive | State::Manifest) => Ok(()),
            (Answer::CopyDone, state @ (State::Open | State::Archive | State::Manifest)) => {
                if state == State::Archive && !self.typed {
                    self.tail = &TAR_END;
                }
                self.state = State::Between;
                Ok(())
            }
            (Answer::Row(row), State::Between) if !self.ended => {
                self.complete()?;
                self.ended = true;
                self.ready.push_back(BackupEvent::End(position(columns(&row)?)?));
                Ok(())
            }
            (Answer::Complete, State::Between) => Ok(()),
            (Answer::Ready, State::Between) if self.ended => {
                self.state = State::Over;
                Ok(())
            }
            (Answer::Ready, _) => Err(confused_by("its base backup stops before its end")),
            _ => Err(confused_by("its base backup is out of order")),
        }
    }

    /// Refuses an end before everything was there.
    fn complete(&self) -> Result<()> {
        match !self.seen.contains(&false) && self.manifest_seen == self.manifest_wanted {
            true => Ok(()),
            false => Err(confused_by("its base backup ends without all archives")),
        }
    }

    /// The archives of versions 13 and 14 come in the order of the tablespaces, then the manifest.
    fn untyped_begins(&mut self) -> Result<()> {
        let Some(tablespace) = self.seen.iter().position(|seen| !seen) else { return self.manifest_begins() };
        let file = match self.tablespaces[tablespace].oid {
            Some(oid) => format!("{oid}.tar"),
            None => "base.tar".to_owned(),
        };
        self.archive_begins(file, tablespace);
        Ok(())
    }

    fn archive_begins(&mut self, file: String, tablespace: usize) {
        self.seen[tablespace] = true;
        self.state = State::Archive;
        self.ready.push_back(BackupEvent::Archive { file, tablespace });
    }

    fn manifest_begins(&mut self) -> Result<()> {
        if self.manifest_seen || !self.manifest_wanted {
            return Err(confused_by("its base backup has a manifest that nobody asked for"));
        }
        self.manifest_seen = true;
        self.state = State::Manifest;
        self.ready.push_back(BackupEvent::Manifest);
        Ok(())
    }

    /// A message of version 15+ ("BASE_BACKUP" in "Streaming Replication Protocol").
    fn typed(&mut self, mut data: Bytes) -> Result<()> {
        let malformed = || confused_by("a message of its base backup is malformed");
        match data.try_get_u8().map_err(|_| malformed())? {
            // Nobody reads it.
            ARCHIVE_DATA if matches!(self.state, State::Archive | State::Manifest) => Ok(()),
            b'p' => {
                self.progress = data.try_get_u64().map_err(|_| malformed())?;
                Ok(())
            }
            b'n' => {
                let file = text(c_string(&mut data).ok_or_else(malformed)?)?;
                let location = c_string(&mut data).ok_or_else(malformed)?;
                let tablespace = self.tablespace_of(&file, &location).ok_or_else(malformed)?;
                self.archive_begins(file, tablespace);
                Ok(())
            }
            b'm' => self.manifest_begins(),
            _ => Err(malformed()),
        }
    }

    /// Which tablespace an archive is, one that has not come yet. It must not be able to name a path.
    fn tablespace_of(&self, file: &str, location: &Bytes) -> Option<usize> {
        let stem = file.split('.').next()?;
        let oid = if location.is_empty() && stem == "base" { None } else { Some(stem.parse().ok()?) };
        let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        let index = self.tablespaces.iter().position(|tablespace| tablespace.oid == oid)?;
        (plain && !self.seen[index]).then_some(index)
    }
}

/// Bytes up to a zero byte, which is taken too.
fn c_string(data: &mut Bytes) -> Option<Bytes> {
    let end = data.iter().position(|&byte| byte == 0)?;
    let string = data.split_to(end);
    data.advance(1);
    Some(string)
}

fn position(row: Vec<Option<Bytes>>) -> Result<WalPosition> {
    let [lsn, timeline] = leading(row)?;
    Ok(WalPosition { lsn: read(lsn, "a position")?, timeline: timeline_of(timeline)? })
}

fn tablespace(row: Vec<Option<Bytes>>) -> Result<Tablespace> {
    let [oid, location, size] = leading(row)?;
    Ok(Tablespace {
        oid: oid.map(|oid| read(Some(oid), "an OID")).transpose()?,
        location: location.map(|bytes| PathBuf::from(OsString::from_vec(bytes.to_vec()))),
        bytes_estimated: size
            .map(|kib| read::<u64>(Some(kib), "a size"))
            .transpose()?
            .map(|kib| kib.saturating_mul(1024)),
    })
}
