//! A share of all objects, chosen at random.

use crate::encrypt::random;
use crate::error::{Error, Result};

/// Which share of the objects is read; of the others only presence and size are looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample(f64);

impl Sample {
    /// So many in a hundred: more than 0, at most 100.
    ///
    /// # Errors
    /// `Config` when it is not.
    pub fn percent(percent: f64) -> Result<Self> {
        if percent > 0.0 && percent <= 100.0 {
            return Ok(Self(percent / 100.0));
        }
        Err(Error::config(format!("a sample of {percent} % is not more than 0 % and at most 100 %")))
    }

    /// Whether the next object is one of them.
    pub(super) fn takes_one(self) -> bool {
        self.takes(u32::from_le_bytes(random::bytes()))
    }

    fn takes(self, random: u32) -> bool {
        f64::from(random) < self.0 * (f64::from(u32::MAX) + 1.0)
    }

    /// Which of `objects` objects, perhaps `one_at_least`.
    pub(super) fn of(self, objects: usize, one_at_least: bool) -> Vec<bool> {
        let mut taken: Vec<bool> = (0..objects).map(|_| self.takes_one()).collect();
        if one_at_least && !taken.contains(&true) && objects > 0 {
            let one = u64::from_le_bytes(random::bytes()) % objects as u64;
            taken[usize::try_from(one).unwrap_or(0)] = true;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_what_they_say_at_their_ends() {
        let share = |percent| Sample::percent(percent).unwrap();
        assert!(share(100.0).takes(0) && share(100.0).takes(u32::MAX));
        assert!(share(25.0).takes(u32::MAX / 4) && !share(25.0).takes(u32::MAX / 4 + 1));
        assert_eq!(share(0.000_001).of(3, true).iter().filter(|taken| **taken).count(), 1);
        assert_eq!(share(100.0).of(50, false), [true; 50]);
        assert_eq!(share(50.0).of(0, true), [false; 0]);
        for percent in [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY] {
            assert!(Sample::percent(percent).is_err(), "{percent}");
        }
    }
}
