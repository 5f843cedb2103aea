"""Arrays to a device without making the host wait: by way of pinned memory, so that a copy is only queued."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.types import IntArray


def to_device(rows: IntArray, device: torch.device) -> Tensor:
    """The array as a tensor on ``device``.

    A copy from ordinary memory to a GPU makes the host wait until the stream gets there; one from pinned memory does
    not. The pinned block goes back to torch's pool when the copy is done.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class HostCopy:
    """A result on its way from a device; :meth:`wait` gives it, and nothing else on the device is waited for."""

    def __init__(self, result: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if result.device.type != "cuda":
            self._host = result.cpu()
            return
        self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self._host.copy_(result, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(result.device))

    def wait(self) -> np.ndarray:
        """The result as an array."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
