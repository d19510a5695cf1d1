//! `[repository]` and `[repositories.NAME]`: which repositories are used, and how each is reached.

use std::path::Path;

use backup_core::repository::Location;
use backup_core::{Error, Result};
use bytesize::ByteSize;

use super::file::{self, ConfigFile};
use super::stores::Stores;
use super::{CAPACITY_WARNING, Layers, Names, Origin, Setting, list};
use crate::args::Globals;

/// A repository that is used.
#[derive(Debug, Clone)]
pub(crate) struct RepositorySetting {
    /// That of its table, if it has one.
    pub(crate) name: Option<String>,
    pub(crate) url: Setting<String>,
    /// Whether everything must be in it.
    pub(crate) required: bool,
    pub(crate) stores: Stores,
    /// How much it may hold.
    pub(crate) capacity: Option<Setting<ByteSize>>,
    /// At how many per cent of that, or of its file system, there is a warning.
    pub(crate) capacity_warning: Setting<u8>,
}

/// In which kind of store a repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Directory,
    S3,
    Azure,
    Gcs,
}

impl RepositorySetting {
    /// In which kind of store it is, by its address.
    pub(crate) fn kind(&self) -> StoreKind {
        match self.url.value.split_once("://") {
            Some(("s3", _)) => StoreKind::S3,
            Some(("az", _)) => StoreKind::Azure,
            Some(("gs", _)) => StoreKind::Gcs,
            _ => StoreKind::Directory,
        }
    }
}

/// Which repositories are used.
#[derive(Debug, Default)]
pub(crate) struct RepositorySettings {
    /// Names and addresses as they were given, not in the file.
    pub(crate) chosen: Option<Setting<Vec<String>>>,
    pub(crate) all: Vec<RepositorySetting>,
    /// Those of the file, chosen or not.
    pub(crate) of_file: Vec<RepositorySetting>,
}

/// The table of a repository.
#[derive(Debug, Clone, Copy)]
pub(super) enum Table<'a> {
    /// `[repository]`.
    Only,
    /// `[repositories.NAME]`.
    Named(&'a str),
}

impl<'a> Table<'a> {
    /// The table in this file, if it is there.
    pub(super) fn of(self, file: &ConfigFile) -> Option<&file::Repository> {
        match self {
            Self::Only => Some(&file.values.repository),
            Self::Named(name) => file.values.repositories.get(name).map(toml::Spanned::as_ref),
        }
    }

    pub(super) fn is_named(self) -> bool {
        matches!(self, Self::Named(_))
    }

    fn name(self) -> Option<&'a str> {
        match self {
            Self::Only => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl RepositorySettings {
    /// The repositories that flags or the environment choose, by name or address, else all of the file.
    pub(super) fn merge(layers: &Layers<'_>, globals: &Globals) -> Result<Self> {
        let names = Names { flag: "--repo", env: &["BACKUP_REPO"] };
        let flags = Some(globals.repo.clone()).filter(|given| !given.is_empty());
        let chosen = layers.pick(&names, flags, list, |_| None)?;
        let tables = layers.file.map_or_else(|| Ok(Vec::new()), tables)?;
        let tables = match &tables[..] {
            [] => vec![Table::Only],
            names => names.iter().map(|name| Table::Named(name)).collect(),
        };
        let of_file: Vec<RepositorySetting> = tables
            .into_iter()
            .filter_map(|table| from_table(layers, globals, table).transpose())
            .collect::<Result<_>>()?;
        let mut all = match &chosen {
            Some(Setting { value, origin }) => value
                .iter()
                .map(|given| match of_file.iter().find(|known| known.name.as_ref() == Some(given)) {
                    Some(known) => Ok(known.clone()),
                    None => Ok(RepositorySetting {
                        name: None,
                        url: Setting { value: given.clone(), origin: origin.clone() },
                        required: true,
                        stores: Stores::merge(layers, globals, Table::Only)?,
                        capacity: layers.in_table(Table::Only, |t| t.capacity.as_ref()),
                        capacity_warning: capacity_warning(layers, Table::Only)?,
                    }),
                })
                .collect::<Result<Vec<_>>>()?,
            None => of_file.clone(),
        };
        if !all.is_empty() && !all.iter().any(|repository| repository.required) {
            match (&chosen, layers.file) {
                // Whoever names it wants it.
                (Some(_), _) | (None, None) => all.iter_mut().for_each(|repository| repository.required = true),
                (None, Some(file)) => {
                    let message = format!("{}: none of the repositories is required", file.path.display());
                    return Err(Error::config(message).with_hint("a backup must be in at least one, or it is none"));
                }
            }
        }
        Ok(Self { chosen, all, of_file })
    }
}

/// The names of the tables, in the order of the file.
fn tables(file: &ConfigFile) -> Result<Vec<String>> {
    let mut tables: Vec<(usize, &String)> =
        file.values.repositories.iter().map(|(name, table)| (table.span().start, name)).collect();
    tables.sort_unstable();
    let wrong = |line: usize, what: &str| Err(Error::config(format!("{}:{line}: {what}", file.path.display())));
    let only = &file.values.repository;
    if let Some(required) = &only.required {
        return wrong(file.line_of(required), "the only repository is always required");
    }
    if let (Some(url), false) = (&only.url, tables.is_empty()) {
        return wrong(file.line_of(url), "there are a [repository] and [repositories.NAME]: one of them must go");
    }
    for (_, name) in &tables {
        let table = &file.values.repositories[name.as_str()];
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            let what = format!("'{}' cannot name a repository: letters, digits, - and _ can", name.escape_debug());
            return wrong(file.line_of(table), &what);
        }
        if table.as_ref().url.is_none() {
            return wrong(file.line_of(table), &format!("the repository '{name}' has no url"));
        }
    }
    Ok(tables.into_iter().map(|(_, name)| name.clone()).collect())
}

fn from_table(layers: &Layers<'_>, globals: &Globals, table: Table<'_>) -> Result<Option<RepositorySetting>> {
    let in_file = layers.file.and_then(|file| Some((file, table.of(file)?)));
    let Some((file, values)) = in_file else { return Ok(None) };
    let Some(url) = &values.url else { return Ok(None) };
    let value = if is_path(url.as_ref()) {
        file.resolve(Path::new(url.as_ref())).to_string_lossy().into_owned()
    } else {
        url.as_ref().clone()
    };
    let origin = Origin::File { path: file.path.clone(), line: file.line_of(url) };
    Ok(Some(RepositorySetting {
        name: table.name().map(str::to_owned),
        url: Setting { value, origin },
        required: values.required.as_ref().is_none_or(|required| *required.as_ref()),
        stores: Stores::merge(layers, globals, table)?,
        capacity: layers.in_table(table, |t| t.capacity.as_ref()),
        capacity_warning: capacity_warning(layers, table)?,
    }))
}

fn capacity_warning(layers: &Layers<'_>, table: Table<'_>) -> Result<Setting<u8>> {
    match layers.in_table(table, |t| t.capacity_warning.as_ref()) {
        Some(Setting { value, origin }) if value > 100 => {
            Err(Error::config(format!("{origin}: capacity_warning is per cent, and {value} are more than all")))
        }
        Some(warning) => Ok(warning),
        None => Ok(Setting { value: CAPACITY_WARNING, origin: Origin::Default }),
    }
}

/// Whether a repository's address is a path, and no URL, nor one with a slip in it.
fn is_path(address: &str) -> bool {
    !address.contains("://") && address.parse::<Location>().is_ok_and(|location| location.as_directory().is_some())
}
