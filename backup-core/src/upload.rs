//! Sealed records become parts of equal size, parts become volumes in a repository.

mod fan_out;
mod object;
mod part;
mod race;
mod volume;

pub(crate) use fan_out::FanOut;
pub(crate) use object::ObjectUpload;
pub(crate) use part::{PartBudget, Parts, SharedParts};
pub(crate) use race::{Race, Racer};
pub(crate) use volume::{Record, VolumeWriter};
