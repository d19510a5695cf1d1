#!/usr/bin/env python3
"""Restores one stream of a backup. Written from docs/FORMAT.md; shares no code with `backup`.

    decode.py (--identity FILE | --data-key HEX) REPOSITORY BACKUP STREAM > FILE
    decode.py (--identity FILE | --data-key HEX) --wal REPOSITORY TARGET/SYSTEM-IDENTIFIER FILE > FILE

REPOSITORY is a directory, BACKUP an id or the directory of a backup. Only exit status 0 says that what was written is the whole
stream, unchanged. Needs `cryptography` and `zstandard`. The numbers are the steps of "Reading" in FORMAT.md. Digests are compared
and not computed: they are for readers without a key, and all that they cover is authenticated here.
"""
import argparse, base64, hashlib, hmac, json, pathlib, re, struct, sys

import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

import age
from age import hkdf

SUITES = {"aes-256-gcm": AESGCM, "chacha20-poly1305": ChaCha20Poly1305}
FOOTER, FRAME_EXTRA, HEADER_MAX, MANIFEST_MAX, WRAPS_MAX = 152, 64, 65536, 16 << 20, 64
CHUNK_SIZES, VOLUME_CHUNKS = range(4096, (2 << 20) + 1), range(1, (1 << 20) + 1)
REWRAP_MAX, REWRAP_NAME = 65536, re.compile(r"[0-9]{8}-[a-z2-7]{16}\.json")
PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")

HEADER = {"name": dict, "stream_id": str, "volume": int, "suite": str, "codec": str, "chunk_size": int, "volume_chunks": int}
HEADER |= {"created": str, "salt": str, "data_key": str, "wraps": list}
MANIFEST = {"format": int, "id": str, "target": str, "data_key": str, "streams": list}
STREAM = {"name": str, "stream_id": str, "bytes": int, "volumes": list}
VOLUME = {"path": str, "bytes": int, "chunks": int, "digest": str}
REWRAP = {"format": int, "target": str, "purpose": str, "data_key": str, "wraps": list}
WRAP = {"kind": str, "recipient": str, "wrap": str}


class Refused(Exception):
    """Stored bytes are not what the format demands, or nothing that was given opens them."""


def demand(true, where, why):
    if not true:
        raise Refused(f"{where}: {why}")


def document(data, where, fields):
    """A JSON object: no duplicate keys, nothing that must be understood and is not."""

    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise Refused(f"{where}: malformed JSON: {e}") from None
    demand(isinstance(value, dict), where, "malformed JSON: not an object")
    demand(value.get("format", 1) == 1, where, f"format version {value.get('format')} is not known")
    demand(value.get("critical", []) == [], where, f"critical fields {value.get('critical')} are not known")
    return typed(value, fields, where)


def typed(value, fields, where):
    for name, kind in fields.items():
        fits = isinstance(value, dict) and type(value.get(name)) is kind
        demand(fits and (kind is not int or value[name] >= 0), where, f"malformed: {name} is missing or of another type")
    return value


def b64(text, length, where):
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = None
    canonical = data is not None and base64.b64encode(data).decode() == text
    demand(canonical and length in (None, len(data)), where, f"malformed: not the base64 of {length or 'some'} bytes")
    return data


def check_signature(signature, signer, message, where):
    try:
        demand(any(signature) and any(signer), where, "its signature does not verify")  # zeros are a weak key
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Refused(f"{where}: its signature does not verify") from None


class Volume:
    def __init__(self, folder, entry):  # 5, 6
        self.name, self.entry, path = entry["path"], entry, folder / entry["path"]
        demand(path.is_file(), self.name, "the object is missing")
        self.file, size = path.open("rb"), path.stat().st_size
        demand(size == entry["bytes"], self.at(0), f"the object has {size} bytes and not {entry['bytes']}")
        magic, version, length = struct.unpack("<7sBI", self.read(0, 12))
        demand(magic == b"backupV", self.at(0), "the magic number is missing")
        demand(version == 1, self.at(7), f"format version {version} is not known")
        demand(length <= HEADER_MAX, self.at(8), f"header length of {length} is out of bounds")
        self.preamble, self.start, self.end = self.read(0, 12 + length), 44 + length, size - FOOTER
        h = self.header = document(self.preamble[12:], self.at(12), HEADER)
        self.chunk_size, self.volume_chunks, self.zstd = h["chunk_size"], h["volume_chunks"], h["codec"] == "zstd"
        demand(h["suite"] in SUITES and h["codec"] in ("zstd", "none"), self.at(12), "malformed: unknown suite or codec")
        demand(self.chunk_size in CHUNK_SIZES, self.at(12), f"chunk size of {self.chunk_size} is out of bounds")
        demand(self.volume_chunks in VOLUME_CHUNKS, self.at(12), f"chunks in a volume of {self.volume_chunks} is out of bounds")
        demand(len(h["wraps"]) <= WRAPS_MAX, self.at(12), f"number of recipients of {len(h['wraps'])} is out of bounds")
        self.salt, self.wraps = b64(h["salt"], 32, self.at(12)), [typed(w, WRAP, self.at(12)) for w in h["wraps"]]

    def at(self, offset):
        return f"{self.name} at offset {offset}"

    def read(self, offset, length):
        self.file.seek(offset)
        data = self.file.read(length)
        demand(len(data) == length, self.at(offset + len(data)), "truncated")
        return data

    def check_name(self, asked, expected):  # 7
        found = self.header["name"]
        demand({**found, **asked} == found, self.at(12), f"answers to another name: {found} and not {asked}")
        for name, value in expected.items():
            found = self.header[name]
            demand(found == value, self.at(12), f"answers to another name: {name} is {found!r} and not {value!r}")

    def unlock(self, data_key):  # 8
        okm = hkdf(data_key, self.salt, b"backup/v1 volume" + hashlib.sha256(self.preamble).digest(), 64)
        commitment, at = self.read(self.start - 32, 32), self.at(self.start - 32)
        demand(commitment == okm[32:], at, "the header does not belong to this data key, or was changed")
        self.cipher = SUITES[self.header["suite"]](okm[:32])

    def open_index(self, last):  # 9, 10
        says, at = "the footer contradicts the volume: ", self.at(self.end)
        demand(self.end >= 0, self.at(0), "truncated")
        footer = self.read(self.end, FOOTER)
        index_at, c, digest, signature, signer, magic = struct.unpack("<QQ32s64s32s8s", footer)
        demand(magic == b"backupE\1", at, says + "its magic number is missing")
        if signature + signer != bytes(96):
            check_signature(signature, signer, b"backup/v1 volume signature" + footer[:48], at)
        demand(digest == b64(self.entry["digest"], 32, "manifest.json"), at, says + "the manifest has another digest")
        demand(c == self.entry["chunks"], at, says + "the manifest has another number of chunks")
        least = self.volume_chunks if not last else min(self.header["volume"], 1)
        demand(least <= c <= self.volume_chunks, at, says + f"{c} chunks")
        length = 17 + 8 * c if self.zstd else 0
        demand(index_at == self.end - 20 - length, at, says + f"the index is not at {index_at}")

        says, at = "the index contradicts the volume: ", self.at(index_at)
        index = self.open_record(index_at, c, 2 if last else 1, length)
        if self.zstd:
            expected = struct.pack("<II", 0x184D2A5E, 9 + 8 * c) + index[8:-9] + struct.pack("<IBI", c, 0, 0x8F92EAB1)
            demand(index == expected, at, says + "it is not a seek table")
            self.lengths = list(struct.iter_unpack("<II", index[8:-9]))
        else:
            rest = index_at - self.start - (20 + self.chunk_size) * (c - 1) - 20
            self.lengths = [(n, n) for n in ([self.chunk_size] * (c - 1) + [rest])[:c]]
        for i, (frame, plain) in enumerate(self.lengths):
            short = last and i == c - 1 and plain in range(1, self.chunk_size)
            demand(plain == self.chunk_size or short, at, says + f"chunk {i} has {plain} bytes")
            demand(0 < frame <= self.chunk_size + FRAME_EXTRA, at, says + f"frame {i} has {frame} bytes")
        demand(self.start + sum(20 + frame for frame, _ in self.lengths) == index_at, at, says + "the lengths do not add up")

    def open_record(self, offset, counter, flag, length):
        record, word = self.read(offset, 20 + length), struct.pack("<I", flag << 30 | length + 16)
        demand(record[:4] == word, self.at(offset), f"malformed chunk word 0x{record[3::-1].hex()}")
        try:
            return self.cipher.decrypt(struct.pack(">IQ", 0, counter), record[4:], word)
        except InvalidTag:
            raise Refused(f"{self.at(offset)}: chunk {counter} does not authenticate") from None

    def chunks(self):  # 11, 12
        offset = self.start
        for i, (length, plain) in enumerate(self.lengths):
            content = self.open_record(offset, i, 0, length)
            yield decompress(content, plain, f"{self.at(offset)}: chunk {i}") if self.zstd else content
            offset += 20 + length


def decompress(frame, plain, where):
    try:
        # The size is looked at first: the library allocates what the frame says.
        if frame[:4] == b"\x28\xb5\x2f\xfd" and zstandard.frame_content_size(frame) == plain:
            return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        pass
    raise Refused(f"{where} does not decompress to {plain} bytes")


def read_manifest(path, target, backup):  # 2
    lines = path.read_bytes().split(b"\n") if path.stat().st_size <= MANIFEST_MAX else ()
    demand(len(lines) == 3 and lines[2] == b"", path.name, "malformed: it does not have two lines")
    proof, manifest = document(lines[1], path.name, {"mac": str}), document(lines[0], path.name, MANIFEST)
    if "signature" in proof or "signer" in proof:
        typed(proof, {"signature": str, "signer": str}, path.name)
        signature, signer = b64(proof["signature"], 64, path.name), b64(proof["signer"], 32, path.name)
        check_signature(signature, signer, b"backup/v1 manifest signature" + lines[0], path.name)
    demand((manifest["target"], manifest["id"]) == (target, backup), path.name, "answers to another name")
    for stream in manifest["streams"]:
        typed(stream, STREAM, path.name)
        demand(stream["volumes"], path.name, f"stream '{stream['name']}' has no volume")
        for volume in stream["volumes"]:
            fits = PATH.fullmatch(typed(volume, VOLUME, path.name)["path"])
            demand(fits, path.name, f"'{volume['path']}' is not the name of an object")
    names = [s["name"] for s in manifest["streams"]]
    paths = [v["path"] for s in manifest["streams"] for v in s["volumes"]]
    demand(len(set(names)) == len(names) and len(set(paths)) == len(paths), path.name, "a name stands twice")
    return manifest, lambda mac_key: hmac.compare_digest(
        hmac.digest(mac_key, b"backup/v1 manifest" + lines[0], "sha256"), b64(proof["mac"], 32, path.name)
    )


def unwrap(wraps, secret_keys, where):  # 3
    for wrap in wraps:
        try:
            data_key = age.decrypt(b64(wrap["wrap"], None, where), secret_keys) if wrap["kind"] == "age" else None
        except ValueError as e:
            raise Refused(f"{where}: the data key wrapped for {wrap['recipient']} is damaged: {e}") from None
        if data_key is not None:
            return data_key
    raise Refused(f"{where}: none of the given identities can open this backup")


def read_rewrap(path, asked, secret_keys):
    """The data key, if one of the wraps is for us and the document is authentic."""
    lines = path.read_bytes().split(b"\n") if path.stat().st_size <= REWRAP_MAX else ()
    demand(len(lines) == 3 and lines[2] == b"", path.name, "malformed: it does not have two lines")
    rewrap, proof = document(lines[0], path.name, REWRAP), document(lines[1], path.name, {"mac": str})
    demand({**rewrap, **asked} == rewrap, path.name, f"answers to another name and not {asked}")
    demand(0 < len(rewrap["wraps"]) <= WRAPS_MAX, path.name, "number of recipients is out of bounds")
    data_key = unwrap([typed(w, WRAP, path.name) for w in rewrap["wraps"]], secret_keys, path.name)
    demand(hkdf(data_key, b"", b"backup/v1 data key id", 16).hex() == asked["data_key"], path.name, "it is of another data key")
    mac = hmac.digest(hkdf(data_key, b"", b"backup/v1 rewrap", 32), b"backup/v1 rewrap" + lines[0], "sha256")
    demand(hmac.compare_digest(mac, b64(proof["mac"], 32, path.name)), path.name, "its MAC does not verify")
    return data_key


def open_key(repository, volume, secret_keys):  # 3
    try:
        return unwrap(volume.wraps, secret_keys, volume.at(12))
    except Refused as e:
        refused = e
    name, data_key = volume.header["name"], volume.header["data_key"]
    demand(re.fullmatch("[0-9a-f]{32}", data_key), volume.at(12), "data_key is not the id of one")
    asked = {"target": name["target"], "purpose": name["kind"], "data_key": data_key}
    folder = repository / name["target"] / "keys" / data_key
    found = sorted((path for path in folder.glob("*") if REWRAP_NAME.fullmatch(path.name)), reverse=True)
    for path in found:
        try:
            return read_rewrap(path, asked, secret_keys)
        except Refused:
            pass  # an older one may do
    raise refused


def restore(repository, backup, name, secret_keys=(), data_key=None):
    """Yields a stream in pieces. It is whole only when this has ended without an exception."""
    document((repository / "repository.json").read_bytes(), "repository.json", {"format": int})  # 1
    folder = pathlib.Path(backup) if "/" in backup else next(repository.glob(f"*/backups/{backup}"), None)
    demand(folder and (folder / "manifest.json").is_file(), backup, "there is no such backup")
    asked = {"kind": "backup", "target": folder.parent.parent.name, "backup": folder.name, "stream": name}
    manifest, mac_verifies = read_manifest(folder / "manifest.json", asked["target"], asked["backup"])
    stream = next((s for s in manifest["streams"] if s["name"] == name), None)
    demand(stream, backup, f"there is no stream '{name}'")

    first = Volume(folder, stream["volumes"][0])
    expected = {f: first.header[f] for f in ("suite", "codec", "chunk_size", "volume_chunks")}
    expected |= {"stream_id": stream["stream_id"], "data_key": manifest["data_key"]}
    first.check_name(asked, {**expected, "volume": 0})
    data_key = data_key or open_key(repository, first, secret_keys)
    data_key_id = hkdf(data_key, b"", b"backup/v1 data key id", 16).hex()
    demand(data_key_id == manifest["data_key"], first.at(12), "a wrapped data key belongs to another backup")
    demand(mac_verifies(hkdf(data_key, b"", b"backup/v1 manifest", 32)), "manifest.json", "its MAC does not verify")  # 4

    count, total = len(stream["volumes"]), 0
    for k, entry in enumerate(stream["volumes"]):
        volume = Volume(folder, entry)
        volume.check_name(asked, {**expected, "volume": k})
        volume.unlock(data_key)
        volume.open_index(last=k == count - 1)
        for chunk in volume.chunks():
            total += len(chunk)
            yield chunk
    demand(total == stream["bytes"], "manifest.json", f"stream '{name}' has {total} bytes and not {stream['bytes']}")  # 13


def wal_entry(folder, name):
    """What a manifest would say of an object that none lists: its size, and what its footer says."""
    demand((folder / name).is_file(), name, "is missing")
    data = (folder / name).read_bytes()
    chunks, digest = struct.unpack("<8xQ32s", data[-FOOTER:][:48]) if len(data) >= FOOTER else (0, b"")
    return {"path": name, "bytes": len(data), "chunks": chunks, "digest": base64.b64encode(digest).decode()}


def follow(folder, file):
    """The object of a WAL file, which may lie under another name."""
    name, head = f"{file}.vol", (folder / f"{file}.vol").read_bytes()[:4097]
    if head[:7] != b"backupR":
        return wal_entry(folder, name)
    demand(head[7] == 1, f"{name} at offset 7", f"format version {head[7]} is not known")
    fits = len(head) <= 4096 and head[8:12] == struct.pack("<I", len(head) - 12)
    demand(fits, f"{name} at offset 8", "reference length is out of bounds")
    reference = document(head[12:], f"{name} at offset 12", {"object": str, "bytes": int})
    large = reference["object"]
    demand(re.fullmatch(re.escape(file) + r"\.[0-9a-f]{32}\.vol", large), name, f"answers to another name: {large}")
    entry = wal_entry(folder, large)
    demand(entry["bytes"] == reference["bytes"], large, f"has {entry['bytes']} bytes and should have {reference['bytes']}")
    return entry


def restore_wal(repository, target, system_identifier, file, secret_keys=(), data_key=None):
    """Yields a file of write-ahead log in pieces. It is whole only when this has ended without an exception."""
    document((repository / "repository.json").read_bytes(), "repository.json", {"format": int})
    timeline = file[:8]
    folder = repository / target / "wal" / system_identifier / timeline
    demand((folder / f"{file}.vol").is_file(), file, "it is not archived")
    volume = Volume(folder, follow(folder, file))
    asked = {"kind": "wal", "target": target, "system_identifier": system_identifier, "timeline": timeline, "file": file}
    volume.check_name(asked, {"volume": 0})
    plaintext = typed(volume.header.get("plaintext"), {"bytes": int, "blake3": str}, volume.at(12) + ": plaintext")
    b64(plaintext["blake3"], 32, volume.at(12))
    data_key = data_key or open_key(repository, volume, secret_keys)
    data_key_id = hkdf(data_key, b"", b"backup/v1 data key id", 16).hex()
    demand(data_key_id == volume.header["data_key"], volume.at(12), "a wrapped data key belongs to another file")
    volume.unlock(data_key)
    volume.open_index(last=True)
    total = sum(plain for _, plain in volume.lengths)
    says = f"holds {total} bytes of its file and should hold {plaintext['bytes']}"
    demand(total == plaintext["bytes"], volume.name, says)
    yield from volume.chunks()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument("--identity", type=age.read_identities, default=(), help="file with AGE-SECRET-KEY-1…")
    key.add_argument("--data-key", type=bytes.fromhex)
    parser.add_argument("repository", type=pathlib.Path)
    parser.add_argument("backup")
    parser.add_argument("stream")
    parser.add_argument("--wal", action="store_true", help="a file of write-ahead log, not a stream of a backup")
    given = parser.parse_args()
    try:
        keys = given.identity, given.data_key
        if given.wal:
            pieces = restore_wal(given.repository, *given.backup.split("/"), given.stream, *keys)
        else:
            pieces = restore(given.repository, given.backup, given.stream, *keys)
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except (Refused, OSError) as e:
        sys.exit(f"decode.py: {e}")


if __name__ == "__main__":
    main()
