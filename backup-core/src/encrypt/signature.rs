//! Ed25519 signatures (RFC 8032): who made an object, for readers that hold no key of the data. This release makes none and checks all.

use ring::signature::{ED25519, UnparsedPublicKey};

use super::Unauthentic;

/// Length of a signature in bytes.
pub const SIGNATURE_LEN: usize = 64;
/// Length of a public key in bytes.
pub const SIGNER_LEN: usize = 32;

/// Checks the `signature` of `signer` over `domain` and `message` together. Whether to trust the signer is for the caller to say.
///
/// Zeros are neither a key nor a signature here: as a key they are a point of order four, under which one forgery in four verifies.
pub fn verify(
    domain: &[u8],
    message: &[u8],
    signature: &[u8; SIGNATURE_LEN],
    signer: &[u8; SIGNER_LEN],
) -> Result<(), Unauthentic> {
    if *signer == [0; SIGNER_LEN] || *signature == [0; SIGNATURE_LEN] {
        return Err(Unauthentic);
    }
    let message = [domain, message].concat();
    UnparsedPublicKey::new(&ED25519, signer).verify(&message, signature).map_err(|_| Unauthentic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_zeros_verifies_nothing() {
        // The encodings of two points that a key of zeros, of order four, leads to; each fits about every fourth message.
        let (mut one, mut zero) = ([0; SIGNATURE_LEN], [0; SIGNATURE_LEN]);
        (one[0], zero[31]) = (1, 0x80);
        for message in 0..64u8 {
            for signature in [one, zero, [0; SIGNATURE_LEN]] {
                assert_eq!(verify(b"domain", &[message], &signature, &[0; SIGNER_LEN]), Err(Unauthentic));
            }
        }
    }
}
