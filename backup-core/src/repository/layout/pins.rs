//! Where pins are.

use data_encoding::BASE32_NOPAD;
use object_store::path::Path;

use super::{BackupPath, TargetName};
use crate::encrypt::random;

const PINS: &str = "pins";
const SUFFIX: &str = ".json";
const RANDOM_BYTES: usize = 10;

impl TargetName {
    /// The folder of pins, one folder for each backup that has some inside.
    pub fn pins(&self) -> Path {
        Path::from_iter([self.as_str(), PINS])
    }

    /// Which backup an object pins, by its path; `None` when it is something else.
    pub fn parse_pin(&self, object: &Path) -> Option<BackupPath> {
        let mut parts = object.prefix_match(&self.pins())?;
        let (id, name) = (parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && name.as_ref().ends_with(SUFFIX);
        whole.then(|| Some(self.backup(&id.as_ref().parse().ok()?)))?
    }
}

impl BackupPath {
    /// The folder of its pins.
    pub fn pins(&self) -> Path {
        self.target.pins().join(self.id.as_str())
    }

    /// A new name for a pin, which nobody has.
    pub fn new_pin(&self) -> Path {
        let random = BASE32_NOPAD.encode(&random::bytes::<RANDOM_BYTES>()).to_ascii_lowercase();
        self.pins().join(format!("{random}{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_have_a_folder_of_their_own() {
        let target: TargetName = "app".parse().unwrap();
        let backup = target.backup(&"20261122T020000Z-abcdefghijklmnop".parse().unwrap());
        let pin = backup.new_pin();
        assert!(pin.as_ref().starts_with("app/pins/20261122T020000Z-abcdefghijklmnop/"), "{pin}");
        assert_eq!(target.parse_pin(&pin), Some(backup.clone()));
        assert_ne!(backup.new_pin(), pin);
        assert_eq!(target.parse_pin(&backup.pins()), None);
        assert_eq!(target.parse_pin(&pin.clone().join("x")), None);
        assert_eq!("db".parse::<TargetName>().unwrap().parse_pin(&pin), None);
    }
}
