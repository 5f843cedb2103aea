"""API keys: several, each with its own name, quota and share of the queue."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3_embedding.serving.errors import OverloadedError, UnauthorizedError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SPEC = re.compile(r"(?:(?P<name>[^=:\s]+)=)?(?P<secret>[^\s:]+)(?::(?P<quota>\d+))?")
MIN_SECRET = 8


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``repr`` never shows the secret."""

    name: str
    digest: bytes
    """SHA-256 of the secret; the secret itself is not kept."""
    tokens_per_minute: int | None = None

    @classmethod
    def parse(cls, text: str, number: int = 1) -> Key:
        """Read ``[NAME=]SECRET[:TOKENS_PER_MINUTE]``; a key without a name is called ``key-<number>``.

        Raises:
            ValueError: not of that form, or a secret shorter than 8 characters. The message does not repeat the secret.
        """
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"API key {number} is malformed; wanted [NAME=]SECRET[:TOKENS_PER_MINUTE] without spaces")
        name, secret, quota = match["name"] or f"key-{number}", match["secret"], match["quota"]
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"API key {number} has the name {name!r}; wanted letters, digits, dots, dashes, underscores"
            )
        if len(secret) < MIN_SECRET:
            raise ValueError(f"API key {name!r} has {len(secret)} characters; wanted at least {MIN_SECRET}")
        if quota is not None and int(quota) < 1:
            raise ValueError(f"API key {name!r} has a quota of {quota} tokens a minute; wanted at least 1")
        return cls(name, _digest(secret), int(quota) if quota else None)

    def __repr__(self) -> str:
        return f"Key({self.name!r}, tokens_per_minute={self.tokens_per_minute})"


class Caller:
    """Who asks. Callers take turns in the queue by ``name``."""

    def __init__(self, name: str, tokens_per_minute: int | None = None) -> None:
        self.name = name
        self._rate = None if tokens_per_minute is None else tokens_per_minute / 60.0
        self._capacity = float(tokens_per_minute or 0)
        self._level = self._capacity
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def charge(self, tokens: int) -> None:
        """Take ``tokens`` from the quota, a bucket that fills evenly and holds a minute's worth.

        A request larger than the bucket is let through when the bucket is full, and paid off afterwards; so over time
        the rate is exact and no request is impossible.

        Raises:
            OverloadedError: the quota is spent; carries the seconds until it is not.
        """
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
            self._at = now
            needed = min(float(tokens), self._capacity)
            if self._level < needed:
                raise OverloadedError(
                    f"the quota of {self._capacity:.0f} tokens a minute of key {self.name!r} is spent",
                    retry_after_s=(needed - self._level) / self._rate,
                )
            self._level -= tokens


class Keys:
    """Tells callers by their key. Without keys everybody is the caller ``anonymous``."""

    def __init__(self, keys: Sequence[Key]) -> None:
        names = [key.name for key in keys]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"two API keys are called {double!r}; wanted different names")
        self._keys = tuple(keys)
        self._callers = {key.name: Caller(key.name, key.tokens_per_minute) for key in keys}
        self._anonymous = Caller("anonymous")

    @property
    def required(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._keys)

    def admit(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request: ``Authorization: Bearer``, ``X-API-Key`` or ``api-key``.

        Every key is compared, in constant time, whichever matches.

        Raises:
            UnauthorizedError: a key is needed, and none or an unknown one came.
        """
        if not self._keys:
            return self._anonymous
        secret = _secret(headers)
        if not secret:
            raise UnauthorizedError("this server needs an API key; send it as 'Authorization: Bearer <key>'")
        given, found = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(given, key.digest):
                found = key
        if found is None:
            raise UnauthorizedError("the API key is not known here")
        return self._callers[found.name]


def read_key_file(path: str | Path) -> list[str]:
    """The keys of a file: one ``[NAME=]SECRET[:TOKENS_PER_MINUTE]`` a line; empty lines and ``#`` comments aside."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _secret(headers: Mapping[str, str]) -> str:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return secret.strip()
    return headers.get("x-api-key") or headers.get("api-key") or ""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
