"""Opens small age v1 files (https://age-encryption.org/v1) with X25519 identities: what docs/FORMAT.md wraps data keys in."""
import base64, hmac, pathlib, re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEADER = re.compile(rb"age-encryption.org/v1\n((?:-> [!-~ ]+\n(?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n)+)--- (\S{43})\n")
X25519_STANZA = re.compile(rb"-> X25519 (\S{43})\n(\S{43})\n")


def hkdf(key, salt, info, length):
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def read_identities(path):
    """The secret keys in an identity file."""
    lines = (line.strip() for line in pathlib.Path(path).read_text().splitlines())
    return [secret_key(line) for line in lines if line and not line.startswith("#")]


def secret_key(text):
    """The 32 bytes of 'AGE-SECRET-KEY-1…': bech32 (BIP 173)."""
    prefix, _, data = text.lower().rpartition("1")
    values = ["qpzry9x8gf2tvdw0s3jn54khce6mua7l".find(c) for c in data]
    check = 1
    for v in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ v
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    if prefix != "age-secret-key-" or check != 1 or len(values) != 58 or -1 in values:
        raise ValueError("not an age identity")
    bits = "".join(f"{v:05b}" for v in values[:52])
    return bytes(int(bits[i : i + 8], 2) for i in range(0, 256, 8))


def unpadded(text):
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def decrypt(file, secret_keys):
    """The content of an age file of at most 64 KiB; None when it is for somebody else. Raises ValueError when it is damaged."""
    header = HEADER.match(file)
    if header is None:
        raise ValueError("not an age file")
    for share, body in X25519_STANZA.findall(header[1]):
        for secret in map(X25519PrivateKey.from_private_bytes, secret_keys):
            salt = unpadded(share) + secret.public_key().public_bytes_raw()
            shared = secret.exchange(X25519PublicKey.from_public_bytes(unpadded(share)))
            try:
                wrap_key = hkdf(shared, salt, b"age-encryption.org/v1/X25519", 32)
                file_key = ChaCha20Poly1305(wrap_key).decrypt(bytes(12), unpadded(body), None)
            except InvalidTag:
                continue
            authenticated = header[0][: header.start(2) - 1]  # up to and including '---'
            mac = hmac.digest(hkdf(file_key, b"", b"header", 32), authenticated, "sha256")
            if not hmac.compare_digest(mac, unpadded(header[2])):
                raise ValueError("the header's MAC does not verify")
            payload = file[header.end() :]
            payload_key = hkdf(file_key, payload[:16], b"payload", 32)
            last_chunk = bytes(11) + b"\1"
            try:
                return ChaCha20Poly1305(payload_key).decrypt(last_chunk, payload[16:], None)
            except InvalidTag:
                raise ValueError("the payload does not authenticate") from None
    return None
