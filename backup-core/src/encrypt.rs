//! Encryption: suites, the key schedule, sealing and opening in place. No I/O.
//!
//! ```text
//! data key ─ HKDF(salt of the volume, its whole header) ─▶ volume key + commitment
//!          ├ HKDF("manifest") ──────────────────────────▶ key of the manifest's MAC
//!          └ HKDF("rewrap") ────────────────────────────▶ key of the MACs of rewraps
//! ```

pub mod data_key;
pub mod mac;
pub mod random;
mod record;
pub mod signature;
mod suite;

pub use data_key::{DATA_KEY_LEN, DataKey};
pub use record::{open_record, seal_record};
pub use suite::{COMMITMENT_LEN, SALT_LEN, Suite, TAG_LEN, Unauthentic, VolumeKey};
