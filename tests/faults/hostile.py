"""Malicious files."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The beginning of an .npy file that claims to hold such an array."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npz_bomb(path: Path, name: str) -> None:
    """Some hundred bytes on the disk that say they are ten terabytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", npy_header((10**13,)) + bytes(10_000))
    content = bytearray(stream.getvalue())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # the declared sizes
        at = content.index(signature) + offset
        content[at : at + 4] = struct.pack("<I", 0xFFFFFFFE)
    path.write_bytes(content)


def pickled(path: Path, name: str) -> None:
    """An .npz file with an array of objects; to unpickle it makes the file ``harm`` beside it."""
    np.savez(path, **{name: np.array([Harm(path.parent / "harm")], object)})


def pickle_file(path: Path) -> None:
    """A pickle that makes the file ``harm`` beside it."""
    path.write_bytes(pickle.dumps(Harm(path.parent / "harm")))
