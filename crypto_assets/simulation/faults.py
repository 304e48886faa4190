"""Ways in which an answer goes wrong, and the list of those that are due.

Here: what a fault is and which request it meets. Not here: how it is put on the wire (``server``, ``archive``),
faults by chance and candles that are wrong in themselves (``hostile``, ``world.Restatement``). The simulation package,
the command line and tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

KINDS = {
    "html_200": "an HTML page with status 200",
    "truncated_json": "status 200, the first half of the body, a Content-Length that fits it",
    "short_body": "status 200, half of the body, the Content-Length of the whole",
    "empty_200": "status 200 without a body",
    "status": "an error status with the source's own error body",
    "reset": "the connection is reset before an answer",
    "hang": "no answer at all until the client or the server gives up",
    "slow": "the right answer, its second half some seconds late",
    "wrong_checksum": "of an archive's checksum file: the digest of something else",
    "truncated_zip": "of an archive's zip: its first half as if it were all",
    "corrupt_member": "of an archive's zip: a flipped byte in its member; of the checksum file: the digest of that zip",
}
#: Kinds that only meet files of the archive: how the path of such a file ends.
FILE_KINDS = {
    "wrong_checksum": (".CHECKSUM",),
    "truncated_zip": (".zip",),
    "corrupt_member": (".zip", ".zip.CHECKSUM"),
}


@dataclass(frozen=True)
class Fault:
    """One way to fail; ``KINDS`` explains the kinds.

    ``status`` and ``retry_after`` (seconds, sent as Retry-After) belong to the kind "status", ``seconds`` to
    "slow".
    """

    kind: str
    status: int | None = None
    retry_after: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse kinds and statuses that mean nothing."""
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; known: {', '.join(KINDS)}")
        if (self.kind == "status") != (self.status is not None):
            raise ValueError(
                f"fault {self.kind!r} with status {self.status}: a status belongs to the kind 'status' alone"
            )
        if self.status is not None and not 400 <= self.status <= 599:
            raise ValueError(f"fault status {self.status} is no error; give 400 to 599")

    @classmethod
    def of(cls, description: Fault | str | Mapping[str, Any]) -> Fault:
        """Make a fault from itself, from the name of its kind, or from a mapping of its fields.

        Raises
        ------
        ValueError
            If the kind or a field is unknown.
        """
        if isinstance(description, Fault):
            return description
        if isinstance(description, str):
            return cls(description)
        unknown = set(description) - {f.name for f in fields(cls)}
        if unknown or "kind" not in description:
            raise ValueError(f"fault {dict(description)}: needs 'kind'; unknown fields: {sorted(unknown)}")
        return cls(**description)

    def fits(self, path: str) -> bool:
        """Tell whether a request of this path can fail in this way; one that cannot does not use the fault up."""
        return path.endswith(FILE_KINDS.get(self.kind, ""))


def status(code: int, retry_after: int | None = None) -> Fault:
    """Answer with an error status such as 429, 418, 451 or 500, and Retry-After where given (seconds)."""
    return Fault("status", status=code, retry_after=retry_after)


def slow(seconds: float) -> Fault:
    """Answer rightly, the second half late by ``seconds``."""
    return Fault("slow", seconds=seconds)


@dataclass
class FaultPlan:
    """Faults waiting for their requests: the first injected one that matches a request is used up by it."""

    _waiting: list[_Waiting] = field(default_factory=list)

    def inject(self, path_prefix: str, fault: Fault, times: int, after: int) -> None:
        """Let ``fault`` meet the next ``times`` requests with this path prefix, sparing ``after`` first."""
        if times < 1 or after < 0:
            raise ValueError(f"times {times} must be at least 1 and after {after} at least 0")
        self._waiting.append(_Waiting(path_prefix, fault, times, after))

    def due(self, path: str) -> Fault | None:
        """Return the fault that meets this request, and count it."""
        for waiting in self._waiting:
            if not path.startswith(waiting.path_prefix) or not waiting.fault.fits(path):
                continue
            if waiting.after:
                waiting.after -= 1
                continue
            waiting.times -= 1
            if not waiting.times:
                self._waiting.remove(waiting)
            return waiting.fault
        return None

    def clear(self) -> None:
        """Forget all waiting faults."""
        self._waiting.clear()


@dataclass(eq=False)
class _Waiting:
    path_prefix: str
    fault: Fault
    times: int
    after: int
