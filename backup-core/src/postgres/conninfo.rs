//! libpq connection strings: `key=value` pairs and `postgresql://` URIs.
//!
//! Parsed as libpq does (`conninfo_parse`, `conninfo_uri_parse_options` in PostgreSQL's `fe-connect.c`), because whatever works
//! with `psql` must work here. Names of parameters are not judged: the programs that get them know theirs.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Parameters that must not appear on a command line or in a log.
const SECRET: [&str; 5] = ["password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"];

/// The parameters of a connection, in the order in which they were given, each at most once.
///
/// `Debug` hides the secret ones, and there is no `Display`: use [`without_password`](Self::without_password).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnInfo {
    params: Vec<(String, Zeroizing<String>)>,
}

impl ConnInfo {
    /// Parses a URI, a string of `key=value` pairs, or, as `psql` does, a plain word that names a database.
    ///
    /// # Errors
    /// `Config`, naming the position but nothing of the text, which may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let mut info = Self::default();
        if text.contains('\0') {
            return Err(invalid("it contains a zero byte"));
        }
        if let Some(rest) = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
            info.parse_uri(rest)?;
        } else if text.contains('=') {
            info.parse_pairs(text)?;
        } else if !text.is_empty() {
            info.set("dbname", text);
        }
        Ok(info)
    }

    /// The value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Sets a parameter, where it is if it was set before, else at the end.
    pub fn set(&mut self, key: &str, value: &str) {
        let value = Zeroizing::new(value.to_owned());
        match self.params.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.params.push((key.to_owned(), value)),
        }
    }

    /// All parameters, secret ones included.
    pub fn params(&self) -> impl Iterator<Item = (&str, &str)> {
        self.params.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// The database, if one is named here (and not by the environment or a service file).
    pub fn dbname(&self) -> Option<&str> {
        self.get("dbname").filter(|name| !name.is_empty())
    }

    /// The same connection to another database.
    #[must_use]
    pub fn with_dbname(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.set("dbname", name);
        other
    }

    /// The password: for `PGPASSWORD`, never for a command line.
    pub fn password(&self) -> Option<&str> {
        self.get("password").filter(|password| !password.is_empty())
    }

    /// The secret parameters other than the password, which only a service file or a key without a passphrase can replace.
    pub fn other_secrets(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(|(k, _)| k.as_str()).filter(|key| is_secret(key) && *key != "password")
    }

    /// A `key=value` string without the secret parameters, fit for a command line.
    pub fn without_password(&self) -> String {
        let mut text = String::new();
        for (key, value) in self.params().filter(|(key, _)| !is_secret(key)) {
            push_pair(&mut text, key, value);
        }
        text
    }

    /// A `key=value` string with everything; [`parse`](Self::parse) reads it back.
    pub fn with_password(&self) -> Zeroizing<String> {
        // Of the final size from the start: growing would leave copies of the password behind.
        let size = self.params().map(|(key, value)| key.len() + 2 * value.len() + 4).sum();
        let mut text = Zeroizing::new(String::with_capacity(size));
        for (key, value) in self.params() {
            push_pair(&mut text, key, value);
        }
        text
    }

    fn parse_pairs(&mut self, text: &str) -> Result<()> {
        let mut cursor = Cursor { text, at: 0 };
        cursor.skip_space();
        while cursor.peek().is_some() {
            let start = cursor.at;
            let key = cursor.take_while(|c| c != '=' && !is_space(c));
            cursor.skip_space();
            if key.is_empty() || cursor.bump() != Some('=') {
                return Err(invalid(format_args!("there is no \"=\" after the word at byte {start}")));
            }
            cursor.skip_space();
            let value = cursor.value()?;
            self.set(key, &value);
            cursor.skip_space();
        }
        Ok(())
    }

    fn parse_uri(&mut self, rest: &str) -> Result<()> {
        let mut rest = rest;
        if let Some(at) = rest.find(['@', '/']).filter(|&at| rest[at..].starts_with('@')) {
            let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
            self.set_decoded("user", user)?;
            self.set_decoded("password", password)?;
            rest = &rest[at + 1..];
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, dbname) = rest.split_once('/').unwrap_or((rest, ""));
        self.parse_hosts(hosts)?;
        self.set_decoded("dbname", dbname)?;
        for pair in query.split('&').filter(|_| !query.is_empty()) {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(invalid("a query parameter is not of the form key=value"));
            };
            let (key, value) = (decode(key)?, decode(value)?);
            match (key.as_str(), value.as_str()) {
                (key, _) if key.is_empty() || key.contains(|c| c == '=' || is_space(c)) => {
                    return Err(invalid("the name of a query parameter is malformed"));
                }
                // JDBC's spelling, which libpq understands too.
                ("ssl", "true") => self.set("sslmode", "require"),
                (key, value) => self.set(key, value),
            }
        }
        Ok(())
    }

    fn parse_hosts(&mut self, text: &str) -> Result<()> {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for spec in text.split(',') {
            let (host, port) = match spec.strip_prefix('[') {
                Some(inner) => {
                    let (host, rest) = inner.split_once(']').ok_or_else(|| invalid("\"]\" is missing after a host"))?;
                    if host.is_empty() || !(rest.is_empty() || rest.starts_with(':')) {
                        return Err(invalid("an address in brackets is malformed"));
                    }
                    (host, rest.strip_prefix(':').unwrap_or(""))
                }
                None => spec.split_once(':').unwrap_or((spec, "")),
            };
            hosts.push(host);
            ports.push(port);
        }
        self.set_decoded("host", &hosts.join(","))?;
        if ports.iter().any(|port| !port.is_empty()) {
            self.set_decoded("port", &ports.join(","))?;
        }
        Ok(())
    }

    fn set_decoded(&mut self, key: &str, value: &str) -> Result<()> {
        if !value.is_empty() {
            self.set(key, &decode(value)?);
        }
        Ok(())
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(key, value)| (key, if is_secret(key) { "…" } else { value });
        f.debug_map().entries(self.params().map(shown)).finish()
    }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn skip_space(&mut self) {
        self.take_while(is_space);
    }

    fn value(&mut self) -> Result<Zeroizing<String>> {
        let mut value = Zeroizing::new(String::with_capacity(self.text.len() - self.at));
        let (start, quoted) = (self.at, self.peek() == Some('\''));
        if quoted {
            self.bump();
        }
        while let Some(c) = self.peek() {
            if !quoted && is_space(c) {
                break;
            }
            self.bump();
            match c {
                '\'' if quoted => return Ok(value),
                '\\' => value.extend(self.bump()),
                c => value.push(c),
            }
        }
        if quoted {
            return Err(invalid(format_args!("the quote at byte {start} is not closed")));
        }
        Ok(value)
    }
}

/// C's `isspace`, which libpq asks.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn is_secret(key: &str) -> bool {
    SECRET.contains(&key)
}

fn push_pair(text: &mut String, key: &str, value: &str) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(key);
    text.push('=');
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        text.push_str(value);
        return;
    }
    text.push('\'');
    for c in value.chars() {
        if matches!(c, '\'' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('\'');
}

/// Percent-decoding; unlike in web forms, `+` is itself.
fn decode(text: &str) -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|c| char::from(c).to_digit(16));
        match (digit(), digit()) {
            (Some(0), Some(0)) => return Err(invalid("it contains an encoded zero byte")),
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(invalid("\"%\" is not followed by two hexadecimal digits")),
        }
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("its percent-encoding is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn invalid(why: impl fmt::Display) -> Error {
    Error::config(format!("invalid connection string: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(text: &str) -> Vec<(String, String)> {
        let info = ConnInfo::parse(text).unwrap();
        info.params().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        assert_eq!(params(""), []);
        assert_eq!(params("app"), pairs(&[("dbname", "app")]));
        assert_eq!(
            params(r" host = /run/pg  dbname='my \'app\' \\'user=o\'neil password= "),
            pairs(&[("host", "/run/pg"), ("dbname", r"my 'app' \"), ("user", "o'neil"), ("password", "")])
        );
        assert_eq!(params("port=1 user=a port=2"), pairs(&[("port", "2"), ("user", "a")]));
        assert_eq!(params(r"password=a\ b\"), pairs(&[("password", "a b")]));
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        assert_eq!(params("postgresql://"), []);
        assert_eq!(
            params("postgres://me:s%40f%2Fe@db1:5433,[::1],db3/app?sslmode=require&application_name=x%20y"),
            pairs(&[
                ("user", "me"),
                ("password", "s@f/e"),
                ("host", "db1,::1,db3"),
                ("port", "5433,,"),
                ("dbname", "app"),
                ("sslmode", "require"),
                ("application_name", "x y"),
            ])
        );
        assert_eq!(
            params("postgresql://%2Frun%2Fpg/app?user=a+b&ssl=true"),
            pairs(&[("host", "/run/pg"), ("dbname", "app"), ("user", "a+b"), ("sslmode", "require")])
        );
        assert_eq!(params("postgresql:///app?host=/run/pg"), pairs(&[("dbname", "app"), ("host", "/run/pg")]));
    }

    #[test]
    fn malformed_strings_are_refused_without_repeating_them() {
        for text in [
            "host=a s3cret",
            "password='s3cret",
            "=s3cret",
            "a s3cret=",
            "password=s3cret\0",
            "postgresql://u:s3cret%zz@h",
            "postgresql://u:s3cret%00@h",
            "postgresql://u:s3cret@[::1/x",
            "postgresql://u:s3cret@[::1]x/y",
            "postgresql://u:s3cret@h?x",
            "postgresql://u:s3cret%ff@h",
        ] {
            let error = ConnInfo::parse(text).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Config);
            assert!(!format!("{error:?}").contains("s3cret"), "{text}: {error:?}");
        }
    }

    #[test]
    fn secrets_are_neither_rendered_nor_debugged() {
        let info = ConnInfo::parse("host=h password=s3cret sslpassword=s3cret dbname='a b'").unwrap();
        assert_eq!(info.without_password(), "host=h dbname='a b'");
        assert!(!format!("{info:?}").contains("s3cret"));
        assert_eq!(info.password(), Some("s3cret"));
        assert_eq!(info.other_secrets().collect::<Vec<_>>(), ["sslpassword"]);
        assert_eq!(info.with_dbname("c").without_password(), "host=h dbname=c");
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_read_back(
            entries in prop::collection::btree_map("[a-z_]{1,8}", "[^\0]{0,12}", 1..6),
        ) {
            let mut info = ConnInfo::default();
            for (key, value) in &entries {
                info.set(key, value);
            }
            prop_assert_eq!(ConnInfo::parse(&info.with_password()).unwrap(), info);
        }

        #[test]
        fn no_text_panics(text in "(postgres://)?[a-z=' \\\\@:/?&%,\\[\\]é]{0,40}") {
            if let Ok(info) = ConnInfo::parse(&text) {
                prop_assert_eq!(ConnInfo::parse(&info.with_password()).unwrap(), info);
            }
        }
    }
}
