//! What is said to `psql` before and after a dump in SQL, so that it can neither commit early nor wander off. No I/O.
//!
//! `psql --single-transaction` does not keep its promise with every dump: `pg_dump` puts `BEGIN` and `COMMIT` around large objects,
//! and that commits all that came before.
//!
//! Here the `search_path` is the database's own, as the SQL may count on it. So every name is qualified and every operator too: what
//! the database's owner put first on the path must not run with the rights of whoever restores.

use std::ffi::OsString;

/// The constraint that is violated until the dump was verified, and with which a `COMMIT` fails; `psql` shows its name.
pub(super) const OWN_COMMIT: &str = "the_sql_commits_by_itself";

/// Said first.
const PROLOGUE: &str = "SELECT pg_catalog.current_database() AS backup_target \\gset\n";

/// Makes any `COMMIT` fail until [`RELEASE`].
const GUARD: &str = "CREATE TEMPORARY TABLE pg_temp.backup_unverified (n int CONSTRAINT the_sql_commits_by_itself UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP;\n\
    INSERT INTO pg_temp.backup_unverified VALUES (1), (1);\n";

/// Said last: is this still the database that was meant?
const EPILOGUE: &str = "\nSELECT CASE WHEN pg_catalog.current_database() OPERATOR(pg_catalog.=) :'backup_target' THEN 1 ELSE \
    CAST('the SQL went to ' OPERATOR(pg_catalog.||) pg_catalog.current_database() AS int) END;\n";

/// The same, and lets the transaction commit.
const RELEASE: &str = "\nSELECT CASE WHEN pg_catalog.current_database() OPERATOR(pg_catalog.=) :'backup_target' THEN 1 ELSE \
    CAST('the SQL went to ' OPERATOR(pg_catalog.||) pg_catalog.current_database() AS int) END;\nDELETE FROM pg_temp.backup_unverified;\n";

/// How `psql` is run.
pub(super) struct Script {
    pub(super) args: Vec<OsString>,
    pub(super) prologue: String,
    pub(super) epilogue: &'static str,
}

impl Script {
    pub(super) fn new(single_transaction: bool) -> Self {
        let mut args: Vec<OsString> =
            ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"].iter().map(Into::into).collect();
        if !single_transaction {
            return Self { args, prologue: PROLOGUE.into(), epilogue: EPILOGUE };
        }
        args.push("--single-transaction".into());
        Self { args, prologue: format!("{PROLOGUE}{GUARD}"), epilogue: RELEASE }
    }
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
        assert!(RELEASE.starts_with(EPILOGUE));
    }

    #[test]
    fn nothing_is_looked_up_on_a_search_path() {
        let said = format!("{PROLOGUE}{GUARD}{RELEASE}");
        let qualified = said.replace("OPERATOR(pg_catalog.=)", "").replace("OPERATOR(pg_catalog.||)", "");
        assert!(!qualified.contains(['=', '|']), "{qualified}");
        assert_eq!(said.matches("current_database()").count(), said.matches("pg_catalog.current_database()").count());
        assert_eq!(said.matches("backup_unverified").count(), said.matches("pg_temp.backup_unverified").count());
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
