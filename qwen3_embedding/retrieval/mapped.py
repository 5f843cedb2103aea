"""New arrays on disk, mapped for writing, whose room is there before anything is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An ``.npy`` file of zeros, mapped.

    Raises:
        OSError: the disk is full. Without room reserved, writing to the mapping would end the process with a signal.
    """
    array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):  # Linux
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
