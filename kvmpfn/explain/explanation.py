"""explain: a run is simulated again, its slowest faults are followed, and what was seen is told."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from kvmpfn.core import layout as L
from kvmpfn.explain.fault import Attempt, Fault
from kvmpfn.explain.watch import watch
from kvmpfn.results import Run, _largest, _percent, _time, _title
from kvmpfn.simulator import _World
from kvmpfn.units import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Explanation", "explain"]

RING = 1 << 12
"""Waits that are kept to find who had a line before: far more than threads can queue for one."""

SHOWN = 6
"""Attempts of a fault, and holders, that the text shows."""


def explain(run: Run, n: int = 10) -> Explanation:
    """Follow the slowest faults of a run; see `Run.explain`.

    Parameters
    ----------
    run : Run
        Made by this version, or loaded.
    n : int
        How many faults.

    Returns
    -------
    Explanation
        The pieces of each fault, which sum to its latency, exactly.

    Raises
    ------
    InputError
        `n` is not a whole number of at least 1, or the run cannot be had again.
    """
    if type(n) is not int or n < 1:
        raise InputError(f"explain: n: {n!r} is not a whole number of at least 1; nearest is 1")
    version = importlib.metadata.version("kvmpfn")
    if run.version != version:
        raise InputError(f"explain: the run is of kvmpfn {run.version}, this is {version}; simulate again")
    bins = len(run.arrays["timeline"])
    world = _World(run.scenario, 0, False, bins, slowest=min(n, max(1, run.latency.count)))
    world.run(progress=False)
    if world.result().digest != run.digest:
        raise InputError(
            "explain: the same scenario gives another run now: this one was interrupted, or another model's; "
            "simulate again"
        )
    start = int(world.words[L.SLOWEST])
    slowest = world.words[start : start + 4 * world.slowest].reshape(-1, 4)
    faults = watch(_World(run.scenario, 0, False, bins, waits=RING), slowest[slowest[:, 0] > 0])
    return Explanation(run, faults)


class Explanation:
    """Where the time of some faults went, the slowest first.

    Parameters
    ----------
    run : Run
        Theirs.
    faults : list of Fault
        What was seen of each.
    """

    def __init__(self, run: Run, faults: list[Fault]) -> None:
        self._run = run
        self._faults = faults

    @property
    def frame(self) -> pd.DataFrame:
        """One row a fault: `vm`, `vcpu`, `gfn`, `start`, `latency`, number of `attempts`, last `outcome`."""
        rows = [
            (*self._vcpu(fault), fault.attempts[-1].gfn, fault.attempts[0].start, fault.latency,
             len(fault.attempts), fault.attempts[-1].outcome)
            for fault in self._faults
        ]  # fmt: skip
        columns = ("vm", "vcpu", "gfn", "start", "latency", "attempts", "outcome")
        return _table(rows, columns, ("start", "latency"), "fault")

    @property
    def attempts(self) -> pd.DataFrame:
        """One row an attempt: `fault`, `attempt`, `gfn`, `start`, `ps`, `outcome`.

        The outcome of a RETRY is its counter; `holder` made it retry, and `because` says how.
        """
        rows = [
            (rank, number, one.gfn, one.start, one.ps, one.outcome, one.holder, one.because)
            for rank, fault in enumerate(self._faults, 1)
            for number, one in enumerate(fault.attempts, 1)
        ]
        columns = ("fault", "attempt", "gfn", "start", "ps", "outcome", "holder", "because")
        return _table(rows, columns, ("start", "ps"))

    @property
    def pieces(self) -> pd.DataFrame:
        """One row a piece of time, in order; the `ps` of a fault's pieces sum to its latency, exactly.

        `step` and `part` say where it went. For a wait, `waited_for` says for which lock, line or resource,
        `holder` who had it (or was ahead in the queue), and `doing` what that one was about.
        """
        rows = [(rank, *piece) for rank, fault in enumerate(self._faults, 1) for piece in fault.pieces]
        columns = ("fault", "attempt", "step", "part", "ps", "waited_for", "holder", "doing")
        return _table(rows, columns, ("ps",))

    @property
    def holders(self) -> pd.DataFrame:
        """One row a holder and what it held: the `ps` it cost, their `share` of all time, how many `faults`.

        What of an attempt that ended in RETRY was no such wait is laid to who made it retry, as ``retry``.
        """
        total = sum(fault.latency for fault in self._faults)
        costs = _costs(self._faults)
        rows = [(*key, ps, ps / total, len(who)) for key, (ps, who) in costs.items()]
        return _table(rows, ("holder", "waited_for", "ps", "share", "faults"), ("ps",))

    def to_dict(self) -> dict[str, Any]:
        """Faults with their attempts and pieces, and holders, fit for JSON."""
        attempts, pieces = self.attempts, self.pieces
        faults = []
        for rank, row in enumerate(self.frame.to_dict("records"), 1):
            for name, rows in (("attempts", attempts), ("pieces", pieces)):
                row[name] = rows[rows["fault"] == rank].drop(columns="fault").to_dict("records")
            faults.append(row)
        return {"faults": faults, "holders": self.holders.to_dict("records")}

    def __repr__(self) -> str:
        count = self._run.latency.count
        if not self._faults:
            return f"{_title(self._run.scenario)}: no fault was resolved"
        which = "the slowest" if len(self._faults) == 1 else f"the {len(self._faults)} slowest"
        lines = [f"{which} of {count:,d} faults of {_title(self._run.scenario)}"]
        for rank, fault in enumerate(self._faults, 1):
            lines += ["", *self._tell(rank, fault)]
        costs = _costs(self._faults)
        if costs:
            total = sum(fault.latency for fault in self._faults)
            lines += ["", f"who was in the way, of {_time(total)}:"]
            named = _told((what, holder, "", ps) for (holder, what), (ps, _) in costs.items())
            lines += [f"   {_time(ps)} ({_percent(ps / total)}) {text}" for text, ps in named]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Two tables: the faults, and who was in their way."""
        faults = [
            (rank, self._name(fault), fault.attempts[-1].gfn, _time(fault.attempts[0].start),
             _time(fault.latency), len(fault.attempts), "; ".join(self._waits(fault)) or "none")
            for rank, fault in enumerate(self._faults, 1)
        ]  # fmt: skip
        total = sum(fault.latency for fault in self._faults)
        holders = [
            (holder, what, _time(ps), _percent(ps / total), len(who))
            for (holder, what), (ps, who) in _costs(self._faults).items()
        ]
        caption = f"slowest of {self._run.latency.count:,d} faults of {_title(self._run.scenario)}"
        heads = ("", "vCPU", "gfn", "start", "latency", "attempts", "waits")
        return _html(caption, heads, faults) + _html(
            "who was in the way", ("holder", "of", "time", "share", "faults"), holders
        )

    def _vcpu(self, fault: Fault) -> tuple[int, int]:
        s = self._run.scenario
        return divmod(fault.actor - len(s.clients), s.vcpus)

    def _name(self, fault: Fault) -> str:
        vm, vcpu = self._vcpu(fault)
        return f"VM {vm} vCPU {vcpu}" if self._run.scenario.vms > 1 else f"vCPU {vcpu}"

    def _tell(self, rank: int, fault: Fault) -> Iterable[str]:
        """Tell of one fault: its attempts, its parts, its waits."""
        first, count = fault.attempts[0], len(fault.attempts)
        tries = "" if count == 1 else f" in {count} attempts"
        yield (
            f"{rank}. {self._name(fault)}, gfn {fault.attempts[-1].gfn}: {_time(fault.latency)}{tries}, "
            f"from {_time(first.start)} on"
        )
        for number, attempt in enumerate(fault.attempts, 1):
            if count > SHOWN and SHOWN // 2 < number <= count - SHOWN // 2:
                if number == SHOWN // 2 + 1:
                    yield f"   ... {count - SHOWN // 2 * 2} more ..."
                continue
            # The guest may find a page mapped after a RETRY; its attempt counts to the next fault.
            where = f" at gfn {attempt.gfn}" if attempt.gfn != fault.attempts[-1].gfn else ""
            if count > 1:
                yield f"   {number}: {_time(attempt.ps)}{where}, {_outcome(attempt)}"
        parts: dict[str, int] = {}
        for piece in fault.pieces:
            parts[piece.part] = parts.get(piece.part, 0) + piece.ps
        named = (f"{part} {_time(ps)}" for part, ps in _largest(parts))
        yield f"   time: {', '.join(named)}"
        for wait in self._waits(fault):
            yield f"   waited {wait}"

    @staticmethod
    def _waits(fault: Fault) -> list[str]:
        """List a fault's longest waits, with who held what, and what for."""
        waits = ((p.waited_for, p.holder, p.doing, p.ps) for p in fault.pieces if p.waited_for)
        return [f"{_time(ps)} for {text}" for text, ps in _told(waits)]


def _costs(faults: list[Fault]) -> dict[tuple[str, str], tuple[int, set[int]]]:
    """Sum up by holder and what it held: ps and the faults concerned; the most costly first."""
    costs: dict[tuple[str, str], tuple[int, set[int]]] = {}

    def add(holder: str, what: str, ps: int, rank: int) -> None:
        if holder and ps:
            so_far, ranks = costs.get((holder, what), (0, set()))
            costs[holder, what] = (so_far + ps, ranks | {rank})

    for rank, fault in enumerate(faults):
        held = [0] * (len(fault.attempts) + 1)
        for piece in fault.pieces:
            add(piece.holder, piece.waited_for, piece.ps, rank)
            held[piece.attempt] += piece.ps if piece.holder else 0
        for number, attempt in enumerate(fault.attempts, 1):
            add(attempt.holder, "retry", attempt.ps - held[number], rank)
    return dict(sorted(costs.items(), key=lambda item: (-item[1][0], item[0])))


def _told(waits: Iterable[tuple[str, str, str, int]]) -> list[tuple[str, int]]:
    """Put waits (for what, holder, doing, ps) into words, the longest first, those for vCPUs together."""
    sums: dict[tuple[str, ...], dict[tuple[str, str], int]] = {}
    for what, holder, doing, ps in waits:
        alike = sums.setdefault((what, "vCPUs") if "vCPU" in holder else (what, holder, doing), {})
        alike[holder, doing] = alike.get((holder, doing), 0) + ps
    told = {}
    for (what, *_), alike in sums.items():
        (holder, doing), most = max(alike.items(), key=lambda item: item[1])
        who = ", ".join(filter(None, (holder, doing)))
        if len(alike) > 1:
            who = f"{len({name for name, _ in alike})} vCPUs, most ({_time(most)}) {who}"
        told[f"{what}: {who}" if who else what] = sum(alike.values())
    return _largest(told, SHOWN)


def _outcome(attempt: Attempt) -> str:
    if not attempt.outcome.startswith("retry."):
        return attempt.outcome
    cause = f": {attempt.holder} {attempt.because}" if attempt.holder else ""
    return f"RETRY ({attempt.outcome.removeprefix('retry.')}){cause}"


def _table(
    rows: list[Any], columns: tuple[str, ...], times: tuple[str, ...], index: str | None = None
) -> pd.DataFrame:
    """Make a table with units; `index` names an index that counts from 1."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(columns))
    if index:
        frame.index = pd.RangeIndex(1, len(rows) + 1, name=index)
    frame.attrs["units"] = {name: "ps" if name in times else "1" for name in columns}
    return frame


def _html(caption: str, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><caption>{escape(caption)}</caption><tbody><tr>{head}</tr>{body}</tbody></table>"
