"""h5 files whose every fault is an error that names the file.

HDF5 reads much of what is damaged in silence: a chunk that its index no longer names is read as zeros, a type that
one bit turns into another is converted. So what can be compared is compared before anything is read. Files that
dump() writes are of the HDF5 1.10 format, in which everything, pixels and all that describes them, has a checksum.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from train.files import reason

DEFLATE = 1100  # gzip, the strongest usual filter, makes data no smaller than this


class Reader:
    """An open file, for a with statement."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected an h5 file with 'image' and 'label'")
        self.path = path

    def __enter__(self) -> Reader:
        try:
            self.file = h5py.File(self.path, "r")
        except PermissionError:
            raise
        except Exception as error:
            raise ValueError(f"{self.path} is damaged, cut off or no h5 file: {reason(error)}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def array(self, key: str) -> np.ndarray:
        """
        Raises:
            ValueError: there is no such array, it is damaged, or it holds no real numbers.
        """
        try:
            dataset = self.file.get(key)
            kind = dataset.dtype.kind if isinstance(dataset, h5py.Dataset) else None
            keys = sorted(self.file) if kind is None else []
            if kind is not None and kind in "biuf":
                check_storage(dataset, self.path.stat().st_size)
                return np.asarray(dataset[()])
        except Exception as error:
            raise ValueError(f"{self.path}: '{key}' is damaged or cut off: {reason(error)}") from None
        if kind is None:
            raise ValueError(f"{self.path} has no '{key}'; it holds {keys or 'nothing'}")
        raise ValueError(
            f"{self.path}: '{key}' must hold real numbers, got {'text' if kind in 'OS' else dataset.dtype}"
        )

    def attribute(self, key: str) -> Any:
        """None: there is no such attribute."""
        try:
            return self.file.attrs.get(key)
        except Exception as error:
            raise ValueError(f"{self.path}: attribute '{key}' is damaged: {reason(error)}") from None


def check_storage(dataset: h5py.Dataset, file_size: int) -> None:
    """Raises ValueError unless every voxel is in the file, as a usual type and in chunks of a sane size."""
    shape, chunks, size = dataset.shape, dataset.chunks, dataset.nbytes
    if size > DEFLATE * file_size:
        raise ValueError(f"shape {shape} is more than a file of {file_size} bytes can hold")
    stored = dataset.id.get_type()
    if dataset.dtype.kind != "b" and not stored.equal(h5py.h5t.py_create(dataset.dtype)):
        raise ValueError(f"it is of an unusual type, about {dataset.dtype}")
    if chunks is None:
        if dataset.id.get_storage_size() != size:
            raise ValueError(f"{dataset.id.get_storage_size()} bytes are stored, expected {size}")
        return
    if any(c > n for c, n in zip(chunks, shape, strict=True)) and dataset.maxshape == shape:
        raise ValueError(f"chunks {chunks} are larger than shape {shape}")
    if math.prod(chunks) * dataset.dtype.itemsize > DEFLATE * file_size:
        raise ValueError(f"chunks {chunks} are more than a file of {file_size} bytes can hold")
    count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    if dataset.id.get_num_chunks() != count:
        raise ValueError(f"{dataset.id.get_num_chunks()} chunks are stored, expected {count}")


def dump(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, np.ndarray]) -> bytes:
    """The content of a file with these arrays, gzip."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110")) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", fletcher32=True)
        file.attrs.update(attributes)
    return buffer.getvalue()
