//! Errors as people read them: what failed, why, and what to try next.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::PanicHookInfo;

use backup_core::Error;

use crate::style::{BOLD, ERROR, HINT, WARNING};

/// Text from elsewhere (a manifest that nobody has proved, a server's message) with its control characters spelled out: it
/// must neither draw on the terminal nor look like other text. For one line, or one cell of a table.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let spell = |c: char| if is_unsafe(c) { c.escape_default().collect() } else { c.to_string() };
    Cow::Owned(text.chars().map(spell).collect())
}

/// Like [`plain`], for text that may have several lines: all but the first are indented, so none looks like one of ours.
fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n    ")
}

/// Control characters, and those that change the direction of the text around them.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error with its causes, in one line.
pub(crate) fn in_one_line(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(causes(error)).collect::<Vec<_>>().join(": ")
}

/// Prints an error with its causes, hints and failed clean-ups.
pub(crate) fn error(error: &Error) {
    to_stderr(&render(error));
}

/// Prints a warning of one line.
pub(crate) fn warning(message: &str) {
    to_stderr(&format!("{WARNING}warning:{WARNING:#} {}\n", plain(message)));
}

/// Writes styled text, without its colours where they do not belong. Nobody is left to tell when standard error is closed.
pub(crate) fn to_stderr(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// The error as `to_stderr` takes it.
pub(crate) fn render(error: &Error) -> String {
    let mut text = format!("{ERROR}error:{ERROR:#} {}\n", plain_lines(&error.to_string()));
    let mut hints = Vec::new();
    tell_causes(error, &mut text, &mut hints);
    let mut cleanup = error.cleanup();
    while let Some(failed) = cleanup {
        let _ = writeln!(text, "  and then, while cleaning up: {}", plain_lines(&failed.to_string()));
        tell_causes(failed, &mut text, &mut hints);
        cleanup = failed.cleanup();
    }
    for hint in hints {
        let _ = writeln!(text, "{HINT}hint:{HINT:#} {}", plain_lines(hint));
    }
    text
}

fn tell_causes<'a>(error: &'a Error, text: &mut String, hints: &mut Vec<&'a str>) {
    for message in causes(error) {
        let _ = writeln!(text, "  caused by: {}", plain_lines(&message));
    }
    hints.extend(error.hint());
    hints.extend(chain(error).filter_map(|cause| cause.downcast_ref::<Error>()).filter_map(Error::hint));
}

/// What the causes of `error` say. Some crates repeat their cause in their own message; said once is enough.
fn causes(error: &Error) -> impl Iterator<Item = String> {
    let mut shown = error.to_string();
    chain(error).map(ToString::to_string).filter(move |message| {
        let is_new = !shown.contains(message);
        if is_new {
            shown.clone_from(message);
        }
        is_new
    })
}

fn chain<'a>(error: &'a Error) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |cause: &&'a (dyn StdError + 'static)| (*cause).source())
}

/// What is printed instead of Rust's own words when the program has a bug.
pub(crate) fn panic(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
    to_stderr(&format!(
        "{ERROR}error:{ERROR:#} internal error: {message}{place}\n{HINT}hint:{HINT:#} this is a bug in backup {}; please report it \
         with the command that you ran; {BOLD}BACKUP_LOG=debug{BOLD:#} tells more\n",
        env!("CARGO_PKG_VERSION")
    ));
}

#[cfg(test)]
mod tests {
    use backup_core::{ErrorKind, Stage};

    use super::*;

    #[test]
    fn nothing_from_a_repository_draws_on_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\nd\u{202e}e"), "a\\u{1b}[2Jb\\u{9b}c\\nd\\u{202e}e");
        let forged = Error::new(ErrorKind::Storage, Stage::Fetch, "bad\nhint: run this");
        assert!(render(&forged).ends_with("bad\n    hint: run this\n"));
        let error = Error::new(ErrorKind::Storage, Stage::Fetch, "bad\x1b]0;x\x07 name");
        assert!(!anstream::adapter::strip_str(&render(&error)).to_string().contains('\x1b'));
        assert!(render(&error).contains("\\u{1b}]0;x"));
    }

    #[test]
    fn causes_hints_and_failed_cleanups_are_told_once_each() {
        let refused = std::io::Error::other("connection refused");
        let inner = Error::new(ErrorKind::Unavailable, Stage::Upload, "could not reach s3://bucket")
            .with_source(refused)
            .with_hint("is the endpoint right?");
        let outer = Error::new(ErrorKind::Unavailable, Stage::Upload, "the backup was not stored")
            .with_source(inner)
            .with_cleanup(
                Error::new(ErrorKind::Storage, Stage::Upload, "could not remove app/x.00000.vol")
                    .with_source(std::io::Error::other("permission denied"))
                    .with_hint("remove it by hand"),
            );
        let text = anstream::adapter::strip_str(&render(&outer)).to_string();
        assert_eq!(
            text,
            "error: the backup was not stored\n  caused by: could not reach s3://bucket\n  caused by: connection refused\n  \
             and then, while cleaning up: could not remove app/x.00000.vol\n  caused by: permission denied\nhint: is the endpoint right?\n\
             hint: remove it by hand\n"
        );
    }

    #[test]
    fn a_message_that_holds_its_cause_is_not_repeated() {
        let error = Error::config("bad file: no such key").with_source(std::io::Error::other("no such key"));
        assert!(!render(&error).contains("caused by"));
    }
}
