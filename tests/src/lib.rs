//! What the tests share: the program on a machine of its own, the library in an embedder's hands, and real parts around them.

pub mod azurite;
pub mod certificates;
pub mod data;
pub mod decoder;
pub mod embedder;
pub mod gcs;
pub mod host;
pub mod kms;
pub mod moto;
pub mod network;
pub mod physical;
pub mod port;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod s3;
pub mod s3rver;
pub mod seaweedfs;
pub mod site;
pub mod softhsm;
pub mod sts;
pub mod tls;
mod uploads;
pub mod volume;
pub mod wal;
