"""Vectors on the wire: JSON floats, base64, or whole matrices by ``Accept``."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from starlette.responses import Response

from qwen3_embedding.inference.precision import check_precision, to_precision
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.requests import JsonArray, to_json
from qwen3_embedding.serving.services import unit
from qwen3_embedding.types import FloatArray, Precision, Vectors

Encoding = Literal["float", "base64"]
MIN_DIMENSIONS = 32
"""The smallest size the published models were trained for."""
NPY, RAW, ARROW = "application/x-npy", "application/octet-stream", "application/vnd.apache.arrow.stream"
BINARY = (NPY, RAW, ARROW)
_FEW_ROWS = 64
"""So many are written at once."""
_ROWS_AT_A_TIME = 16
"""Of more than these: a short request that waits has to get through the loop some four times."""
_NUMBERS_AT_ONCE = 2**17


def check_vectors(dimensions: int | None, precision: str, full: int) -> None:
    """Refuse dimensions and precisions that the model does not have, before anything is computed.

    Raises:
        BadRequestError: with the field's name.
    """
    least = min(MIN_DIMENSIONS, full)
    if dimensions is not None and not least <= dimensions <= full:
        raise BadRequestError(
            f"dimensions={dimensions} is not a size of this model; use {least} to {full}", param="dimensions"
        )
    try:
        check_precision(precision, dimensions or full)
    except ValueError as error:
        raise BadRequestError(str(error), param="precision") from None


def vectors_from(rows_ND: FloatArray, dimensions: int | None, precision: Precision) -> Vectors:
    """Pooled rows to unit vectors of the wanted size and precision."""
    return to_precision(unit(rows_ND, dimensions), precision)


async def vectors_soon(rows_ND: FloatArray, dimensions: int | None, precision: Precision) -> Vectors:
    """As :func:`vectors_from`; many rows beside the event loop."""
    if rows_ND.size <= _NUMBERS_AT_ONCE:
        return vectors_from(rows_ND, dimensions, precision)
    return await asyncio.to_thread(vectors_from, rows_ND, dimensions, precision)


def wire(vectors: Vectors, encoding: Encoding) -> list[Any]:
    """One JSON value a vector: an array of numbers, or base64 of its little-endian bytes."""
    if encoding == "float":
        return list(vectors)
    little = np.ascontiguousarray(vectors, dtype=vectors.dtype.newbyteorder("<"))
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little]


async def json_rows(vectors: Vectors, encoding: Encoding, dress: Callable[[int, Any], Any] | None = None) -> Any:
    """As :func:`wire`, ready for :func:`~qwen3_embedding.serving.requests.json_response`.

    Many rows are written some at a time, with the event loop between: a short request need not wait for the megabytes
    of another's answer.  ``dress`` makes the JSON value of a row from its number and what ``wire`` gives.
    """

    def some(begin: int, count: int) -> list[Any]:
        values = wire(vectors[begin : begin + count], encoding)
        return values if dress is None else [dress(number, value) for number, value in enumerate(values, begin)]

    if len(vectors) <= _FEW_ROWS:
        return some(0, _FEW_ROWS)
    parts: list[bytes] = []
    for begin in range(0, len(vectors), _ROWS_AT_A_TIME):
        parts.append(to_json(some(begin, _ROWS_AT_A_TIME))[1:-1])
        await asyncio.sleep(0)
    return JsonArray(parts)


def matrix_response(vectors: Vectors, accept: str) -> Response | None:
    """All vectors as one binary answer, if that is what the client accepts.

    ``application/x-npy`` is numpy's file format, ``application/octet-stream`` the little-endian bytes row by row (shape
    and type in headers), ``application/vnd.apache.arrow.stream`` an Arrow stream with one column ``vector``.
    """
    kind = next((kind for kind in BINARY if kind in accept), None)
    if kind is None:
        return None
    headers = {"x-shape": ",".join(map(str, vectors.shape)), "x-dtype": str(vectors.dtype)}
    if kind == NPY:
        file = io.BytesIO()
        np.save(file, vectors, allow_pickle=False)
        return Response(file.getvalue(), media_type=NPY, headers=headers)
    if kind == RAW:
        little = np.ascontiguousarray(vectors, dtype=vectors.dtype.newbyteorder("<"))
        return Response(little.tobytes(), media_type=RAW, headers=headers)
    return Response(_arrow(vectors), media_type=ARROW, headers=headers)


def _arrow(vectors: Vectors) -> bytes:
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"vector": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
