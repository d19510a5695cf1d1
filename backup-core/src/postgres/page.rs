//! Pages of relations, and whether their checksums hold. No I/O.
//!
//! The checksum is described in PostgreSQL's `src/include/storage/checksum_impl.h`: FNV-1a over 32-bit words, in 32 sums at once so that
//! compilers make vector instructions of it, with a shift that carries high bits down, and the block's number in the end. What makes a page
//! valid is `PageIsVerified` in `src/backend/storage/page/bufpage.c`.

use super::wal::Lsn;

/// Bytes of a page, unless the server was built otherwise.
pub const PAGE_BYTES: usize = 8192;
/// Pages in one file of a relation, unless the server was built otherwise: 1 GiB.
pub const SEGMENT_PAGES: u32 = 131_072;

const SUMS: usize = 32;
const ROW_BYTES: usize = 4 * SUMS;
const FNV_PRIME: u32 = 16_777_619;
/// Where the page's header has its own checksum, and how far the space between its line pointers and its rows reaches.
const CHECKSUM_AT: usize = 8;
const UPPER_AT: usize = 14;

const START: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page's own header makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it was written, or never was written.
    Sound,
    /// Its checksum is another than it says.
    Checksum {
        /// What it says.
        stated: u16,
        /// What it is.
        computed: u16,
    },
    /// It says that it never was written, and is not empty.
    NotEmpty,
}

/// Judges the page that is block `block` of its relation. One that was read while it was written is wrong, too.
///
/// # Panics
/// When `page` is no page: shorter than a header, or not a multiple of 128 bytes.
pub fn judge(page: &[u8], block: u32) -> Verdict {
    if u16_at(page, UPPER_AT) == 0 {
        return if page.iter().all(|&byte| byte == 0) { Verdict::Sound } else { Verdict::NotEmpty };
    }
    let (stated, computed) = (u16_at(page, CHECKSUM_AT), checksum(page, block));
    if stated == computed { Verdict::Sound } else { Verdict::Checksum { stated, computed } }
}

/// The position in the log of the last change to a page.
pub fn lsn(page: &[u8]) -> Lsn {
    Lsn(u64::from(u32_at(page, 0)) << 32 | u64::from(u32_at(page, 4)))
}

/// The checksum of a page that is block `block` of its relation, whatever its header says.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = START;
    let (rows, rest) = page.as_chunks::<ROW_BYTES>();
    assert!(!rows.is_empty() && rest.is_empty(), "a page has whole rows");
    for (i, row) in rows.iter().enumerate() {
        let mut words = words(row);
        if i == 0 {
            // In place of the checksum itself there are zeros.
            let mut own: [u8; 4] = row[CHECKSUM_AT..CHECKSUM_AT + 4].try_into().expect("four bytes");
            own[..2].fill(0);
            words[CHECKSUM_AT / 4] = u32::from_ne_bytes(own);
        }
        step(&mut sums, &words);
    }
    for _ in 0..2 {
        step(&mut sums, &[0; SUMS]);
    }
    let sum = sums.iter().fold(block, |all, sum| all ^ sum);
    // Never 0, which would mean that there is none.
    u16::try_from(sum % 65_535 + 1).expect("at most 65,535")
}

fn words(row: &[u8; ROW_BYTES]) -> [u32; SUMS] {
    let (bytes, _) = row.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_ne_bytes(bytes[i]))
}

#[inline]
fn step(sums: &mut [u32; SUMS], words: &[u32; SUMS]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page whose header says when it was written, that something is in it, and the right checksum.
    fn page(seed: u64, lsn: u64, block: u32) -> Vec<u8> {
        let mut page: Vec<u8> =
            (0..PAGE_BYTES as u64).map(|i| (i.wrapping_mul(seed | 1) >> 7).to_le_bytes()[0]).collect();
        page[..4].copy_from_slice(&u32::try_from(lsn >> 32).unwrap().to_ne_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).unwrap().to_ne_bytes());
        page[UPPER_AT..UPPER_AT + 2].copy_from_slice(&4096u16.to_ne_bytes());
        let sum = checksum(&page, block);
        page[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(seed: u64, block: u32, bit in 0usize..PAGE_BYTES * 8) {
            let mut page = page(seed, 0x1_0000_0028, block);
            prop_assert_eq!(judge(&page, block), Verdict::Sound);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(judge(&page, block), Verdict::Sound);
        }

        #[test]
        fn a_flipped_bit_of_a_header_is_found(seed: u64, block: u32, bit in 0usize..24 * 8) {
            // Its position in the log, its checksum, what it says of its room.
            let mut page = page(seed, 0x1_0000_0028, block);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(judge(&page, block), Verdict::Sound);
        }

        #[test]
        fn a_page_in_the_place_of_another_is_found(seed: u64, block in 0u32..1 << 16, other in 0u32..1 << 16) {
            let page = page(seed, 1, block);
            prop_assert_eq!(judge(&page, other) == Verdict::Sound, block == other);
        }
    }

    #[test]
    fn a_page_that_was_never_written_is_sound_and_one_that_only_says_so_is_not() {
        let mut page = vec![0; PAGE_BYTES];
        assert_eq!(judge(&page, 7), Verdict::Sound);
        page[5000] = 1;
        assert_eq!(judge(&page, 7), Verdict::NotEmpty);
    }

    #[test]
    fn the_checksum_does_not_depend_on_what_the_header_says_of_it() {
        let mut page = page(3, 1, 9);
        let sum = checksum(&page, 9);
        page[CHECKSUM_AT] ^= 0xFF;
        assert_eq!(checksum(&page, 9), sum);
        assert_ne!(checksum(&page, 10), sum);
    }
}
