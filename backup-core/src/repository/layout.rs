//! Names of objects in a repository. No I/O.
//!
//! ```text
//! repository.json                                what this is
//! <target>/backups/<id>/manifest.json            the commit point, created last
//! <target>/backups/<id>/<stream>.<nnnnn>.vol     the data
//! <target>/backups/<id>/running.json             a run in progress
//! runs/<yyyy>/<mm>/<dd>/<id>.json                who did what; <id>.begun.json when it began
//! <target>/wal/<system id>/<timeline>/<file>.vol a file of PostgreSQL's write-ahead log
//! <target>/keys/<data key id>/<seq>.json         a data key, wrapped again for other recipients
//! <target>/pins/<id>/<random>.json               that a backup is to be kept, why, and until when
//! ```

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::encrypt::random;
use crate::error::{Error, Result};

mod keys;
mod pins;
mod wal;

pub use keys::{KeyPath, RewrapName};
pub use wal::{TailPiece, WalPath};

/// The object that makes a place a repository.
pub const REPOSITORY: &str = "repository.json";
/// The last part of a manifest's path.
pub const MANIFEST: &str = "manifest.json";
/// The last part of a heartbeat's path.
pub const RUNNING: &str = "running.json";

const RUNS: &str = "runs";
const BACKUPS: &str = "backups";
const VOLUME_SUFFIX: &str = ".vol";
const NAME_LEN_MAX: usize = 63;
/// Names that mean something else: the folder of run records, a way to say "the newest", and the repository's own object.
const RESERVED: [&str; 3] = [RUNS, "latest", REPOSITORY];

const ID_TIME: &str = "%Y%m%dT%H%M%SZ";
const ID_TIME_LEN: usize = 16;
const ID_RANDOM_BYTES: usize = 10;
const ID_LEN: usize = ID_TIME_LEN + 1 + 16;

/// The path of the object that makes a place a repository.
pub fn repository() -> Path {
    Path::from(REPOSITORY)
}

/// The folder of the records of runs.
pub fn runs() -> Path {
    Path::from(RUNS)
}

/// The record of a run: that of its end, or that of its beginning.
pub fn run_record(id: &BackupId, ended: bool) -> Path {
    let day = id.timestamp().strftime("%Y/%m/%d").to_string();
    let suffix = if ended { "json" } else { "begun.json" };
    Path::from(format!("{RUNS}/{day}/{id}.{suffix}"))
}

/// What is backed up, by the name that people give it: 1 to 63 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

impl TargetName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder of its backups, one folder for each inside.
    pub fn backups(&self) -> Path {
        Path::from_iter([self.as_str(), BACKUPS])
    }

    /// The folder of one backup.
    pub fn backup(&self, id: &BackupId) -> BackupPath {
        BackupPath { target: self.clone(), id: id.clone() }
    }
}

impl FromStr for TargetName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let refused =
            |why: String| Err(Error::config(format!("'{}' cannot name a target: {why}", name.escape_debug())));
        let allowed = "use 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit, such as 'app' or 'db1.orders'";
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
            return refused(format!("it contains '{}'", c.escape_debug())).map_err(|e| e.with_hint(allowed));
        }
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return refused(format!("it has {} characters", name.len())).map_err(|e| e.with_hint(allowed));
        }
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refused("it begins with a sign".to_owned()).map_err(|e| e.with_hint(allowed));
        }
        if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return refused("the name has a meaning of its own".to_owned());
        }
        if BackupId::from_str(name).is_ok() {
            return refused("it is the id of a backup".to_owned());
        }
        Ok(Self(name.to_owned()))
    }
}

/// Names a backup for ever: `20261122T020000Z-` and 80 random bits in lower-case base32. Sorts by time; cannot be guessed, does not collide.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    /// A new id for a backup that begins now.
    pub fn generate(clock: &dyn Clock) -> Self {
        Self::from_parts(clock.now(), random::bytes())
    }

    fn from_parts(time: Timestamp, random: [u8; ID_RANDOM_BYTES]) -> Self {
        let random = BASE32_NOPAD.encode(&random).to_ascii_lowercase();
        Self(format!("{}-{random}", time.strftime(ID_TIME)))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The random half.
    pub fn random_half(&self) -> &str {
        &self.0[ID_TIME_LEN + 1..]
    }

    /// When the backup began, to the second.
    pub fn timestamp(&self) -> Timestamp {
        parse_time(&self.0[..ID_TIME_LEN]).expect("every way to make an id has checked its time")
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            // Checked first: what follows cuts at byte positions.
            if text.len() != ID_LEN || !text.is_ascii() {
                return None;
            }
            let (time, random) = text.split_at(ID_TIME_LEN);
            let random = random.strip_prefix('-').filter(|r| !r.bytes().any(|b| b.is_ascii_uppercase()))?;
            let random = BASE32_NOPAD.decode(random.to_ascii_uppercase().as_bytes()).ok()?;
            Some(Self::from_parts(parse_time(time)?, random.try_into().ok()?)).filter(|id| id.0 == text)
        };
        parse().ok_or_else(|| {
            Error::config(format!("'{}' is not the id of a backup", text.escape_debug()))
                .with_hint("ids look like '20261122T020000Z-abcdefghijklmnop'; 'backup list' shows them")
        })
    }
}

fn parse_time(text: &str) -> Option<Timestamp> {
    DateTime::strptime(ID_TIME, text).ok()?.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
}

/// Names a stream within a backup: 1 to 63 of `a-z 0-9 _ -`, the first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(String);

impl StreamName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StreamName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = name.len() <= NAME_LEN_MAX
            && name.starts_with(plain)
            && name.chars().all(|c| plain(c) || matches!(c, '_' | '-'));
        if !valid {
            return Err(Error::config(format!("'{}' cannot name a stream", name.escape_debug()))
                .with_hint("use 1 to 63 of a-z, 0-9, '_' and '-', beginning with a letter or digit"));
        }
        Ok(Self(name.to_owned()))
    }
}

/// Where the objects of one backup are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupPath {
    /// What it is a backup of.
    pub target: TargetName,
    /// Its id.
    pub id: BackupId,
}

impl BackupPath {
    /// The folder with everything of this backup.
    pub fn prefix(&self) -> Path {
        self.object(None)
    }

    /// The object whose presence makes it a backup.
    pub fn manifest(&self) -> Path {
        self.object(Some(MANIFEST))
    }

    /// The heartbeat of the run that makes it.
    pub fn running(&self) -> Path {
        self.object(Some(RUNNING))
    }

    /// Volume number `index` of a stream, from 0.
    pub fn volume(&self, stream: &StreamName, index: u32) -> Path {
        self.object(Some(&volume_name(stream, index)))
    }

    /// The object of that name in this backup's folder, as manifests name volumes.
    pub fn named(&self, name: &str) -> Path {
        self.object(Some(name))
    }

    fn object(&self, name: Option<&str>) -> Path {
        [self.target.as_str(), BACKUPS, self.id.as_str()].into_iter().chain(name).collect()
    }
}

impl fmt::Display for BackupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of '{}'", self.id, self.target)
    }
}

/// The name of a volume within its backup's folder: `dump.00000.vol`.
pub fn volume_name(stream: &StreamName, index: u32) -> String {
    format!("{stream}.{index:05}{VOLUME_SUFFIX}")
}

/// Reads [`volume_name`] back; `None` when it is the name of something else.
pub fn parse_volume_name(name: &str) -> Option<(StreamName, u32)> {
    let (stream, index) = name.strip_suffix(VOLUME_SUFFIX)?.rsplit_once('.')?;
    let (stream, index) = (stream.parse().ok()?, index.parse().ok()?);
    (volume_name(&stream, index) == name).then_some((stream, index))
}

macro_rules! text {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
    )*};
}

text!(TargetName, BackupId, StreamName);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::SystemClock;
    use crate::error::ErrorKind;

    proptest! {
        #[test]
        fn ids_are_read_as_printed_and_sort_by_time(
            a in -62_135_596_800i64..253_402_207_200, b in -62_135_596_800i64..253_402_207_200,
            random: [u8; ID_RANDOM_BYTES],
        ) {
            let time = |s| Timestamp::from_second(s).unwrap();
            let (first, second) = (BackupId::from_parts(time(a), random), BackupId::from_parts(time(b), [0; 10]));
            prop_assert_eq!(&first.to_string().parse::<BackupId>().unwrap(), &first);
            prop_assert_eq!(first.timestamp(), time(a));
            if a != b {
                prop_assert_eq!(first < second, a < b);
            }
        }

        #[test]
        fn whatever_parses_as_an_id_prints_the_same(text in "[0-9]{8}T[0-9]{6}Z-[a-z2-7]{16}") {
            if let Ok(id) = text.parse::<BackupId>() {
                prop_assert_eq!(id.to_string(), text.clone());
                prop_assert!(text.parse::<TargetName>().is_err());
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = (text.parse::<BackupId>().is_ok(), text.parse::<TargetName>().is_ok(), parse_volume_name(&text));
        }

        #[test]
        fn volume_names_are_read_as_printed(stream in "[a-z0-9][a-z0-9_-]{0,62}", index: u32) {
            let stream: StreamName = stream.parse().unwrap();
            prop_assert_eq!(parse_volume_name(&volume_name(&stream, index)), Some((stream, index)));
        }

        #[test]
        fn paths_hold_names_as_they_are(target in "[A-Za-z0-9][A-Za-z0-9._-]{0,62}", stream in "[a-z0-9][a-z0-9_-]{0,62}") {
            prop_assume!(!RESERVED.contains(&target.to_ascii_lowercase().as_str()));
            let backup = target.parse::<TargetName>().unwrap().backup(&BackupId::generate(&SystemClock));
            let path = backup.volume(&stream.parse().unwrap(), 7);
            prop_assert_eq!(path.as_ref(), format!("{target}/backups/{}/{stream}.00007.vol", backup.id));
        }
    }

    #[test]
    fn paths_are_those_of_the_design() {
        let id: BackupId = "20261122T020000Z-abcdefghijklmnop".parse().unwrap();
        let backup = "app".parse::<TargetName>().unwrap().backup(&id);
        assert_eq!(repository().as_ref(), "repository.json");
        assert_eq!(backup.target.backups().as_ref(), "app/backups");
        assert_eq!(backup.prefix().as_ref(), "app/backups/20261122T020000Z-abcdefghijklmnop");
        assert_eq!(backup.manifest().as_ref(), "app/backups/20261122T020000Z-abcdefghijklmnop/manifest.json");
        assert_eq!(backup.running().as_ref(), "app/backups/20261122T020000Z-abcdefghijklmnop/running.json");
        let volume = backup.volume(&"dump".parse().unwrap(), 123_456);
        assert_eq!(volume.as_ref(), "app/backups/20261122T020000Z-abcdefghijklmnop/dump.123456.vol");
        assert_eq!(backup.named("dump.123456.vol"), volume);
        assert_eq!(
            (id.timestamp().to_string().as_str(), id.random_half()),
            ("2026-11-22T02:00:00Z", "abcdefghijklmnop")
        );
    }

    #[test]
    fn target_names_that_would_mislead_are_refused_with_a_reason() {
        for (name, reason) in [
            ("", "0 characters"),
            (&"x".repeat(64), "64 characters"),
            ("a/b", "contains '/'"),
            ("ä", "contains 'ä'"),
            ("a\n", "contains '\\n'"),
            (".hidden", "begins with a sign"),
            ("-rf", "begins with a sign"),
            ("..", "begins with a sign"),
            ("runs", "a meaning of its own"),
            ("Latest", "a meaning of its own"),
            ("repository.json", "a meaning of its own"),
            ("20261122T020000Z-abcdefghijklmnop", "the id of a backup"),
        ] {
            let error = name.parse::<TargetName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(reason), "{name}: {error}");
        }
        for name in ["a", "7", "app", "db1.orders_EU-2", "20261122", "backups"] {
            assert_eq!(name.parse::<TargetName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn ids_and_volumes_have_one_spelling() {
        for text in [
            "20261122T020000Z-ABCDEFGHIJKLMNOP",
            "20261122T020000Z-abcdefghijklmno",
            "20261122T020000Z-abcdefghijklmno1",
            "20261322T020000Z-abcdefghijklmnop",
            "20261122T020060Z-abcdefghijklmnop",
            "20261122t020000z-abcdefghijklmnop",
            " 0261122T020000Z-abcdefghijklmnop",
            "20261122T020000Z_abcdefghijklmnop",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
        for name in [
            "dump.0.vol",
            "dump.000000.vol",
            "dump.+0001.vol",
            "Dump.00000.vol",
            ".00000.vol",
            "dump.00000",
            "dump.99999999999.vol",
        ] {
            assert_eq!(parse_volume_name(name), None, "{name}");
        }
        assert!("".parse::<StreamName>().is_err());
        assert_ne!(BackupId::generate(&SystemClock), BackupId::generate(&SystemClock));
    }
}
