//! Where words go: data to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};

use backup_core::{Error, ErrorKind, Result, Stage};
use bytesize::ByteSize;
use indicatif::MultiProgress;
use serde::Serialize;

use crate::args::Globals;
use crate::report;

/// Version of all JSON documents. Fields may be added within a version; none changes its meaning or disappears.
const JSON_VERSION: u32 = 1;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressStyle {
    /// Not at all.
    None,
    /// A bar that is drawn again and again.
    Bar,
    /// A line now and then.
    Lines,
}

/// The two streams that this program writes to.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    quiet: bool,
    pub(crate) progress: ProgressStyle,
    /// Owns the progress bar, which steps aside while something else is written.
    pub(crate) bars: MultiProgress,
}

impl Output {
    /// As the flags and the terminal demand.
    pub(crate) fn new(globals: &Globals) -> Self {
        let progress = match (globals.quiet || globals.no_progress, io::stderr().is_terminal()) {
            (true, _) => ProgressStyle::None,
            (false, true) => ProgressStyle::Bar,
            (false, false) => ProgressStyle::Lines,
        };
        Self { quiet: globals.quiet, progress, bars: MultiProgress::new() }
    }

    /// Says something that is worth knowing, on standard error; not with `--quiet`.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.bars.suspend(|| report::to_stderr(&format!("{}\n", text.as_ref())));
        }
    }

    /// Passes on what a child process said, on standard error.
    pub(crate) fn line_of_child(&self, line: &str) {
        self.bars.suspend(|| report::to_stderr(&format!("{line}\n")));
    }

    /// Warns, on standard error.
    pub(crate) fn warning(&self, text: impl AsRef<str>) {
        self.bars.suspend(|| report::warning(text.as_ref()));
    }

    /// Prints a table or a document on standard output. A reader that has gone away (`| head`) has seen enough.
    pub(crate) fn data(&self, text: &str) -> Result<()> {
        match write_stdout(text) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(stdout_failed),
        }
    }

    /// Prints a JSON document on standard output, with its version first.
    pub(crate) fn json(&self, document: &impl Serialize) -> Result<()> {
        #[derive(Serialize)]
        struct Versioned<'a, T> {
            version: u32,
            #[serde(flatten)]
            document: &'a T,
        }
        let mut text = serde_json::to_string_pretty(&Versioned { version: JSON_VERSION, document })
            .map_err(|e| Error::internal(Stage::Setup, "could not write JSON").with_source(e))?;
        text.push('\n');
        self.data(&text)
    }
}

/// Writes all of `text` to standard output.
pub(crate) fn write_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The error for a standard output that cannot be written to.
pub(crate) fn stdout_failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Sink, Stage::Sink, "could not write to standard output").with_source(error)
}

/// `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    ByteSize::b(count).display().iec().to_string()
}

/// Rows in columns as wide as their widest cell, the first row being the header. The last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let shown = |cell: &String| report::plain(cell).into_owned();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_cell() {
        let rows = [["ID", "SIZE"], ["a", "1.0 MiB"], ["long", "2 B"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "ID    SIZE\na     1.0 MiB\nlong  2 B\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!([0, 1, 1023, 1024, 3 << 30].map(bytes), ["0 B", "1 B", "1023 B", "1.0 KiB", "3.0 GiB"]);
    }
}
