//! The password file ("The Password File" in libpq's manual; `passwordFromFile` in `fe-connect.c`).

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Larger files are not read.
const BYTES_MAX: u64 = 16 << 20;

/// Who asks for a password. What names nothing here is called what libpq calls it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// A password file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PasswordFile {
    /// There is none.
    Absent,
    /// It is not used, and this is why: others could have read or written it.
    Refused(String),
    /// Its text.
    Read(Zeroizing<String>),
}

impl PasswordFile {
    pub(super) fn read(path: Option<PathBuf>) -> Self {
        let Some(path) = path else { return Self::Absent };
        match open(&path) {
            Ok(Some(file)) => file,
            Ok(None) => Self::Absent,
            Err(error) => Self::Refused(format!("the password file {} cannot be read: {error}", path.display())),
        }
    }

    /// The password of the first line that fits.
    pub(super) fn password(&self, wanted: Wanted<'_>) -> Option<Zeroizing<String>> {
        let Self::Read(text) = self else { return None };
        text.lines().filter(|line| !line.starts_with('#')).find_map(|line| fitting(line, wanted))
    }
}

fn open(path: &Path) -> io::Result<Option<PasswordFile>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if let Some(why) = objection(&metadata) {
        tracing::warn!(path = %path.display(), "the password file is ignored: {why}");
        return Ok(Some(PasswordFile::Refused(format!("the password file {} is ignored: {why}", path.display()))));
    }
    // Of the final size from the start: growing would leave copies of passwords behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    file.by_ref().take(metadata.len()).read_to_end(&mut bytes)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))?;
    Ok(Some(PasswordFile::Read(Zeroizing::new(text.to_owned()))))
}

fn objection(metadata: &Metadata) -> Option<String> {
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_file() {
        Some("it is not a plain file".to_owned())
    } else if mode & 0o077 != 0 {
        Some(format!("its mode is {mode:04o}, but nobody except its owner may have access: chmod 0600"))
    } else {
        (metadata.len() > BYTES_MAX).then(|| format!("it has {} bytes", metadata.len()))
    }
}

fn fitting(line: &str, wanted: Wanted<'_>) -> Option<Zeroizing<String>> {
    let port = wanted.port.to_string();
    let mut rest = line;
    for value in [wanted.host, &port, wanted.database, wanted.user] {
        rest = match rest.strip_prefix("*:") {
            Some(rest) => rest,
            None => strip_value(rest, value)?,
        };
    }
    let mut password = Zeroizing::new(String::with_capacity(rest.len()));
    let mut chars = rest.chars();
    while let Some(c) = chars.next().filter(|&c| c != ':') {
        password.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    Some(password)
}

/// What follows `value` and a colon; in the file, colons and backslashes of values have a backslash before them.
fn strip_value<'a>(line: &'a str, value: &str) -> Option<&'a str> {
    let mut rest = line.chars();
    for wanted in value.chars() {
        let c = match rest.next()? {
            '\\' => rest.next()?,
            ':' => return None,
            c => c,
        };
        if c != wanted {
            return None;
        }
    }
    rest.as_str().strip_prefix(':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: Wanted<'_> = Wanted { host: "db1", port: 5432, database: "replication", user: "backup" };

    fn password(text: &str, wanted: Wanted<'_>) -> Option<String> {
        PasswordFile::Read(Zeroizing::new(text.to_owned())).password(wanted).map(|password| (*password).clone())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let file = "#db1:5432:*:backup:comment\n\ndb1:5432:app:backup:of-app\n*:*:*:other:of-other\ndb1:*:replication:backup:mine\n*:*:*:*:any\n";
        assert_eq!(password(file, WANTED).unwrap(), "mine");
        assert_eq!(password(file, Wanted { database: "app", ..WANTED }).unwrap(), "of-app");
        assert_eq!(password(file, Wanted { host: "db2", ..WANTED }).unwrap(), "any");
        assert_eq!(password("db1:5432:replication:backup\n", WANTED), None, "a line without a password");
        assert_eq!(password("db1:5432:replication:backup:p\r\n", WANTED).unwrap(), "p");
    }

    #[test]
    fn colons_and_backslashes_are_escaped() {
        let wanted = Wanted { host: "::1", user: r"a\b", ..WANTED };
        assert_eq!(password(r"\:\:1:5432:*:a\\b:p\:q\\r:ignored", wanted).unwrap(), r"p:q\r");
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:s3cret\n").unwrap();
        for (mode, used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o660, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let file = PasswordFile::read(Some(path.clone()));
            assert_eq!(file.password(WANTED).is_some(), used, "{mode:o}");
            assert_eq!(matches!(file, PasswordFile::Refused(why) if why.contains("chmod 0600")), !used);
        }
        assert!(matches!(PasswordFile::read(Some(directory.path().into())), PasswordFile::Refused(_)));
        assert_eq!(PasswordFile::read(Some(directory.path().join("none"))), PasswordFile::Absent);
    }

    proptest! {
        #[test]
        fn whatever_is_escaped_is_found(host in "[a-z:\\\\*]{1,6}", secret in "[a-z:\\\\é*#]{1,8}") {
            let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
            let line = format!("x:1:a:b:no\n{}:5432:*:backup:{}\n", escape(&host), escape(&secret));
            prop_assert_eq!(password(&line, Wanted { host: &host, ..WANTED }), Some(secret));
        }

        #[test]
        fn no_file_panics(text in "[a:*\\\\\n#é]{0,40}") {
            let _ = password(&text, WANTED);
        }
    }
}
