//! Files of write-ahead log, each by itself.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use serde::Serialize;

use super::{Finding, KeylessOptions, OBJECTS, Wanted, check_volume};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::keys::Identity;
use crate::pipeline::Counters;
use crate::repository::layout::TargetName;
use crate::repository::{ByteBudget, Repository};
use crate::wal_archive::kept::{ArchiveReader, KeptName};

/// The most files that could not be judged that are named; all are counted.
const EXAMPLES_MAX: usize = 100;

/// What the verification of an archive found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WalVerification {
    /// Whose log it is.
    pub target: TargetName,
    /// Files, and pieces of files, that were looked at.
    pub files: u64,
    /// Bytes that were read of them.
    pub bytes: u64,
    /// All that is wrong, by object.
    pub findings: Vec<Finding>,
    /// How many could not be judged, since no identity opens them.
    pub unverified: u64,
    /// Some of these, and why; at most 100.
    pub unverified_examples: Vec<Finding>,
    /// How many were read, where that was only a share of them; of the others the header and the size were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<u64>,
}

/// Verifies all files of the archive of `target`: each says in its header that it is what its name says, and its bytes have the digest of its footer.
/// With identities, each is opened and decompressed, too, and compared with the BLAKE3 in its header.
///
/// What no identity opens is counted and keeps no other from its turn; what a prune removes meanwhile is no damage. An error means that the
/// verification could not be done. Cancel safe.
pub async fn wal(
    repository: &Repository,
    target: &TargetName,
    identities: Option<&[Arc<dyn Identity>]>,
    options: &KeylessOptions,
    counters: &Counters,
) -> Result<WalVerification> {
    let reader = match identities {
        Some(identities) => Some(ArchiveReader::new(identities.to_vec(), options.limits.workers)?),
        None => None,
    };
    let prefix = target.wal();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let (budget, reader) = (&options.budget(), reader.as_ref());
    let listing = repository.store().list(Some(&prefix)).map_err(failed);
    let looked = listing.map_ok(|object: ObjectMeta| {
        let name = KeptName::parse(target, &object.location);
        let is_read = options.sample.is_none_or(super::Sample::takes_one);
        async move {
            let Some(name) = name else { return Ok((Looked::Gone, false)) };
            let object = object.location;
            let looked = match look(repository, target, &name, is_read, budget, counters, reader).await {
                Err(e) if matches!(e.kind(), ErrorKind::Integrity | ErrorKind::NotFound) => {
                    Looked::Wrong(finding(&object, e.in_one_line()))
                }
                Err(e) if e.kind() == ErrorKind::Key => Looked::Unverified(finding(&object, e.in_one_line())),
                looked => looked?,
            };
            match looked {
                Looked::Wrong(_) | Looked::Unverified(_) if !repository.still_has(&object).await? => {
                    Ok((Looked::Gone, false))
                }
                looked => Ok::<_, Error>((looked, is_read)),
            }
        }
    });
    let mut looked = looked.try_buffer_unordered(OBJECTS).boxed();
    let mut found = WalVerification::of(target);
    let mut read = 0;
    while let Some((looked, is_read)) = looked.try_next().await? {
        read += u64::from(is_read);
        found.add(looked);
    }
    found.findings.sort_by(|a, b| a.object.cmp(&b.object));
    found.unverified_examples.sort_by(|a, b| a.object.cmp(&b.object));
    found.sampled = options.sample.map(|_| read);
    Ok(found)
}

enum Looked {
    Sound {
        bytes: u64,
    },
    Wrong(Finding),
    Unverified(Finding),
    /// It is no file of the archive, or was removed meanwhile.
    Gone,
}

fn finding(object: &Path, problem: String) -> Finding {
    Finding { object: object.to_string(), problem }
}

impl WalVerification {
    fn of(target: &TargetName) -> Self {
        Self {
            target: target.clone(),
            files: 0,
            bytes: 0,
            findings: Vec::new(),
            unverified: 0,
            unverified_examples: Vec::new(),
            sampled: None,
        }
    }

    fn add(&mut self, looked: Looked) {
        self.files += u64::from(!matches!(looked, Looked::Gone));
        match looked {
            Looked::Sound { bytes } => self.bytes += bytes,
            Looked::Wrong(finding) => self.findings.push(finding),
            Looked::Unverified(finding) => {
                self.unverified += 1;
                if self.unverified_examples.len() < EXAMPLES_MAX {
                    self.unverified_examples.push(finding);
                }
            }
            Looked::Gone => {}
        }
    }
}

/// Looks at one file.
async fn look(
    repository: &Repository,
    target: &TargetName,
    name: &KeptName,
    is_read: bool,
    budget: &ByteBudget,
    counters: &Counters,
    reader: Option<&ArchiveReader>,
) -> Result<Looked> {
    let Some(file) = name.find(repository, target).await? else { return Ok(Looked::Gone) };
    let (object, bytes) = (file.path().clone(), file.bytes());
    if !is_read {
        return Ok(Looked::Sound { bytes: 0 });
    }
    if let Some(reader) = reader {
        let _permit = budget.take(file.memory()).await?;
        reader.check(file).await?;
        counters.add_transferred(usize::try_from(bytes).unwrap_or(usize::MAX));
        return Ok(Looked::Sound { bytes });
    }
    let entry = file.claimed().await?;
    let wanted = Wanted::file(name.name(target));
    let problem = check_volume(repository, &object, &entry, Some(&wanted), budget, counters).await?;
    Ok(match problem {
        Some(problem) => Looked::Wrong(finding(&object, problem)),
        None => Looked::Sound { bytes },
    })
}
