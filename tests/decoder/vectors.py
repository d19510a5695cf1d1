#!/usr/bin/env python3
"""Runs the vectors of docs/FORMAT.md through decode.py: vectors.py DIRECTORY. A pattern for testing a reader of your own."""
import hashlib, hmac, json, pathlib, sys, tempfile
from base64 import b64encode

import age, decode


def write_repository(root, directory, all, vector):
    """The objects of a vector, edits made, and a manifest that lists them."""
    asked, data_key = all["asked"], bytes.fromhex(all["data_key"])
    folder = root / asked["target"] / "backups" / asked["backup"]
    folder.mkdir(parents=True)
    (root / "repository.json").write_text('{"format":1}')
    for object in vector["objects"]:
        data = (directory / object["file"]).read_bytes()
        for edit in object.get("edits", ()):
            data = data[: edit["at"]] + bytes.fromhex(edit["insert"]) + data[edit["at"] + edit["remove"] :]
        (folder / object["path"]).write_bytes(data)
    data_key_id = age.hkdf(data_key, b"", b"backup/v1 data key id", 16).hex()
    manifest = {"format": 1, "id": asked["backup"], "target": asked["target"], "data_key": data_key_id, "streams": [vector["stream"]]}
    document = json.dumps(manifest).encode()
    mac = hmac.digest(age.hkdf(data_key, b"", b"backup/v1 manifest", 32), b"backup/v1 manifest" + document, "sha256")
    (folder / "manifest.json").write_bytes(document + b"\n" + json.dumps({"mac": b64encode(mac).decode()}).encode() + b"\n")


def complaint(all, vector, root, **key):
    """What is wrong with what the decoder makes of a vector, or None."""
    return judged(vector["expect"], lambda: decode.restore(root, all["asked"]["backup"], all["asked"]["stream"], **key))


def judged(expect, restored):
    try:
        plain = b"".join(restored())
    except decode.Refused as e:
        missing = [text for text in expect.get("error", {"contains": ["success"]})["contains"] if text not in str(e)]
        return f"not {missing} but: {e}" if missing else None
    if "error" in expect:
        return "it passed"
    found = {"bytes": len(plain), "sha256": hashlib.sha256(plain).hexdigest()}
    return None if found == expect["plaintext"] else f"gives {found}"


def wal_complaint(all, vector, directory, root, **key):
    """The same for a file of write-ahead log."""
    asked = all["wal"]["asked"]
    folder = root / asked["target"] / "wal" / asked["system_identifier"] / asked["timeline"]
    folder.mkdir(parents=True, exist_ok=True)
    (root / "repository.json").write_text('{"format":1}')
    for object in vector["objects"]:
        (folder / object["path"]).write_bytes((directory / object["file"]).read_bytes())
    restored = lambda: decode.restore_wal(root, asked["target"], asked["system_identifier"], asked["file"], **key)
    return judged(vector["expect"], restored)


def main(directory):
    all, failed = json.loads((directory / "vectors.json").read_text()), 0
    for vector in all["vectors"]:
        keys = [{"secret_keys": [age.secret_key(vector.get("identity", all["identity"]))]}]
        if not vector.get("only_with_identity"):
            keys.append({"data_key": bytes.fromhex(all["data_key"])})
        with tempfile.TemporaryDirectory() as root:
            write_repository(pathlib.Path(root), directory, all, vector)
            for key in keys:
                if wrong := complaint(all, vector, pathlib.Path(root), **key):
                    print(f"{vector['name']}: with {[*key][0]}: {wrong}", file=sys.stderr)
                    failed += 1
    for vector in all["wal"]["vectors"]:
        if vector.get("only_with_blake3"):
            continue  # Python has no BLAKE3 of its own
        for key in [{"secret_keys": [age.secret_key(all["identity"])]}, {"data_key": bytes.fromhex(all["data_key"])}]:
            with tempfile.TemporaryDirectory() as root:
                if wrong := wal_complaint(all, vector, directory, pathlib.Path(root), **key):
                    print(f"{vector['name']}: with {[*key][0]}: {wrong}", file=sys.stderr)
                    failed += 1
    print(f"{len(all['vectors']) + len(all['wal']['vectors'])} vectors")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
