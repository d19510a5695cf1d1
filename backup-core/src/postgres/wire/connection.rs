//! A session with a server: simple queries, and what the protocol does around them.

use std::fmt;

use bytes::Bytes;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

use fallible_iterator::FallibleIterator;

use super::channel::{Channel, Received, confused, confused_by};
use super::connect;
use super::frame::Incoming;
use super::message::ServerMessage;
use super::options::ConnectOptions;
use super::parameters::Parameters;
use crate::error::{Error, ErrorKind, Result, Stage};

/// As much of all results of a query is taken, headers included.
pub const RESULT_BYTES_MAX: usize = 32 << 20;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// SQL in the database of the options.
    Sql,
    /// Physical replication: base backups, WAL. In `pg_hba.conf` and password files its database is called `replication`.
    Replication,
    /// Replication commands and SQL in the database of the options (`replication=database`).
    ReplicationDatabase,
}

/// A row of a simple query, in text.
pub type Row = Vec<Option<String>>;

/// A session with a server. Dropping it closes the socket; the server then ends what it was doing.
///
/// `Send`, for one user at a time. After an error of the server it can be used again; after any other error, or when a future of one of its
/// methods was dropped, it answers with errors only.
pub struct Connection {
    pub(super) channel: Channel,
    /// Between a command and the server's `ReadyForQuery`, and for ever if that never came.
    busy: bool,
}

/// What came before the end of a command's answer.
pub(super) enum Answer {
    Row(DataRowBody),
    /// The end of one result, of which a query with several statements has several.
    Complete,
    CopyOut,
    CopyBoth,
    CopyData(Bytes),
    CopyDone,
    /// The end of everything.
    Ready,
}

/// What came where copy data was awaited.
pub(super) enum Copied {
    /// So many bytes of it.
    Data(usize),
    /// Another piece of the answer, or the server's error.
    Instead(Result<Answer, ServerMessage>),
}

impl Connection {
    /// Connects to the first of the hosts that is there, lets us in and has the wanted state (`target_session_attrs`).
    ///
    /// Each address may take as long as the options say ([`ConnectOptions::timeout`]). Not cancel safe, in that a connection which has been
    /// begun is closed; nothing else is left.
    ///
    /// # Errors
    /// `Config` when the options cannot work there: refused passwords, unknown databases, certificates that are not as demanded. `Source` when
    /// no server could be reached. With several hosts the error is about the last, and those before are named in it.
    pub async fn connect(options: &ConnectOptions, mode: Mode) -> Result<Self> {
        connect::connect(options, mode).await
    }

    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, busy: false }
    }

    /// What the server reports of its settings.
    pub fn parameters(&self) -> &Parameters {
        self.channel.parameters()
    }

    /// The server's version: 150004 is 15.4.
    ///
    /// # Errors
    /// `Source` when it did not say one.
    pub fn server_version_num(&self) -> Result<u32> {
        self.parameters().server_version_num().ok_or_else(|| confused_by("it reports no version"))
    }

    /// The server's major version.
    ///
    /// # Errors
    /// `Source` when it did not say one.
    pub fn server_major(&self) -> Result<u32> {
        Ok(self.server_version_num()? / 10_000)
    }

    /// Runs SQL, or a replication command, by the simple protocol; returns the rows of all its statements, one after the other.
    ///
    /// Several statements run in one transaction unless they say otherwise. Not cancel safe: the connection cannot be used again.
    ///
    /// # Errors
    /// `Source` with the server's message ([`server_message`](super::server_message)) or when the connection breaks; also when the result is larger than
    /// [`RESULT_BYTES_MAX`], is not UTF-8 or wants data from us (`COPY FROM STDIN`), which is `Config`.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        let rows = self.rows("the query failed", sql).await?;
        rows.into_iter().map(|row| row.into_iter().map(|value| value.map(text).transpose()).collect()).collect()
    }

    /// Ends the session in order; dropping the connection does so less politely.
    ///
    /// # Errors
    /// `Source` when the connection is broken already.
    pub async fn close(mut self) -> Result<()> {
        self.channel.say(|out| {
            frontend::terminate(out);
            Ok(())
        })?;
        self.channel.send().await;
        Ok(())
    }

    /// Runs a command to its end; returns all rows, in the bytes in which they came. `what` says what failed, if it does.
    pub(super) async fn rows(&mut self, what: &str, command: &str) -> Result<Vec<Vec<Option<Bytes>>>> {
        self.begin(command).await?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        loop {
            match self.answer(what).await? {
                Answer::Row(row) => {
                    let row = columns(&row)?;
                    bytes += row.iter().flatten().map(Bytes::len).sum::<usize>() + (row.len() + 1) * ROW_COST;
                    rows.push(row);
                }
                // What COPY TO STDOUT sends is no rows; it is let pass.
                Answer::Complete | Answer::CopyOut | Answer::CopyDone => bytes += ROW_COST,
                Answer::CopyData(data) => bytes += data.len() + ROW_COST,
                Answer::CopyBoth => return Err(confused_by("it wants to stream without having been asked to")),
                Answer::Ready => return Ok(rows),
            }
            if bytes > RESULT_BYTES_MAX {
                return Err(Error::new(
                    ErrorKind::Source,
                    Stage::Source,
                    format!("{what}: its result has more than {RESULT_BYTES_MAX} bytes"),
                ));
            }
        }
    }

    /// Sends a command whose answer will be read by [`answer`](Self::answer).
    pub(super) async fn begin(&mut self, command: &str) -> Result<()> {
        if self.busy {
            let message = "this connection to PostgreSQL was left in the middle of something";
            return Err(Error::internal(Stage::Source, message));
        }
        self.channel.say(|out| frontend::query(command, out))?;
        self.busy = true;
        self.channel.send().await;
        Ok(())
    }

    /// The next piece of the answer. An error of the server is returned once the server is ready for the next command, or gone.
    pub(super) async fn answer(&mut self, what: &str) -> Result<Answer> {
        match self.next_answer().await? {
            Ok(answer) => Ok(answer),
            Err(message) => {
                self.drain().await;
                Err(message.into_error(what))
            }
        }
    }

    /// The same, with the server's error as soon as it is there. Cancel safe.
    pub(super) async fn next_answer(&mut self) -> Result<Result<Answer, ServerMessage>> {
        loop {
            let incoming = self.channel.receive().await?;
            if let Some(answer) = self.understand(incoming)? {
                return Ok(answer);
            }
        }
    }

    /// The same where copy data is awaited whose first byte is `kind`, if that is given: what stands behind it goes to `room`.
    pub(super) async fn next_answer_into(&mut self, kind: Option<u8>, room: &mut [u8]) -> Result<Copied> {
        loop {
            match self.channel.receive_into(kind, room).await? {
                Received::Copied(n) => return Ok(Copied::Data(n)),
                Received::Other(incoming) => {
                    if let Some(answer) = self.understand(incoming)? {
                        return Ok(Copied::Instead(answer));
                    }
                }
            }
        }
    }

    /// What a message says of the answer, if anything.
    fn understand(&mut self, incoming: Incoming) -> Result<Option<Result<Answer, ServerMessage>>> {
        let Incoming::Message(message) = incoming else { return Ok(Some(Ok(Answer::CopyBoth))) };
        Ok(Some(Ok(match message {
            Message::DataRow(row) => Answer::Row(row),
            Message::RowDescription(_) => return Ok(None),
            Message::CommandComplete(_) | Message::EmptyQueryResponse => Answer::Complete,
            Message::CopyOutResponse(_) => Answer::CopyOut,
            Message::CopyData(data) => Answer::CopyData(data.into_bytes()),
            Message::CopyDone => Answer::CopyDone,
            Message::ReadyForQuery(_) => {
                self.busy = false;
                Answer::Ready
            }
            Message::ErrorResponse(body) => return Ok(Some(Err(ServerMessage::read(body.fields())))),
            Message::CopyInResponse(_) => {
                let message = "the query wants data to be copied in, which is not possible here";
                return Err(Error::new(ErrorKind::Config, Stage::Source, message));
            }
            _ => return Err(confused_by("its answer has a message that does not belong there")),
        })))
    }

    /// Waits until the server is ready for the next command, if it is not.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if self.busy {
            self.drain().await;
        }
        match self.busy {
            true => Err(confused_by("it is not ready for another command")),
            false => Ok(()),
        }
    }

    /// After an error the server skips to the end of the command. A FATAL one closes the connection instead.
    pub(super) async fn drain(&mut self) {
        let mut bytes = 0;
        while bytes < RESULT_BYTES_MAX {
            match self.next_answer().await {
                Ok(Ok(Answer::Ready)) | Err(_) => return,
                Ok(Ok(Answer::CopyData(data))) => bytes += data.len() + ROW_COST,
                Ok(Ok(Answer::Row(row))) => bytes += row.buffer().len() + ROW_COST,
                Ok(_) => bytes += ROW_COST,
            }
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("parameters", self.parameters())
            .field("busy", &self.busy)
            .finish_non_exhaustive()
    }
}

/// What a message, and each column, counts for besides its content, so that empty ones are not free: about what it costs to keep one.
const ROW_COST: usize = 64;

/// The columns of a row.
pub(super) fn columns(row: &DataRowBody) -> Result<Vec<Option<Bytes>>> {
    let buffer = row.buffer_bytes();
    row.ranges().map(|range| Ok(range.map(|range| buffer.slice(range)))).collect().map_err(confused)
}

/// A column as text.
pub(super) fn text(value: Bytes) -> Result<String> {
    String::from_utf8(value.into()).map_err(|_| confused_by("a value in its answer is not UTF-8"))
}
