//! The beginning of a `pg_dump` custom-format archive: what it says about the database as a whole. No I/O.
//!
//! `pg_restore --create` can make a database only under the name that it had. To restore it under another name with all its
//! properties, the entries that describe them are read here; `pg_dump` writes them before all others. The layout is that of
//! `ReadHead` and `ReadToc` in PostgreSQL's `pg_backup_archiver.c`.

/// The first bytes of every archive.
pub const MAGIC: &[u8; 5] = b"PGDMP";

/// Archive versions whose layout is known: those of PostgreSQL 9.0 (1.12) to 18 (1.16).
const VERSIONS: std::ops::RangeInclusive<(u8, u8)> = (1, 12)..=(1, 16);

/// The custom format's number.
const CUSTOM: u8 = 1;

/// No string of the entries looked at is longer; more is damage.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// What the beginning of a stream is.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// Too short to tell.
    Incomplete,
    /// No archive, or one of an unknown version.
    Unknown,
    /// A custom-format archive.
    Custom(Database),
}

/// The database that an archive was made of, as SQL under its old name; see [`rename_database`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Database {
    /// The name that it had.
    pub name: String,
    /// `CREATE DATABASE …`, from template0, with encoding and locale.
    pub create: Option<String>,
    /// The role that owned it.
    pub owner: Option<String>,
    /// `ALTER DATABASE … SET`, comment, and the like.
    pub properties: Vec<String>,
    /// `GRANT`, `REVOKE`.
    pub privileges: Vec<String>,
}

/// Reads the entries about the database from the beginning of a stream.
pub fn read_head(bytes: &[u8]) -> Head {
    if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
        return Head::Unknown;
    }
    match Cursor::open(bytes).and_then(|(mut cursor, name)| cursor.database(name)) {
        Ok(database) => Head::Custom(database),
        Err(Stop::Short) => Head::Incomplete,
        Err(Stop::Unknown) => Head::Unknown,
    }
}

/// `sql`, a statement or several about the database `old`, about the database `new` instead.
///
/// Only a name right after the word `DATABASE` is replaced, and nothing inside string literals.
pub fn rename_database(sql: &str, old: &str, new: &str) -> String {
    let mut renamed = String::with_capacity(sql.len() + new.len());
    let mut rest = sql;
    let mut after_database = false;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '\'' | '"' => quoted_len(rest, first),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, tail) = rest.split_at(len);
        let is_name = first == '"' || is_word(first);
        if after_database && is_name && unquote(token) == old {
            renamed.push_str(&quote(new));
        } else {
            renamed.push_str(token);
        }
        if !token.trim().is_empty() {
            after_database = token == "DATABASE";
        }
        rest = tail;
    }
    renamed
}

/// An SQL identifier in quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn unquote(token: &str) -> String {
    match token.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => token.to_owned(),
    }
}

/// Length of the quoted text that `text` begins with. Doubled quotes are part of it; `pg_dump` doubles backslashes where they escape.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(end) = text[at..].find(quote) {
        at += end + 1;
        if !text[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    text.len()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

enum Stop {
    Short,
    Unknown,
}

struct Entry {
    tag: String,
    desc: String,
    defn: String,
    owner: String,
}

struct Cursor<'a> {
    rest: &'a [u8],
    version: (u8, u8),
    int_size: usize,
    offset_size: usize,
}

impl<'a> Cursor<'a> {
    /// Reads the header; the cursor then stands before the number of entries.
    fn open(bytes: &'a [u8]) -> Result<(Self, String), Stop> {
        let mut cursor = Self { rest: bytes, version: (0, 0), int_size: 0, offset_size: 0 };
        let &[major, minor, _revision, int_size, offset_size, format] = &cursor.take(MAGIC.len() + 6)?[MAGIC.len()..]
        else {
            return Err(Stop::Short);
        };
        cursor.version = (major, minor);
        (cursor.int_size, cursor.offset_size) = (int_size.into(), offset_size.into());
        if !VERSIONS.contains(&cursor.version) || format != CUSTOM || !(1..=8).contains(&int_size) || offset_size > 8 {
            return Err(Stop::Unknown);
        }
        if cursor.version >= (1, 15) {
            cursor.take(1)?; // compression algorithm
        } else {
            cursor.int()?; // compression level
        }
        for _ in 0..7 {
            cursor.int()?; // time of creation
        }
        let name = cursor.text()?;
        cursor.text()?; // server version
        cursor.text()?; // pg_dump version
        Ok((cursor, name))
    }

    fn database(&mut self, name: String) -> Result<Database, Stop> {
        let mut database = Database { name, ..Database::default() };
        for _ in 0..self.int()? {
            let entry = self.entry()?;
            let about_database = entry.tag.starts_with("DATABASE ");
            match entry.desc.as_str() {
                "ENCODING" | "STDSTRINGS" | "SEARCHPATH" => {}
                "DATABASE" => {
                    database.create = Some(entry.defn);
                    database.owner = Some(entry.owner).filter(|owner| !owner.is_empty());
                }
                "DATABASE PROPERTIES" => database.properties.push(entry.defn),
                "COMMENT" | "SECURITY LABEL" if about_database => database.properties.push(entry.defn),
                "ACL" if about_database => database.privileges.push(entry.defn),
                _ => break,
            }
        }
        Ok(database)
    }

    fn entry(&mut self) -> Result<Entry, Stop> {
        self.int()?; // dump id
        self.int()?; // has data
        self.text()?; // oid of the catalog
        self.text()?; // oid of the object
        let tag = self.text()?;
        let desc = self.text()?;
        self.int()?; // section
        let defn = self.text()?;
        self.text()?; // DROP statement
        self.text()?; // COPY statement
        self.text()?; // schema
        self.text()?; // tablespace
        if self.version >= (1, 14) {
            self.text()?; // table access method
        }
        if self.version >= (1, 16) {
            self.int()?; // kind of relation
        }
        let owner = self.text()?;
        self.text()?; // has oids
        while self.nullable_text()?.is_some() {} // dependencies
        self.take(1 + self.offset_size)?; // where the data is
        Ok(Entry { tag, desc, defn, owner })
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(Stop::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn int(&mut self) -> Result<i64, Stop> {
        let negative = self.take(1)?[0] != 0;
        let mut bytes = [0; 8];
        bytes[..self.int_size].copy_from_slice(self.take(self.int_size)?);
        let value = i64::try_from(u64::from_le_bytes(bytes)).map_err(|_| Stop::Unknown)?;
        Ok(if negative { -value } else { value })
    }

    fn nullable_text(&mut self) -> Result<Option<String>, Stop> {
        let Ok(len) = usize::try_from(self.int()?) else { return Ok(None) };
        if len > TEXT_BYTES_MAX {
            return Err(Stop::Unknown);
        }
        let text = self.take(len)?.to_vec();
        String::from_utf8(text).map(Some).map_err(|_| Stop::Unknown)
    }

    fn text(&mut self) -> Result<String, Stop> {
        Ok(self.nullable_text()?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_is_renamed() {
        let sql = "ALTER DATABASE app SET \"app.note\" TO 'DATABASE app';\nALTER ROLE app IN DATABASE app SET x TO 'it''s';\n\
                   COMMENT ON DATABASE \"app\" IS 'DATABASE app';\nGRANT ALL ON DATABASE  app TO app;\n";
        assert_eq!(
            rename_database(sql, "app", "a\"b"),
            "ALTER DATABASE \"a\"\"b\" SET \"app.note\" TO 'DATABASE app';\nALTER ROLE app IN DATABASE \"a\"\"b\" SET x TO 'it''s';\n\
             COMMENT ON DATABASE \"a\"\"b\" IS 'DATABASE app';\nGRANT ALL ON DATABASE  \"a\"\"b\" TO app;\n"
        );
        assert_eq!(rename_database("CREATE DATABASE \"a\"\"b\" X", "a\"b", "c"), "CREATE DATABASE \"c\" X");
    }

    /// An archive of version 1.14 with the entries `(tag, desc, defn, owner)`.
    fn archive(entries: &[(&str, &str, &str, &str)]) -> Vec<u8> {
        fn int(out: &mut Vec<u8>, n: i32) {
            out.push(u8::from(n < 0));
            out.extend_from_slice(&n.unsigned_abs().to_le_bytes());
        }
        fn text(out: &mut Vec<u8>, text: &str) {
            int(out, i32::try_from(text.len()).unwrap());
            out.extend_from_slice(text.as_bytes());
        }
        let mut out = b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec();
        for _ in 0..8 {
            int(&mut out, 0);
        }
        for header in ["app", "15.1", "15.1"] {
            text(&mut out, header);
        }
        int(&mut out, i32::try_from(entries.len()).unwrap());
        for (tag, desc, defn, owner) in entries {
            int(&mut out, 1);
            int(&mut out, 0);
            for field in ["0", "0", tag, desc] {
                text(&mut out, field);
            }
            int(&mut out, 2);
            for field in [defn, "", "", "", "", "", owner, "false", "7"] {
                text(&mut out, field);
            }
            int(&mut out, -1);
            out.extend_from_slice(&[0; 9]);
        }
        out
    }

    #[test]
    fn a_head_is_read_as_soon_as_it_is_complete() {
        let bytes = archive(&[
            ("ENCODING", "ENCODING", "SET client_encoding = 'UTF8';", ""),
            ("app", "DATABASE", "CREATE DATABASE app;", "ann"),
            ("DATABASE app", "ACL", "GRANT", "ann"),
            ("app", "DATABASE PROPERTIES", "ALTER", "ann"),
            ("t", "TABLE", "CREATE TABLE t ();", "ann"),
            ("u", "TABLE", "CREATE TABLE u ();", "ann"),
        ]);
        let expected = Database {
            name: "app".into(),
            create: Some("CREATE DATABASE app;".into()),
            owner: Some("ann".into()),
            properties: vec!["ALTER".into()],
            privileges: vec!["GRANT".into()],
        };
        assert_eq!(read_head(&bytes), Head::Custom(expected));
        let table = bytes.windows(14).position(|w| w == b"CREATE TABLE t").unwrap();
        assert!((0..=table).all(|len| read_head(&bytes[..len]) == Head::Incomplete));
    }

    #[test]
    fn other_streams_are_unknown() {
        for bytes in [
            &b"--\n-- PostgreSQL database dump"[..],
            b"PGDMP\x02\x00\x00\x04\x08\x01",
            b"PGDMP\x01\x0e\x00\x09\x08\x01",
        ] {
            assert_eq!(read_head(bytes), Head::Unknown);
        }
    }
}
