"""The results of parts in a file, so that a second call continues them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_diffusion.utils.atomic_files import write_atomically

SCHEMA = 1  # of the file; a change of its keys needs another number

DONE, FAILED, LEFT_OUT = "done", "failed", "left out"


@dataclass
class Result:
    """What came of a part.

    Attributes:
        status: `DONE`, with `findings`; `FAILED`, if its process ended without any; or `LEFT_OUT`.
        reason: why it failed or was left out.
        seconds: how long it took.
        findings: see `Findings.as_json`.
    """

    status: str
    reason: str = ""
    seconds: float = 0
    findings: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """Return what failed: checks, or the part as a whole."""
        if self.status == FAILED:
            return [self.reason]
        return [check["what"] for check in self.findings.get("checks", ()) if not check["passed"]]


class Results:
    """The results of parts by their names, kept in a file.

    Args:
        file: written after each change.
        key: what must be equal for results to be used again: the device and versions.
        fresh: whether to begin without the results in the file.
    """

    def __init__(self, file: Path, key: dict[str, Any], fresh: bool = False):
        self.file = file
        self.key = key
        self.parts: dict[str, Result] = {}
        self.is_continued = False
        if not fresh and file.exists():
            self._read()

    def _read(self) -> None:
        """Take the results of the file, if they are of the same device and versions."""
        try:
            content = json.loads(self.file.read_text())
        except ValueError:
            content = None
        kind = {"schema": SCHEMA, "key": self.key}
        if isinstance(content, dict) and {**content, **kind} == content:
            self.parts = {name: Result(**result) for name, result in content["parts"].items()}
            self.is_continued = True

    def add(self, name: str, result: Result) -> None:
        """Add the result of a part, and write the file."""
        self.parts[name] = result
        content = {
            "schema": SCHEMA,
            "key": self.key,
            "parts": {name: vars(result) for name, result in self.parts.items()},
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.file, text.encode())

    def is_done(self, name: str) -> bool:
        """Return whether a part has findings, so that it need not run again."""
        return name in self.parts and self.parts[name].status == DONE

    def fact(self, part: str, name: str, otherwise: Any = None) -> Any:
        """Return a fact that a part has found; see `Findings.facts`."""
        result = self.parts.get(part)
        facts = {} if result is None else result.findings.get("facts", {})
        return facts.get(name, otherwise)
