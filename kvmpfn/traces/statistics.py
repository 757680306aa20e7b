"""What a run's text file says: how it was set up, and KVM's own statistics before and after it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpfn.units import InputError

if TYPE_CHECKING:
    import pandas as pd

PAGE_SHIFT = 12


@dataclass(frozen=True)
class Statistics:
    """One run's configuration and the difference of KVM's binary statistics.

    Attributes
    ----------
    config : dict of str to str
        The CONFIG line: what the run was asked to do.
    result : dict of str to str
        The RESULT line: wall time and invalidations issued; empty if the run did not finish.
    deltas : dict of (str, str) to int
        After minus before by (vCPU or ``"vm"``, KVM's name); statistics that stayed zero are absent.
    """

    config: dict[str, str]
    result: dict[str, str]
    deltas: dict[tuple[str, str], int]

    @property
    def slot(self) -> tuple[int, int, int] | None:
        """First gfn, first host virtual page and number of pages of the data slot, if it was told."""
        if not {"hva", "gpa", "mib"} <= self.config.keys():
            return None
        hva, gpa = (int(self.config[key], 16) >> PAGE_SHIFT for key in ("hva", "gpa"))
        return gpa, hva, int(self.config["mib"]) << 8

    def counters(self) -> pd.Series[int]:
        """Return KVM's statistics, after minus before, summed over vCPUs; names are KVM's."""
        import pandas as pd

        sums: dict[str, int] = {}
        for (_, name), value in self.deltas.items():
            sums[name] = sums.get(name, 0) + value
        return pd.Series(sums, dtype="int64", name="counters")


def read_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read the text file of one run.

    Parameters
    ----------
    path : path-like
        A file with a ``CONFIG`` line, ``STAT RUN before|after WHO NAME VALUE`` lines and a ``RESULT`` line.
        Statistics that are zero need no line.

    Returns
    -------
    Statistics
        The run's set-up and what its counters grew by.
    """
    file = Path(path)
    config: dict[str, str] = {}
    result: dict[str, str] = {}
    deltas: dict[tuple[str, str], int] = {}
    for line in file.read_text(errors="replace").splitlines():
        words = line.split()
        if line.startswith("STAT ") and len(words) == 6 and words[2] in ("before", "after"):
            key = words[3], words[4]
            deltas[key] = deltas.get(key, 0) + int(words[5]) * (1 if words[2] == "after" else -1)
        elif line.startswith("CONFIG "):
            config = {"run": words[1], **_pairs(words[2:])}
        elif line.startswith("RESULT "):
            result = _pairs(words[2:])
    if not config and not deltas:
        raise InputError(f"{file.name}: no CONFIG or STAT line; nearest valid: the .txt beside a recording")
    return Statistics(config, result, deltas)


def _pairs(words: list[str]) -> dict[str, str]:
    """Split words of the form key=value; a word alone is a key that is set."""
    return {key: value or "1" for key, _, value in (word.partition("=") for word in words)}
