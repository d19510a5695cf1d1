//! Changing the configuration file: only what is to be changed, comments and order stay.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backup_core::{Error, Result};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike, Value};

use super::file::ConfigFile;

/// Applies `change` to the file at `path`, and puts the new text in its place at once, with the same mode and owner; returns what `change` does.
/// Blocks, also for another process that does the same: what has to hold of the file for the change must be looked at by `change` itself.
///
/// # Errors
/// Those of `change`, and `Config`, when the file cannot be read or replaced, or would not be a configuration any more; it is then as it was.
pub(crate) fn edit<T>(path: &Path, change: impl FnOnce(&mut DocumentMut) -> Result<T>) -> Result<T> {
    // Where it really is: a link to it stays one.
    let path = fs::canonicalize(path).map_err(|e| failed("find", path, e))?;
    let lock = lock(&path).map_err(|e| failed("lock", &path, e))?;
    let mut text = String::new();
    (&lock).read_to_string(&mut text).map_err(|e| failed("read", &path, e))?;
    let (new, value) = changed(&path, &text, change)?;
    if new != text {
        replace(&path, &lock, new.as_bytes()).map_err(|e| failed("replace", &path, e))?;
    }
    Ok(value)
}

/// The text after `change`, which must be a configuration.
fn changed<T>(path: &Path, text: &str, change: impl FnOnce(&mut DocumentMut) -> Result<T>) -> Result<(String, T)> {
    let mut document = parse(path, text)?;
    let value = change(&mut document)?;
    let text = document.to_string();
    super::keys::keys(&ConfigFile::parse(path, text.clone())?)?;
    Ok((text, value))
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut> {
    text.parse().map_err(|e: toml_edit::TomlError| {
        Error::config(format!("{} cannot be changed", path.display())).with_source(io::Error::other(e.to_string()))
    })
}

/// The file, locked against others who change it. One that was replaced meanwhile is opened again.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = File::open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        if fs::metadata(path)?.ino() == file.metadata()?.ino() {
            return Ok(file);
        }
    }
}

fn replace(path: &Path, old: &File, text: &[u8]) -> io::Result<()> {
    let metadata = old.metadata()?;
    let temporary = temporary(path);
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = (|| {
        (&new).write_all(text)?;
        new.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        let is_ours = new.metadata()?;
        if (is_ours.uid(), is_ours.gid()) != (metadata.uid(), metadata.gid()) {
            std::os::unix::fs::fchown(&new, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        new.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // What matters is why it could not be replaced.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn failed(verb: &str, path: &Path, error: io::Error) -> Error {
    Error::config(format!("cannot {verb} the configuration file {}", path.display())).with_source(error)
}

/// A key that follows another.
#[derive(Debug)]
pub(crate) struct Successor<'a> {
    pub(crate) name: &'a str,
    pub(crate) recipient: &'a str,
    pub(crate) created: Timestamp,
    /// If not at once.
    pub(crate) activates: Option<Timestamp>,
    pub(crate) replaces: &'a str,
}

/// What a successor takes over from its predecessor.
const INHERITED: [&str; 3] = ["lifetime", "overlap", "warn"];

impl Successor<'_> {
    /// Adds its table behind the others, with the rules of its predecessor.
    pub(crate) fn add_to(&self, document: &mut DocumentMut) -> Result<()> {
        let keys = document.get_mut("keys").and_then(Item::as_table_like_mut).ok_or_else(meanwhile)?;
        if keys.contains_key(self.name) {
            return Err(meanwhile());
        }
        let inherited = self.inherited(keys);
        let inline = keys.get(self.replaces).is_some_and(Item::is_inline_table);
        let mut table: Item = if inline { Value::from(InlineTable::new()).into() } else { Table::new().into() };
        if let Some(table) = table.as_table_like_mut() {
            self.fill(table, inherited);
        }
        keys.insert(self.name, table);
        Ok(())
    }

    /// The table alone, for somebody else to write into a file with the same predecessor as the one at `path`. Blocks.
    pub(crate) fn to_toml(&self, path: &Path) -> Result<String> {
        let text = fs::read_to_string(path).map_err(|e| failed("read", path, e))?;
        let mut document = parse(path, &text)?;
        let keys = document.get_mut("keys").and_then(Item::as_table_like_mut).ok_or_else(meanwhile)?;
        let mut table = Table::new();
        self.fill(&mut table, self.inherited(keys));
        let mut keys = Table::new();
        keys.set_implicit(true);
        keys.insert(self.name, table.into());
        let mut document = DocumentMut::new();
        document.insert("keys", keys.into());
        Ok(document.to_string())
    }

    /// The rules of the predecessor.
    fn inherited(&self, keys: &dyn TableLike) -> Vec<(&'static str, Value)> {
        let predecessor = keys.get(self.replaces).and_then(Item::as_table_like);
        let value = |name: &&'static str| Some((*name, predecessor?.get(name)?.as_value()?.clone()));
        INHERITED.iter().filter_map(value).collect()
    }

    fn fill(&self, table: &mut dyn TableLike, inherited: Vec<(&str, Value)>) {
        table.insert("recipient", toml_edit::value(self.recipient));
        table.insert("created", moment(self.created));
        if let Some(activates) = self.activates {
            table.insert("activates", moment(activates));
        }
        table.insert("replaces", toml_edit::value(self.replaces));
        for (name, mut value) in inherited {
            // A comment behind it was about the other key.
            value.decor_mut().clear();
            table.insert(name, value.into());
        }
    }
}

/// Marks a key as retired.
pub(crate) fn retire(document: &mut DocumentMut, name: &str, now: Timestamp) -> Result<()> {
    let keys = document.get_mut("keys").and_then(Item::as_table_like_mut).ok_or_else(meanwhile)?;
    let key = keys.get_mut(name).and_then(Item::as_table_like_mut).ok_or_else(meanwhile)?;
    key.insert("retired", moment(now));
    Ok(())
}

/// The error of a file that is not what was looked at.
pub(crate) fn meanwhile() -> Error {
    Error::config("the configuration file was changed meanwhile").with_hint("run the command again")
}

/// To the second: what people read and compare.
fn moment(time: Timestamp) -> Item {
    let text = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    match text.parse::<toml_edit::Datetime>() {
        Ok(time) => toml_edit::value(time),
        Err(_) => toml_edit::value(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# who may read what
level = 3   # fast

[keys.2026]   # in the safe
recipient = \"age1a\"
created = 2026-01-10T09:00:00Z
lifetime = \"2 years\"   # agreed with audit

# where to
[repository]
url = \"backups\"
";

    fn successor() -> Successor<'static> {
        Successor {
            name: "2027",
            recipient: "age1b",
            created: "2026-11-25T10:00:00.123Z".parse().unwrap(),
            activates: None,
            replaces: "2026",
        }
    }

    #[test]
    fn a_successor_is_added_and_all_else_stays_as_it_was() {
        let (text, ()) = changed(Path::new("backup.toml"), FILE, |document| successor().add_to(document)).unwrap();
        let added = "[keys.2027]\nrecipient = \"age1b\"\ncreated = 2026-11-25T10:00:00Z\nreplaces = \"2026\"\nlifetime = \"2 years\"\n";
        assert!(text.contains(added), "{text}");
        let without: String = text.replacen(added, "", 1);
        assert_eq!(without.replace("\n\n\n", "\n\n"), FILE, "{text}");
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("backup.toml");
        fs::write(&path, FILE).unwrap();
        assert_eq!(successor().to_toml(&path).unwrap(), added);
    }

    #[test]
    fn tables_of_every_form_can_be_changed() {
        let key = "{ recipient = \"age1a\", created = 2026-01-10 }";
        for text in
            [format!("keys.2026 = {key}\n"), format!("[keys]\n2026 = {key}\n"), format!("keys = {{ 2026 = {key} }}\n")]
        {
            let (text, ()) = changed(Path::new("backup.toml"), &text, |document| successor().add_to(document)).unwrap();
            let now = "2027-01-10T09:00:00Z".parse().unwrap();
            let (text, ()) =
                changed(Path::new("backup.toml"), &text, |document| retire(document, "2026", now)).unwrap();
            let file = ConfigFile::parse(Path::new("backup.toml"), text.clone()).unwrap();
            let keys = super::super::keys::keys(&file).unwrap();
            assert_eq!(keys.policy.key("2027").unwrap().replaces.as_deref(), Some("2026"), "{text}");
            assert_eq!(keys.policy.key("2026").unwrap().retired, Some(now), "{text}");
        }
    }

    #[test]
    fn the_file_keeps_its_mode_and_a_link_to_it_stays_one() {
        let temp = tempfile::tempdir().unwrap();
        let (path, link) = (temp.path().join("real.toml"), temp.path().join("backup.toml"));
        fs::write(&path, FILE).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real.toml", &link).unwrap();
        edit(&link, |document| successor().add_to(document)).unwrap();
        assert!(link.is_symlink() && fs::read_to_string(&path).unwrap().contains("keys.2027"));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2, "nothing else is left");

        // What would be no configuration is not written.
        let before = fs::read_to_string(&path).unwrap();
        let twice = Successor { name: "2028", ..successor() };
        assert!(edit(&link, |document| twice.add_to(document)).unwrap_err().to_string().contains("is the same as"));
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
