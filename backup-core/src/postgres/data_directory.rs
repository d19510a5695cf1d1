//! What of a data directory belongs into a base backup. No I/O.
//!
//! The rules are those of the server itself: the lists and `sendDir` in `src/backend/backup/basebackup.c` (up to 14
//! `src/backend/replication/basebackup.c`), described under `BASE_BACKUP` in "Streaming Replication Protocol" of PostgreSQL's documentation.

/// Directories that are kept, without what is in them (`excludeDirContents`), and `pg_wal`: a backup's log is streamed beside it.
const EMPTIED: [&str; 8] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal"];

/// Files that are left out wherever they are (`excludeFiles`).
const LEFT_OUT: [&str; 7] = [
    "backup_label",
    "backup_manifest",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "tablespace_map",
];

/// Beginnings of the names of what is left out: the relation cache with whatever is appended to its name, and temporary files
/// (`PG_TEMP_FILE_PREFIX`, `PG_TEMP_FILES_DIR`).
const LEFT_OUT_PREFIXES: [&str; 2] = ["pg_internal.init", "pgsql_tmp"];

/// What a restored cluster needs in `pg_wal`, since which major version.
pub const WAL_DIRECTORIES: [(&str, u32); 2] = [("pg_wal/archive_status", 0), ("pg_wal/summaries", 17)];

/// What kind of directory something lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The data directory itself.
    Data,
    /// `base`.
    Base,
    /// `global`: relations that all databases share.
    Global,
    /// `pg_tblspc`: links to tablespaces.
    Tablespaces,
    /// The directory of this server's version in a tablespace.
    Version,
    /// A database, in `base` or in a tablespace.
    Database,
    /// Any other.
    Other,
}

/// The file of a relation, by its name: which fork and which segment of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile<'a> {
    /// The relation's number.
    pub number: &'a str,
    /// `None` for the main fork.
    pub fork: Option<&'a str>,
    /// From 0.
    pub segment: u32,
}

/// The forks beside the main one (`forkNames` in `src/common/relpath.c`).
const FORKS: [&str; 3] = ["fsm", "vm", "init"];

impl Place {
    /// The kind of directory that `name` is in one of this kind.
    pub fn child(self, name: &[u8]) -> Self {
        match (self, name) {
            (Self::Data, b"base") => Self::Base,
            (Self::Data, b"global") => Self::Global,
            (Self::Data, b"pg_tblspc") => Self::Tablespaces,
            (Self::Base | Self::Version, name) if is_number(name) => Self::Database,
            _ => Self::Other,
        }
    }

    /// Whether a directory in one of this kind is kept without its contents. `statistics` is where the server keeps those that it rewrites all
    /// the time, if that is elsewhere than in `pg_stat_tmp` (up to 14).
    pub fn is_emptied(self, name: &[u8], statistics: Option<&str>) -> bool {
        let is = |other: &str| other.as_bytes() == name;
        self == Self::Data && (EMPTIED.iter().any(|other| is(other)) || statistics.is_some_and(is))
    }

    /// Whether a file, or a directory, is left out. `exists` tells whether a name is in the same directory.
    pub fn leaves_out(self, name: &[u8], exists: impl Fn(&[u8]) -> bool) -> bool {
        if LEFT_OUT.iter().any(|other| other.as_bytes() == name)
            || LEFT_OUT_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
            || name == b".DS_Store"
            // It is the last that is copied.
            || self == Self::Global && name == b"pg_control"
        {
            return true;
        }
        if self != Self::Database {
            return false;
        }
        if is_temporary_relation(name) {
            return true;
        }
        // Unlogged: recovery begins it anew from its init fork.
        RelationFile::parse(name)
            .is_some_and(|file| file.fork != Some("init") && exists(format!("{}_init", file.number).as_bytes()))
    }

    /// Whether what is called so has pages with checksums.
    pub fn has_pages<'a>(self, name: &'a [u8]) -> Option<RelationFile<'a>> {
        matches!(self, Self::Database | Self::Global).then(|| RelationFile::parse(name)).flatten()
    }
}

impl<'a> RelationFile<'a> {
    /// Reads a name such as `16384`, `16384_fsm`, `16384.2` or `16384_vm.1` (`parse_filename_for_nontemp_relation`).
    pub fn parse(name: &'a [u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) if is_number(segment.as_bytes()) => (name, segment.parse().ok()?),
            Some(_) => return None,
            None => (name, 0),
        };
        let (number, fork) = match name.split_once('_') {
            Some((number, fork)) if FORKS.contains(&fork) => (number, Some(fork)),
            Some(_) => return None,
            None => (name, None),
        };
        is_number(number.as_bytes()).then_some(Self { number, fork, segment })
    }
}

/// Names such as `t3_16384`, with fork and segment (`looks_like_temp_rel_name`).
fn is_temporary_relation(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    let Some(at) = rest.iter().position(|&byte| byte == b'_') else { return false };
    is_number(&rest[..at]) && RelationFile::parse(&rest[at + 1..]).is_some()
}

fn is_number(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relations_are_read_and_others_are_not() {
        let parse = |name: &'static str| RelationFile::parse(name.as_bytes()).map(|f| (f.number, f.fork, f.segment));
        assert_eq!(parse("16384"), Some(("16384", None, 0)));
        assert_eq!(parse("16384.12"), Some(("16384", None, 12)));
        assert_eq!(parse("16384_vm"), Some(("16384", Some("vm"), 0)));
        assert_eq!(parse("16384_fsm.1"), Some(("16384", Some("fsm"), 1)));
        for name in [
            "",
            ".1",
            "16384.",
            "16384_",
            "16384_x",
            "x16384",
            "16384.1.2",
            "pg_filenode.map",
            "PG_VERSION",
            "t1_2",
            "1_init_1",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn what_the_server_leaves_out_is_left_out() {
        let none = |_: &[u8]| false;
        for name in [
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "pgsql_tmp",
            "pgsql_tmp12.0",
        ] {
            assert!(Place::Data.leaves_out(name.as_bytes(), none), "{name}");
        }
        for name in ["pg_internal.init", "pg_internal.init.123", "pg_control"] {
            assert!(Place::Global.leaves_out(name.as_bytes(), none), "{name}");
        }
        for name in ["t1_16384", "t12_16384_fsm", "t3_16384.1", "t3_16384_vm.1"] {
            assert!(Place::Database.leaves_out(name.as_bytes(), none), "{name}");
            assert!(!Place::Other.leaves_out(name.as_bytes(), none), "{name}");
        }
        for name in [
            "PG_VERSION",
            "postgresql.conf",
            "postgresql.auto.conf",
            "pg_hba.conf",
            "current_logfiles",
            "standby.signal",
        ] {
            assert!(!Place::Data.leaves_out(name.as_bytes(), none), "{name}");
        }
        assert!(!Place::Database.leaves_out(b"t_16384", none));
        assert!(!Place::Data.leaves_out(b"pg_control", none), "only in global");
    }

    #[test]
    fn unlogged_relations_are_left_out_but_for_their_init_forks() {
        let exists = |name: &[u8]| name == b"16384_init";
        for name in ["16384", "16384.1", "16384_fsm", "16384_vm"] {
            assert!(Place::Database.leaves_out(name.as_bytes(), exists), "{name}");
            assert!(!Place::Global.leaves_out(name.as_bytes(), exists), "{name}");
        }
        for name in ["16384_init", "16385", "163840", "PG_VERSION", "pg_filenode.map"] {
            assert!(!Place::Database.leaves_out(name.as_bytes(), exists), "{name}");
        }
    }

    #[test]
    fn directories_have_their_kinds() {
        assert_eq!(Place::Data.child(b"base").child(b"5"), Place::Database);
        assert_eq!(Place::Version.child(b"16384"), Place::Database);
        assert_eq!(Place::Base.child(b"pgsql_tmp"), Place::Other);
        assert_eq!(Place::Data.child(b"log").child(b"5"), Place::Other);
        assert!(Place::Data.is_emptied(b"pg_wal", None) && Place::Data.is_emptied(b"pg_replslot", None));
        assert!(Place::Data.is_emptied(b"stats", Some("stats")) && !Place::Data.is_emptied(b"stats", None));
        assert!(!Place::Other.is_emptied(b"pg_wal", None) && !Place::Data.is_emptied(b"pg_xact", None));
        assert_eq!(Place::Global.has_pages(b"1262").map(|f| f.segment), Some(0));
        assert_eq!(Place::Data.has_pages(b"1262"), None);
    }
}
