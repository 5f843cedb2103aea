"""What server and worker processes say to each other over a socket: token ids there, rows of float32 back.

A request is an operation, N lengths and all ids; an answer is a shape and its numbers, or an error's type and message.
Nothing but numbers and one short text crosses, so neither side can make the other run anything.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from qwen3_embedding.types import FloatArray

ROWS, HIDDEN = 1, 2
"""Operations: one result row a sequence, or the hidden states of every token."""
_REQUEST = struct.Struct("<BII")
_ANSWER = struct.Struct("<BIII")
_OK, _ERROR = 0, 1
_BUFFER_BYTES = 4 * 2**20
_LENGTH = struct.Struct("<I")


class FailedThereError(Exception):
    """The other side answered with an error: its type's name and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def connected() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that take a batch's rows whole, so that who sends them need not wait for who reads them."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


def send_request(link: socket.socket, operation: int, sequences: Sequence[Sequence[int]]) -> None:
    """Ask for an operation on N sequences of token ids."""
    lengths = np.fromiter(map(len, sequences), dtype=np.int32, count=len(sequences))
    ids = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=int(lengths.sum()))
    link.sendall(_REQUEST.pack(operation, len(lengths), len(ids)) + lengths.tobytes() + ids.tobytes())


def receive_request(link: socket.socket) -> tuple[int, list[list[int]]]:
    """Operation and sequences.

    Raises:
        EOFError: the other side is gone.
    """
    operation, n, total = _REQUEST.unpack(receive(link, _REQUEST.size))
    lengths = np.frombuffer(receive(link, 4 * n), dtype=np.int32)
    ids = np.frombuffer(receive(link, 4 * total), dtype=np.int32).tolist()
    ends = np.cumsum(lengths).tolist()
    return operation, [ids[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def send_rows(link: socket.socket, rows: FloatArray) -> None:
    """Answer with an array of one or two axes."""
    shape = (*rows.shape, 0)[:2]
    link.sendall(_ANSWER.pack(_OK, rows.ndim, *shape) + np.ascontiguousarray(rows, dtype=np.float32).tobytes())


def send_error(link: socket.socket, error: BaseException) -> None:
    """Answer with an error."""
    text = json.dumps([type(error).__name__, str(error)]).encode()
    link.sendall(_ANSWER.pack(_ERROR, 0, len(text), 0) + text)


def receive_rows(link: socket.socket) -> FloatArray:
    """The answer's array.

    Raises:
        FailedThereError: it is an error.
        EOFError: the other side is gone.
    """
    status, axes, first, second = _ANSWER.unpack(receive(link, _ANSWER.size))
    if status == _ERROR:
        raise FailedThereError(*json.loads(receive(link, first)))
    shape = (first, second)[:axes]
    count = int(np.prod(shape))
    return np.frombuffer(receive(link, 4 * count), dtype=np.float32).reshape(shape)


def send_json(link: socket.socket, value: Any) -> None:
    """One JSON value."""
    text = json.dumps(value).encode()
    link.sendall(_LENGTH.pack(len(text)) + text)


def receive_json(link: socket.socket) -> Any:
    """One JSON value.

    Raises:
        EOFError: the other side is gone.
    """
    return json.loads(receive(link, _LENGTH.unpack(receive(link, _LENGTH.size))[0]))


def receive(link: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes.

    Raises:
        EOFError: the other side is gone.
    """
    whole = bytearray(size)
    view, at = memoryview(whole), 0
    while at < size:
        try:
            # All at once: every return to Python waits for its turn among the threads.
            got = link.recv_into(view[at:], size - at, socket.MSG_WAITALL)
        except OSError as error:
            raise EOFError(f"the connection broke: {error}") from None
        if got == 0:
            raise EOFError("the other side closed the connection")
        at += got
    return whole
