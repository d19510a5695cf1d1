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
    /// How many were read, where that was only a share of them; of the others the header and the size were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<u64>,
}

/// Verifies all files of the archive of `target`: each says in its header that it is what its name says, and its bytes have the digest of its footer.
/// With identities, each is opened and decompressed, too, and compared with the BLAKE3 in its header.
///
/// An error means that the verification could not be done. Cancel safe.
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
            let Some(name) = name else { return Ok(None) };
            let done = match look(repository, target, &name, is_read, budget, counters, reader).await {
                Ok(None) => return Ok(None),
                Ok(Some(looked)) => Ok(looked),
                Err(e) if e.kind() == ErrorKind::Integrity => Err(e.in_one_line()),
                Err(e) => return Err(e),
            };
            Ok::<_, Error>(Some((object.location, done)))
        }
    });
    let mut looked = looked.try_buffer_unordered(OBJECTS).boxed();
    let (mut files, mut bytes, mut read) = (0, 0, 0);
    let mut findings = Vec::new();
    while let Some(one) = looked.try_next().await? {
        let Some((object, looked)) = one else { continue };
        files += 1;
        match looked {
            Ok(Looked { bytes: of_it, is_read, problem }) => {
                read += u64::from(is_read);
                match problem {
                    Some((object, problem)) => findings.push(Finding { object: object.to_string(), problem }),
                    None => bytes += of_it,
                }
            }
            Err(problem) => findings.push(Finding { object: object.to_string(), problem }),
        }
    }
    findings.sort_by(|a, b| a.object.cmp(&b.object));
    let sampled = options.sample.map(|_| read);
    Ok(WalVerification { target: target.clone(), files, bytes, findings, sampled })
}

struct Looked {
    bytes: u64,
    is_read: bool,
    problem: Option<(Path, String)>,
}

/// Looks at one file; `None` when it is gone.
async fn look(
    repository: &Repository,
    target: &TargetName,
    name: &KeptName,
    is_read: bool,
    budget: &ByteBudget,
    counters: &Counters,
    reader: Option<&ArchiveReader>,
) -> Result<Option<Looked>> {
    let Some(file) = name.find(repository, target).await? else { return Ok(None) };
    let (object, bytes) = (file.path().clone(), file.bytes());
    if !is_read {
        return Ok(Some(Looked { bytes: 0, is_read, problem: None }));
    }
    if let Some(reader) = reader {
        let _permit = budget.take(file.memory()).await?;
        reader.check(file).await?;
        counters.add_transferred(usize::try_from(bytes).unwrap_or(usize::MAX));
        return Ok(Some(Looked { bytes, is_read, problem: None }));
    }
    let entry = file.claimed().await?;
    let wanted = Wanted::file(name.name(target));
    let problem = check_volume(repository, &object, &entry, Some(&wanted), budget, counters).await?;
    Ok(Some(Looked { bytes, is_read, problem: problem.map(|problem| (object, problem)) }))
}
