//! `pg_dump` as a source.

use std::ffi::OsString;
use std::path::PathBuf;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::ConnInfo;
use super::programs::{Mode, Programs};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::source::{CommandOptions, CommandSource, LineCallback, Piece, Source};

/// What is asked of the server about the database; one row, one column, JSON.
const DESCRIBE: &str = "\
SELECT pg_catalog.json_build_object(
    'database', datname,
    'server_version', pg_catalog.current_setting('server_version'),
    'encoding', pg_catalog.pg_encoding_to_char(encoding),
    'collation', datcollate,
    'character_type', datctype,
    'size_bytes', pg_catalog.pg_database_size(oid),
    'extensions', (SELECT coalesce(pg_catalog.json_agg(extname ORDER BY extname), '[]') FROM pg_catalog.pg_extension))
FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()";

/// What to dump, and with what.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DumpOptions {
    /// The database.
    pub conninfo: ConnInfo,
    /// Where `pg_dump` and `psql` are; found in `PATH` by default.
    pub bin_dir: Option<PathBuf>,
    /// More arguments for `pg_dump`, such as `--exclude-table-data=logs`.
    pub extra_args: Vec<OsString>,
}

/// What a dump is of: kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DumpDetails {
    /// The database's name.
    pub database: String,
    /// The server's version, such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub server_version: String,
    /// The database's encoding.
    pub encoding: String,
    /// The database's `LC_COLLATE`.
    pub collation: String,
    /// The database's `LC_CTYPE`.
    pub character_type: String,
    /// What the database occupied on the server.
    pub size_bytes: u64,
    /// Extensions that the target of a restore must have.
    pub extensions: Vec<String>,
    /// The version of `pg_dump`; the `pg_restore` that loads the dump must not be older.
    #[serde(default)]
    pub pg_dump_version: String,
}

impl DumpOptions {
    /// Dumps the database of `conninfo`.
    pub fn new(conninfo: ConnInfo) -> Self {
        Self { conninfo, bin_dir: None, extra_args: Vec::new() }
    }

    /// Asks the server and the programs what the dump will be of. Fails early when the server cannot be reached.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// `Config` when a program is missing, `Source` when the server refuses; the cause is in its own words.
    pub async fn details(&self) -> Result<DumpDetails> {
        let programs = self.programs();
        let json = programs.psql(&self.conninfo, Mode::Statements, DESCRIBE).await?;
        let details: DumpDetails = serde_json::from_str(&json)
            .map_err(|e| programs.error("psql answered something unexpected").with_source(e))?;
        Ok(DumpDetails { pg_dump_version: programs.version("pg_dump").await?, ..details })
    }

    /// Starts `pg_dump`. Its stderr goes to `stderr`, or is inherited.
    ///
    /// # Errors
    /// `Config` when it cannot be started.
    pub fn source(&self, stderr: Option<LineCallback>) -> Result<DumpSource> {
        let mut command = self.programs().connected("pg_dump", &self.conninfo)?;
        // Compression is the pipeline's: zlib inside would make it slow and ours useless.
        command.args(["--format=custom", "--compress=0"]).args(&self.extra_args);
        let options = CommandOptions { stderr, ..CommandOptions::default() };
        Ok(DumpSource { command: CommandSource::spawn_with(command, options)?, empty: true })
    }

    fn programs(&self) -> Programs {
        Programs { conninfo: self.conninfo.clone(), bin_dir: self.bin_dir.clone(), stage: Stage::Source }
    }
}

/// A running `pg_dump`.
#[derive(Debug)]
pub struct DumpSource {
    command: CommandSource,
    empty: bool,
}

impl DumpSource {
    async fn pull(&mut self, buffer: Buffer) -> Result<Option<Piece>> {
        let piece = self.command.next(buffer).await?;
        if piece.is_none() && self.empty {
            return Err(Error::new(ErrorKind::Source, Stage::Source, "pg_dump wrote nothing to its standard output")
                .with_hint("leave --file out of its arguments"));
        }
        self.empty = false;
        Ok(piece)
    }
}

impl Source for DumpSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.pull(buffer).boxed()
    }
}
