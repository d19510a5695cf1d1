//! Gaps of the log that retention has left.

use std::collections::BTreeSet;
use std::sync::Arc;

use backup_core::Result;
use backup_core::postgres::wal::{SegmentName, SystemIdentifier};
use backup_core::repository::Repository;
use backup_core::repository::layout::TargetName;
use backup_core::repository::prune::Prune;
use backup_core::wal_archive::{ClusterInventory, Inventory};

use crate::App;

/// Gaps of an archive, each by its cluster and its last segment.
pub(crate) type Gaps = BTreeSet<(SystemIdentifier, SegmentName)>;

/// The gaps that nothing needs which is to be kept: a prune has left them, or could. The manifests are read only when there are gaps.
pub(crate) async fn pruned_gaps(
    app: &App,
    repository: &Repository,
    target: &TargetName,
    inventory: &Inventory,
) -> Result<Gaps> {
    let of_cluster = |cluster: &ClusterInventory| {
        let gaps = cluster.gaps().into_iter();
        gaps.map(|(first, last)| (cluster.system_identifier, first, last)).collect::<Vec<_>>()
    };
    let gaps: Vec<(SystemIdentifier, SegmentName, SegmentName)> =
        inventory.clusters.iter().flat_map(of_cluster).collect();
    if gaps.is_empty() {
        return Ok(Gaps::new());
    }
    let retention = &app.config.retention;
    let mut prune = Prune::new(repository.clone()).rules(retention.rules.clone()).clock(Arc::clone(&app.clock));
    if let Some(rules) = retention.of_target.get(target) {
        prune = prune.rules_of(target.clone(), rules.clone());
    }
    let plan = prune.plan_log(target).await?;
    let pruned = gaps.into_iter().filter(|(cluster, first, last)| !plan.keeps_any(*cluster, *first, *last));
    Ok(pruned.map(|(cluster, _, last)| (cluster, last)).collect())
}
