"""The message classes of ``tei.proto`` and ``health.proto``, made from their compiled descriptors at first use."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE, HEALTH = "tei.v1", "grpc.health.v1"


@cache
def _classes() -> tuple[dict[str, Any], Any]:
    found = descriptor_pb2.FileDescriptorSet.FromString(
        (files("qwen3_embedding.serving") / "rpc" / "tei.binpb").read_bytes()
    )
    # A pool of its own: a program that has TEI's generated code loaded as well meets no second definition.
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.AddSerializedFile(file.SerializeToString())
    return dict(message_factory.GetMessageClassesForFiles([file.name for file in found.file], pool)), pool


def message(name: str, package: str = PACKAGE) -> Any:
    """The class of a message, by its name in the ``.proto`` file."""
    return _classes()[0][f"{package}.{name}"]


def services() -> list[Any]:
    """The descriptors of all services."""
    names = ("Info", "Embed", "Predict", "Rerank", "Tokenize")
    pool = _classes()[1]
    return [
        *(pool.FindServiceByName(f"{PACKAGE}.{name}") for name in names),
        pool.FindServiceByName(f"{HEALTH}.Health"),
    ]
