//! `restore_command`: a program and its arguments, as a line for the shell that PostgreSQL starts.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The program that fetches files of the archive: PostgreSQL runs it by `sh -c`, with `%f` replaced by the name of a file and `%p` by
/// where to put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreCommand {
    program: PathBuf,
    arguments: Vec<String>,
}

impl RestoreCommand {
    /// A command; `arguments` are taken literally and `%f %p` follow.
    ///
    /// # Errors
    /// `Config` when the program's path is not absolute: PostgreSQL runs it in the data directory.
    pub fn new(program: &Path, arguments: Vec<String>) -> Result<Self> {
        if !program.is_absolute() {
            return Err(Error::config(format!("the path of the program is not absolute: {}", program.display())));
        }
        Ok(Self { program: program.to_owned(), arguments })
    }

    /// The line, with every word in quotes that needs them.
    ///
    /// # Errors
    /// `Config` when a word is not UTF-8, or has characters that cannot stand in one line.
    pub fn to_shell(&self) -> Result<String> {
        let unusable = |word: &dyn std::fmt::Debug| {
            Error::config(format!("{word:?} cannot stand in restore_command"))
                .with_hint("paths in it must be UTF-8, in one line")
        };
        let program = self.program.to_str().ok_or_else(|| unusable(&self.program))?;
        let mut line = String::new();
        for word in std::iter::once(program).chain(self.arguments.iter().map(String::as_str)) {
            if word.contains(char::is_control) {
                return Err(unusable(&word));
            }
            line.push_str(&quoted(word).replace('%', "%%"));
            line.push(' ');
        }
        Ok(line + "%f %p")
    }
}

/// As one word of a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@=+%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
