"""Checks a tiled transparency log, from C2SP's pages alone: signature, root, inclusion, consistency."""

import argparse
import base64
import hashlib
import os
import sys
import urllib.error
import urllib.request

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FULL = 256


class Wrong(Exception):
    """Something is not as it has to be."""


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def leaf_hash(entry):
    return sha256(b"\x00", entry)


def node_hash(left, right):
    return sha256(b"\x01", left, right)


# Notes and checkpoints (C2SP signed-note, tlog-checkpoint)


def strict_base64(text):
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise Wrong(f"not canonical base64: {text}")
    return data


def parse_vkey(vkey):
    """Gives name, key id and public key of `<name>+<hex id>+<base64>`."""
    name, key_id, material = vkey.split("+", 2)
    data = strict_base64(material)
    if data[0] != 1 or len(data) != 33:
        raise Wrong("the key is not Ed25519")
    if sha256(name.encode(), b"\n", data)[:4].hex() != key_id:
        raise Wrong("the key id is not the one of name and key")
    return name, bytes.fromhex(key_id), Ed25519PublicKey.from_public_bytes(data[1:])


def verify_note(note, vkey):
    """Gives the text of a note that the key has signed."""
    name, key_id, key = parse_vkey(vkey)
    split = note.rfind("\n\n")
    if split < 0:
        raise Wrong("the note has no signatures")
    text, lines = note[: split + 1], note[split + 2 :].splitlines()
    for line in lines:
        dash, signer, data = line.split(" ")
        if dash != "\u2014":
            raise Wrong("a signature line does not begin with a dash")
        signature = strict_base64(data)
        if signer != name or signature[:4] != key_id:
            continue
        try:
            key.verify(signature[4:], text.encode())
        except InvalidSignature as error:
            raise Wrong("the signature of the log is wrong") from error
        return text
    raise Wrong("the log has not signed the note")


def parse_checkpoint(note, vkey):
    """Gives size and root of a signed checkpoint of the log with this key."""
    origin, size, root, *extensions = verify_note(note, vkey).removesuffix("\n").split("\n")
    if origin != vkey.split("+")[0] or "" in extensions:
        raise Wrong("the checkpoint is of another log, or malformed")
    if str(int(size)) != size or int(size) < 0 or len(strict_base64(root)) != 32:
        raise Wrong("the checkpoint is malformed")
    return int(size), strict_base64(root)


# Tiles (C2SP tlog-tiles)


class Log:
    """The files of a log, below a URL or in a directory."""

    def __init__(self, place):
        self.place = place.rstrip("/")
        self.tiles = {}

    def read(self, path):
        if self.place.startswith(("http://", "https://")):
            try:
                with urllib.request.urlopen(f"{self.place}/{path}", timeout=30) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                raise
        file = os.path.join(self.place, path)
        if not os.path.exists(file):
            return None
        with open(file, "rb") as opened:
            return opened.read()

    def tile(self, level, index, size):
        """The bytes of a tile or bundle, and its width in a tree of this size."""
        hashes = size if level == "entries" else size >> (8 * level)
        width = min(FULL, hashes - index * FULL)
        if width <= 0:
            raise Wrong(f"a tree of {size} leaves has no tile {level}/{index}")
        digits = f"{index:03}"
        while len(digits) % 3:
            digits = "0" + digits
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        path = f"tile/{level}/" + "/".join(["x" + group for group in groups[:-1]] + groups[-1:])
        if path not in self.tiles:
            partial = self.read(f"{path}.p/{width}") if width < FULL else None
            data = partial if partial is not None else self.read(path)
            if data is None:
                raise Wrong(f"{path} is missing")
            self.tiles[path] = data
        return self.tiles[path], width

    def node(self, height, index, size):
        """The hash of the complete subtree number `index` of those with this height."""
        level, inner = divmod(height, 8)
        tile = index >> (8 - inner)
        data, width = self.tile(level, tile, size)
        first = (index - (tile << (8 - inner))) << inner
        count = 1 << inner
        if first + count > width or len(data) < width * 32:
            raise Wrong("a tile is too short")
        hashes = [data[i * 32 : i * 32 + 32] for i in range(first, first + count)]
        while len(hashes) > 1:
            hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
        return hashes[0]

    def entries(self, index, size):
        """The entries of a bundle."""
        data, width = self.tile("entries", index, size)
        entries, at = [], 0
        for _ in range(width):
            length = int.from_bytes(data[at : at + 2], "big")
            if at + 2 + length > len(data):
                raise Wrong("an entry bundle is too short")
            entries.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        return entries


# Trees (RFC 6962, section 2.1)


def split(count):
    """The largest power of two that is less than `count`."""
    return 1 << (count - 1).bit_length() - 1


def tree_hash(log, begin, end, size):
    count = end - begin
    if count & (count - 1) == 0:
        return log.node(count.bit_length() - 1, begin // count, size)
    middle = begin + split(count)
    return node_hash(tree_hash(log, begin, middle, size), tree_hash(log, middle, end, size))


def inclusion_path(log, index, begin, end, size):
    if end - begin == 1:
        return []
    middle = begin + split(end - begin)
    if index < middle:
        return inclusion_path(log, index, begin, middle, size) + [tree_hash(log, middle, end, size)]
    return inclusion_path(log, index, middle, end, size) + [tree_hash(log, begin, middle, size)]


def consistency_path(log, smaller, begin, end, size, whole=True):
    if smaller == end:
        return [] if whole else [tree_hash(log, begin, end, size)]
    middle = begin + split(end - begin)
    if smaller <= middle:
        return consistency_path(log, smaller, begin, middle, size, whole) + [tree_hash(log, middle, end, size)]
    return consistency_path(log, smaller, middle, end, size, False) + [tree_hash(log, begin, middle, size)]


# Verification (RFC 9162, sections 2.1.3.2 and 2.1.4.2)


def root_of_inclusion(leaf, index, size, path):
    node, last, value = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Wrong("the inclusion path is too long")
        if node & 1 or node == last:
            value = node_hash(sibling, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise Wrong("the inclusion path is too short")
    return value


def roots_of_consistency(smaller, smaller_root, larger, path):
    if smaller & (smaller - 1) == 0:
        path = [smaller_root] + path
    node, last = smaller - 1, larger - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise Wrong("the consistency path is too long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise Wrong("the consistency path is too short")
    return old, new


def check(arguments):
    log = Log(arguments.log)
    note = log.read("checkpoint")
    if note is None:
        raise Wrong("the checkpoint is missing")
    size, root = parse_checkpoint(note.decode(), arguments.vkey)
    computed = tree_hash(log, 0, size, size) if size else sha256(b"")
    if computed != root:
        raise Wrong("the tiles do not lead to the signed root")
    print(f"checkpoint: {size} leaves, signed, and the tiles lead to its root")
    if arguments.entry is not None:
        index = arguments.entry
        if not 0 <= index < size:
            raise Wrong(f"the log has no entry {index}")
        entry = log.entries(index // FULL, size)[index % FULL]
        path = inclusion_path(log, index, 0, size, size)
        if root_of_inclusion(leaf_hash(entry), index, size, path) != root:
            raise Wrong(f"entry {index} is not in the signed tree")
        print(f"entry {index}: {len(entry)} bytes, included by a path of {len(path)} hashes")
    if arguments.older:
        with open(arguments.older, encoding="utf-8") as file:
            smaller, smaller_root = parse_checkpoint(file.read(), arguments.vkey)
        if smaller > size:
            raise Wrong("the older checkpoint is of a larger log")
        old, new = smaller_root, root
        if 0 < smaller < size:
            path = consistency_path(log, smaller, 0, size, size)
            old, new = roots_of_consistency(smaller, smaller_root, size, path)
        if (old, new) != (smaller_root, root) or smaller == size and smaller_root != root:
            raise Wrong("the older checkpoint is not of the beginning of this log")
        print(f"older checkpoint: {smaller} leaves, the beginning of this log")
    if arguments.all:
        for index in range((size + FULL - 1) // FULL):
            hashes, width = log.tile(0, index, size)
            if b"".join(leaf_hash(entry) for entry in log.entries(index, size)) != hashes[: width * 32]:
                raise Wrong(f"entries of bundle {index} have other hashes than its tile")
        print(f"entries: all {size} have the hashes of their tiles")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", help="URL or directory of the log")
    parser.add_argument("--vkey", required=True, help="the log's public key: <name>+<id>+<base64>")
    parser.add_argument("--entry", type=int, metavar="INDEX", help="check that this entry is in the tree")
    parser.add_argument("--older", metavar="FILE", help="check that this older checkpoint is of the same log")
    parser.add_argument("--all", action="store_true", help="check the hashes of all entries")
    try:
        check(parser.parse_args())
    except (Wrong, ValueError) as error:
        sys.exit(f"wrong: {error}")


if __name__ == "__main__":
    main()
