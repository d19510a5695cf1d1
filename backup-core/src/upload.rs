//! Sealed records become parts of equal size, parts become volumes in a repository.

mod object;
mod part;
mod volume;

pub(crate) use object::ObjectUpload;
pub(crate) use part::{Part, PartBudget, Parts, SharedParts};
pub(crate) use volume::{Record, VolumeWriter};
