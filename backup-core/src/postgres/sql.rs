//! What is said to `psql` before and after a dump in SQL, so that it can neither commit early nor wander off. No I/O.
//!
//! `psql --single-transaction` does not keep its promise with every dump: `pg_dump` puts `BEGIN` and `COMMIT` around large objects,
//! and that commits all that came before.
//!
//! Here the `search_path` is the database's own, as the SQL may count on it. So every name is qualified and every operator too: what
//! the database's owner put first on the path must not run with the rights of whoever restores.

use std::ffi::OsString;

use crate::encrypt::random;

/// The constraint that is violated until the dump was verified, and with which a `COMMIT` fails; `psql` shows its name.
pub(super) const OWN_COMMIT: &str = "the_sql_commits_by_itself";

/// Said first.
const PROLOGUE: &str = "SELECT pg_catalog.current_database() AS backup_target \\gset\n";

/// Makes any `COMMIT` fail until [`RELEASE`].
const GUARD: &str = "CREATE TEMPORARY TABLE pg_temp.backup_unverified (n int CONSTRAINT the_sql_commits_by_itself UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP;\n\
    INSERT INTO pg_temp.backup_unverified VALUES (1), (1);\n";

/// Said last, first of all. The SQL may have changed how `psql` takes errors, or have gone on after one: nothing after this may fail
/// unnoticed, nothing before it may have.
const ASK: &str = "\n\\set ON_ERROR_STOP on\n\\set AUTOCOMMIT on\n\
    SELECT CASE WHEN :'LAST_ERROR_SQLSTATE' OPERATOR(pg_catalog.=) '00000' THEN 1 ELSE \
    CAST('the SQL went on after an error: ' OPERATOR(pg_catalog.||) :'LAST_ERROR_MESSAGE' AS int) END;\n\
    SELECT CASE WHEN pg_catalog.current_database() OPERATOR(pg_catalog.=) :'backup_target' THEN 1 ELSE \
    CAST('the SQL went to ' OPERATOR(pg_catalog.||) pg_catalog.current_database() AS int) END;\n";

/// Lets the transaction of [`GUARD`] commit.
const RELEASE: &str = "DELETE FROM pg_temp.backup_unverified;\n";

/// Refused inside a transaction: one that the SQL left open would be rolled back at the end of the session. Names nothing that could be
/// found on a search path.
const OUTSIDE: &str = "DISCARD ALL;\n";

/// How `psql` is run.
pub(super) struct Script {
    pub(super) args: Vec<OsString>,
    pub(super) prologue: String,
    pub(super) epilogue: String,
    /// The line that `psql` writes to standard output once it has read all of the SQL, and not before: the SQL cannot know it.
    ///
    /// Its status alone proves little. It is 0 too after `\quit`, or when the end was taken for part of a string, of the rows of a
    /// `COPY`, or of an `\if` that is false.
    pub(super) token: Option<String>,
}

impl Script {
    pub(super) fn new(single_transaction: bool) -> Self {
        let mut args: Vec<OsString> =
            ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"].iter().map(Into::into).collect();
        let (prologue, last) = if single_transaction {
            args.push("--single-transaction".into());
            (format!("{PROLOGUE}{GUARD}"), RELEASE)
        } else {
            (PROLOGUE.to_owned(), OUTSIDE)
        };
        let token = format!("backup-{:032x}", u128::from_le_bytes(random::bytes()));
        // On a line of its own, whatever was written before.
        let epilogue = format!("{ASK}{last}\\echo\n\\echo {token}\n");
        Self { args, prologue, epilogue, token: Some(token) }
    }
}

/// Why a stream that is no archive in custom format cannot be SQL either, and what to do; `None` when it may be.
pub(super) fn no_sql(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const COMPRESSED: &str =
        "restore it with --to-stdout and decompress it there; save what is not compressed, as this program does that";
    let begins = |magic: &[u8]| head.starts_with(magic);
    if begins(b"\x1f\x8b") {
        return Some(("compressed with gzip", COMPRESSED));
    }
    if begins(b"\x28\xb5\x2f\xfd") {
        return Some(("compressed with zstd", COMPRESSED));
    }
    if begins(b"BZh") || begins(b"\xfd7zXZ\0") || begins(b"\x04\x22\x4d\x18") {
        return Some(("compressed", COMPRESSED));
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some((
            "a tar archive",
            "restore it with --to-stdout, into pg_restore if pg_dump -Ft made it; of pg_dump's formats, custom (-Fc) and plain can be \
             loaded",
        ));
    }
    // Neither SQL nor the rows of a COPY in text can hold a zero byte.
    head.contains(&0)
        .then_some(("neither SQL nor a pg_dump archive in custom format", "restore it with --to-stdout or --to DIR"))
}

/// Whether the SQL chooses its database by itself, as the output of `pg_dumpall` and of `pg_dump --create` does.
pub(super) fn connects_elsewhere(head: &[u8]) -> bool {
    head.split(|&byte| byte == b'\n').any(|line| line.starts_with(b"\\connect ") || line.starts_with(b"\\c "))
}

/// What the first lines of `pg_dump`'s SQL set.
pub(super) fn client_encoding(head: &[u8]) -> Option<&str> {
    const SET: &str = "SET client_encoding = '";
    head.split(|&byte| byte == b'\n')
        .take(100)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .find_map(|line| line.strip_prefix(SET)?.split_once('\'').map(|(encoding, _)| encoding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_carries_the_name_that_is_looked_for() {
        assert!(GUARD.contains(OWN_COMMIT));
    }

    #[test]
    fn nothing_is_looked_up_on_a_search_path() {
        let said = [true, false].map(Script::new).map(|script| script.prologue + &script.epilogue).concat();
        let qualified = said.replace("OPERATOR(pg_catalog.=)", "").replace("OPERATOR(pg_catalog.||)", "");
        assert!(!qualified.contains(['=', '|']), "{qualified}");
        assert_eq!(said.matches("current_database()").count(), said.matches("pg_catalog.current_database()").count());
        assert_eq!(said.matches("backup_unverified").count(), said.matches("pg_temp.backup_unverified").count());
    }

    #[test]
    fn the_end_of_one_script_is_not_the_end_of_another() {
        let tokens = [true, false].map(|single| Script::new(single).token.unwrap());
        assert_ne!(tokens[0], tokens[1]);
    }

    #[test]
    fn what_cannot_be_sql_is_recognised() {
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, what) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip"),
            (b"\x28\xb5\x2f\xfd\x04", "zstd"),
            (b"BZh9", "compressed"),
            (&tar, "tar"),
            (b"\x7fELF\0", "neither"),
        ] {
            assert!(no_sql(head).unwrap().0.contains(what), "{what}");
        }
        for sql in ["", "SELECT 1;", "\u{feff}-- \u{1f40c}\n", "ustar"] {
            assert_eq!(no_sql(sql.as_bytes()), None, "{sql}");
        }
    }

    #[test]
    fn the_encoding_of_an_sql_dump_is_found() {
        assert_eq!(client_encoding(b"--\nSET x = 0;\nSET client_encoding = 'LATIN1';\n"), Some("LATIN1"));
        assert_eq!(client_encoding(b"CREATE TABLE t ();"), None);
    }

    #[test]
    fn sql_that_chooses_its_database_is_recognised() {
        assert!(connects_elsewhere(b"CREATE DATABASE x;\n\\connect x\n"));
        assert!(!connects_elsewhere(b"\\restrict abc\nSELECT '\\connect x';\n"));
    }
}
