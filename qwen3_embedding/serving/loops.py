"""One object for each event loop."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary


class PerLoop:
    """A class of which every event loop has one object, made when it is first asked for and gone with the loop.

    The object must not hold the loop itself, or neither would ever go.
    """

    _loops: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Any]]

    def __init_subclass__(cls) -> None:
        cls._loops = WeakKeyDictionary()

    @classmethod
    def of_running_loop(cls) -> Self:
        """That of the event loop which calls.

        Raises:
            RuntimeError: no event loop runs in this thread.
        """
        loop = asyncio.get_running_loop()
        found: Self | None = cls._loops.get(loop)
        if found is None:
            found = cls._loops[loop] = cls()
        return found
