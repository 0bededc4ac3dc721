"""A capture file as a source: its batches, as they were read from the ring. No root, no kernel."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentsight.errors import CaptureFileError


class ReplaySource:
    """Iterates over the batches of a capture file. `torn` tells, afterwards, whether its end was missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from agentsight._native.ringbuf import CaptureReader

        self.path = Path(path)
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise CaptureFileError(f"{self.path} is no capture file: give a file that --capture wrote")
            self._reader: Any = CaptureReader(os.fspath(self.path))
        except FileNotFoundError:
            raise CaptureFileError(f"there is no file {self.path}: give a file that --capture wrote") from None
        except PermissionError:
            raise CaptureFileError(f"cannot read {self.path}: it belongs to the user who made the capture") from None
        self._stopped = False

    @property
    def meta(self) -> Any:
        """What the capture said of itself."""
        return self._reader.meta

    @property
    def torn(self) -> bool:
        """Whether the file ended in the middle of a batch, or a batch was damaged."""
        return bool(self._reader.torn)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._reader:
            if self._stopped:
                return
            yield batch

    def stop(self) -> None:
        """End after the batch that is being read."""
        self._stopped = True
