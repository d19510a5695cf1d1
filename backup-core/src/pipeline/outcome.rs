//! What became of a backup in each of its repositories.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::upload::Race;

/// What became of a backup in one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The repository, by the name that it was given, or else its address.
    pub repository: String,
    /// Whether the backup had to be there.
    pub required: bool,
    /// How it ended there.
    pub state: OutcomeState,
    /// Why it is not there, if the repository was the reason.
    pub error: Option<String>,
}

/// How a backup ended in one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutcomeState {
    /// It is there, complete and visible.
    Stored,
    /// It is not there: the run goes on, or failed.
    NotStored,
    /// The repository failed, or kept the others waiting: the backup went on without it.
    Dropped,
    /// The repository failed when the backup was to become visible there. All of its volumes are there; whether its manifest is, is not known.
    Unknown,
}

/// What became of a backup in its repositories; clones look at the same run.
#[derive(Debug, Clone)]
pub struct Outcomes(pub(super) Arc<Race>);

impl Outcomes {
    /// As it stands, in the order in which the repositories were given.
    pub fn all(&self) -> Vec<Outcome> {
        let of = |(member, racer): &(crate::repository::Member, Option<Arc<crate::upload::Racer>>)| {
            let (state, error) = match racer {
                None => (OutcomeState::Dropped, member.failure().map(|error| error.in_one_line())),
                Some(racer) if racer.committed.load(Ordering::Acquire) => (OutcomeState::Stored, None),
                Some(racer) => match racer.why() {
                    Some(why) if racer.is_out() && racer.committing.load(Ordering::Acquire) => {
                        (OutcomeState::Unknown, Some(why.in_one_line()))
                    }
                    Some(why) if racer.is_out() => (OutcomeState::Dropped, Some(why.in_one_line())),
                    Some(why) => (OutcomeState::NotStored, Some(why.in_one_line())),
                    None => (OutcomeState::NotStored, None),
                },
            };
            Outcome { repository: member.name().to_owned(), required: member.is_required(), state, error }
        };
        self.0.members().iter().map(of).collect()
    }
}
