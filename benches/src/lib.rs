//! What the benchmarks share: data, a store that keeps nothing, the bare libraries to compare with, and ways to measure.

pub mod bare;
pub mod data;
pub mod measure;
pub mod null_store;
pub mod run;
