//! What the tests share: the program on a machine of its own, the library in an embedder's hands, and real parts around them.

pub mod certificates;
pub mod data;
pub mod decoder;
pub mod embedder;
pub mod host;
pub mod kms;
pub mod network;
pub mod physical;
pub mod postgres;
pub mod s3;
pub mod site;
pub mod softhsm;
pub mod sts;
pub mod volume;
pub mod wal;
