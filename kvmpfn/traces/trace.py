"""A recording as a whole: its events, its faults, its invalidations, and the workload and storms in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn import storms as storm_models
from kvmpfn import workloads
from kvmpfn.traces.events.bpftrace import bpftrace_blocks, is_preset
from kvmpfn.traces.events.read import read_blocks
from kvmpfn.traces.events.records import ABSENT, CODE, EVENT_FIELDS, EVENTS, Records
from kvmpfn.traces.faults import NAMES, OUTCOMES, Faults
from kvmpfn.traces.follow import WHERE, WHY
from kvmpfn.traces.machines import KINDS, MACHINES, access_kinds, machines
from kvmpfn.traces.memslots import Memslots
from kvmpfn.traces.source import text_beside
from kvmpfn.traces.storm_fit import fit_storm
from kvmpfn.traces.summaries.counters import Counters
from kvmpfn.traces.summaries.tables import read_counters
from kvmpfn.traces.threads import vm_of
from kvmpfn.units import PAGE_SHIFT, InputError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from kvmpfn.scenario import Scenario
    from kvmpfn.traces.fit import Fit

PHASES = {
    "entry_to_gup": ("time_ps", "gup_ps"),
    "gup": ("gup_ps", "faultin_ps"),
    "stale_check": ("faultin_ps", "stale_ps"),
    "map": ("stale_ps", "map_ps"),
    "return": ("map_ps", "end_ps"),
    "total": ("time_ps", "end_ps"),
}
"""The phases of a fault, each between two of its times."""

ACCESS_KIND = {"read": 0, "write": 1, "exec": 2, "unknown": 0}
SIGNED_FIELDS = ("vcpu", "gfn", "level", "ret", "spurious", "fixed")
ORDER = (
    "vcpu", "rip", "address", "error_code", "gfn", "pfn", "level", "ret", "old_spte", "new_spte",
    "start", "end", "spurious", "fixed", "reason", "info1", "info2", "ipa", "hsr",
)  # fmt: skip
HUGE_SHIFT = 9
"""4K pages of 2 MiB, as a power of two."""

PLACES = ("unknown", "slot", "outside", "mmio")
UNKNOWN, SLOT, OUTSIDE, MMIO = range(4)
DEVICES = ((0xA0, 0x100), (0xFE000, 0x100000))
"""Gfns that a PC keeps for devices and firmware: below 1 MiB, and the APICs and flash below 4 GiB."""

UNTOLD = 0.01
"""Share of faults whose outcome may be unknown in a share of retries."""

INVALIDATORS = 3
"""Invalidations of a thread that make a storm of it."""


class Trace:
    """A recording of KVM's faults and of the invalidations beside them.

    Made by `read_trace`. Times are int64 picoseconds of the recording's clock.

    Attributes
    ----------
    name : str
        Name of the file.
    kernel : str
        ``"6.1"`` or ``"6.16"``: whose numbers RET_PF_* have (6.16's hold from 6.12 on).
    statistics : Counters or None
        Configuration and KVM's counters, if the text file was beside the recording.
    memslots : Memslots or None
        Where guest memory lies in the host, as told or as of the CONFIG line.
    """

    def __init__(
        self,
        name: str,
        kernel: str,
        records: Records,
        statistics: Counters | None = None,
        memslots: Memslots | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.name = name
        self.kernel = kernel
        self.statistics = statistics
        self.memslots = _slots(memslots, statistics)
        self._records = records
        self._faults = Faults.of(records, self.memslots) if faults is None else faults

    def __repr__(self) -> str:
        ended = ", ".join(f"{number:,d} {name}" for name, number in self.outcomes().items())
        return (
            f"Trace {self.name!r}: {self.used:,d} events of a kernel like {self.kernel}, "
            f"{len(self._faults.call('start_ps')):,d} invalidations, faults: {ended or 'none'}"
        )

    def summary(self, vm: int = 0) -> str:
        """Say what was read, what happened, what cannot be known, and how to replay it.

        Parameters
        ----------
        vm : int
            Which VM is fitted; 0 is the one with most faults.
        """
        from kvmpfn.traces.report import summary

        return summary(self, vm)

    @property
    def lines(self) -> int:
        """Lines of the file."""
        return self._records.lines

    @property
    def used(self) -> int:
        """Events that were read."""
        return self._faults.events

    def saw(self, *events: str) -> bool:
        """Whether one of some events was recorded at all."""
        return self._faults.saw(*events)

    @property
    def skipped(self) -> dict[str, int]:
        """Lines that were not used, by reason."""
        return dict(self._records.skipped)

    @property
    def lost(self) -> int:
        """Events known to be lost or overwritten."""
        return self._records.lost

    @property
    def lost_unknown(self) -> int:
        """Losses of unknown size."""
        return self._records.lost_unknown

    @cached_property
    def guessed(self) -> dict[str, int]:
        """What was taken to be so though the recording does not say it, and how often."""
        found = Counter(self._records.guessed)
        _, vcpus = self._faults.thread_vcpus
        here = {
            "vCPU, by the order of threads": int(vcpus.sum()),
            "VM, by the order and the names of threads": len(self._vms) if len(self.vms) > 1 else 0,
            "access, by the bits of the error code alone": int(self._machines[1].sum()),
            "outcome, by what was written": int(self._outcome[1].sum()),
            "page of a device, by its address": int(self._places[1].sum()),
        }
        return dict(found) | {what: number for what, number in here.items() if number}

    @property
    def config(self) -> dict[str, str]:
        """The run's CONFIG line; empty without the text file."""
        return dict(self.statistics.config) if self.statistics else {}

    @property
    def whole(self) -> bool:
        """Whether the recording holds the run from its first mark to its last, with nothing lost."""
        marks = self._records.marks
        ends = bool(marks) and marks[0].endswith("_go") and marks[-1].endswith("_done")
        return ends and not self.lost and not self.lost_unknown

    @property
    def mmu(self) -> str:
        """What most error codes mean: ``"npt"``, ``"ept"``, ``"shadow"``, ``"arm64"`` or ``"unknown"``."""
        counts = np.bincount(self._machines[0], minlength=len(MACHINES))
        return MACHINES[int(counts.argmax())] if len(self._faults) else "unknown"

    @property
    def duration_ps(self) -> int:
        """Time from the first event to the last."""
        return self._faults.last_ps - self._faults.first_ps

    @cached_property
    def _outcome(self) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        return self._faults.outcome(self.kernel)

    @cached_property
    def _machines(self) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        faults = self._faults
        arm64 = faults.fault("event") == CODE["kvm_guest_fault"]
        return machines(faults.fault("reason"), faults.fault("error_code"), arm64, self._records.reasons)

    @cached_property
    def _places(self) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Where each fault's page lies, and whether that is a guess."""
        gfn, outcome = self._faults.gfn, self._outcome[0]
        place = np.zeros(len(gfn), dtype=np.int8)
        devices = np.zeros(len(gfn), dtype=np.bool_)
        if self.memslots is not None:
            place = np.where(self.memslots.place(gfn) >= 0, SLOT, OUTSIDE).astype(np.int8)
        elif self.mmu in ("ept", "npt"):
            for first, end in DEVICES:
                devices |= (gfn >= first) & (gfn < end)
        emulated = outcome == NAMES.index("EMULATE")
        place[(place != SLOT) & (devices | emulated)] = MMIO
        return place, devices & ~emulated

    @cached_property
    def _vcpu(self) -> NDArray[np.int64]:
        """The vCPU of each fault."""
        told = self._faults.fault("vcpu")
        return np.where(told >= 0, told, self._faults.thread_vcpus[0][self._faults.fault("thread")])

    @cached_property
    def _vms(self) -> dict[tuple[int, int], int]:
        """Each vCPU thread's VM, by thread id and vCPU; the VM with most faults is 0."""
        faults = self._faults
        pid, vcpu = faults.pid(faults.fault("thread")), self._vcpu
        of_thread = faults.thread_vcpus[0]
        pairs = {(faults.pids[number], int(of_thread[number])) for number in faults.vcpu_threads}
        seen, counts = np.unique(np.column_stack([pid, vcpu]), axis=0, return_counts=True)
        faulted = {(a, b): n for (a, b), n in zip(seen.tolist(), counts.tolist(), strict=True)}
        pairs = {(a, b) for a, b in pairs if (a, b) in faulted or a not in {p for p, _ in faulted}}
        found = vm_of(sorted(pairs | faulted.keys()), self._records.tasks)
        total: Counter[int] = Counter()
        for pair, vm in found.items():
            total[vm] += faulted.get(pair, 0)
        rank = {vm: place for place, vm in enumerate(sorted(total, key=lambda vm: (-total[vm], vm)))}
        return {pair: rank[vm] for pair, vm in found.items()}

    @cached_property
    def _vm(self) -> NDArray[np.int64]:
        """The VM of each fault."""
        faults = self._faults
        pid, vcpu = faults.pid(faults.fault("thread")), self._vcpu
        seen, inverse = np.unique(np.column_stack([pid, vcpu]), axis=0, return_inverse=True)
        vms = np.array([self._vms[a, b] for a, b in seen.tolist()], dtype=np.int64)
        return vms[inverse.reshape(-1)] if len(vms) else np.zeros(0, dtype=np.int64)

    @cached_property
    def events(self) -> pd.DataFrame:
        """All events that were read, a row each, in the order of the file."""
        import pandas as pd

        records = self._whole()
        event = records.event
        frame = pd.DataFrame({"time_ps": records.time_ps})
        pids = pd.Series(records.pid)
        frame["task"] = pids.map(records.tasks).astype("category")
        frame["pid"] = pids
        frame["cpu"] = records.cpu.astype("i8")
        frame["event"] = pd.Categorical.from_codes(event.astype("i1"), categories=pd.Index(EVENTS))
        words = (records.a, records.b, records.c, records.d)
        for name in ORDER:
            values, known = np.zeros(len(event), "u8"), np.zeros(len(event), bool)
            for code, names in enumerate(EVENT_FIELDS.values()):
                if name in names:
                    rows = event == code
                    values[rows] = words[names.index(name)][rows]
                    known |= rows
            known &= values != ABSENT if name in ("vcpu", "rip", "reason", "info1", "info2") else True
            kind = values.view("i8") if name in SIGNED_FIELDS else values
            frame[name] = pd.arrays.IntegerArray(kind, ~known)
        frame.attrs["units"] = {"time_ps": "ps"}
        return frame

    @cached_property
    def faults(self) -> pd.DataFrame:
        """All faults, a row each, in the order they began.

        Columns: `time_ps` and `end_ps` (entry and return), `task`, `pid`, `vm` and `vcpu`, `gfn`, `place`
        (``slot`` or ``outside`` of a memslot; ``mmio``: KVM emulated it, or without a map the address is a
        device's), `kind` (read, write, exec, unknown), `error_code`, `machine` (what the code means) and
        whether that is `guessed`, `outcome` (RET_PF_* less its prefix; ERROR; ``unfinished`` where the
        recording ends inside, ``unknown`` where nothing tells), whether that is `inferred`, `where` and `why`
        (for RETRY; see `kvmpfn.traces.faults`), `level`, `pfn`, and the times of the probes, of the exit
        before and of the entry after. `why` is ``range``, ``false_range`` or ``seq``: whether the gfn lay at
        the failed check in a range being invalidated, in the gap between two, or in neither. `broken`: events
        of the thread were lost since its fault before.
        """
        import pandas as pd

        faults = self._faults
        outcome, inferred = self._outcome
        where, why = faults.places(outcome)
        machine, guessed = self._machines
        pid = faults.pid(faults.fault("thread"))
        error_code = faults.fault("error_code")
        frame = pd.DataFrame({"time_ps": faults.fault("time_ps"), "pid": pid})
        frame.insert(1, "task", frame["pid"].map(self._records.tasks).astype("category"))
        frame["vm"], frame["vcpu"], frame["gfn"] = self._vm, self._vcpu, faults.gfn
        frame["place"] = _named(self._places[0], PLACES)
        frame["kind"] = _named(access_kinds(machine, error_code), KINDS)
        frame["error_code"] = error_code.view(np.uint64)
        frame["machine"], frame["guessed"] = _named(machine, MACHINES), guessed
        for name in (
            "exit_ps",
            "gup_ps",
            "faultin_ps",
            "stale_ps",
            "map_ps",
            "end_ps",
            "entry_ps",
            "level",
            "pfn",
        ):
            frame[name] = _optional(faults.fault(name))
        frame["outcome"], frame["inferred"] = _named(outcome, NAMES), inferred
        frame["where"], frame["why"] = _named(where, WHERE), _named(why, WHY)
        frame["broken"] = faults.fault("broken") > 0
        frame.attrs["units"] = {name: "ps" for name in frame.columns if name.endswith("_ps")}
        return frame

    @cached_property
    def invalidations(self) -> pd.DataFrame:
        """All notifier calls, a row each.

        Columns: `start_ps` (the start call), `start_ret_ps` (its return), `end_ps` (the end call), `seq_ps`
        (sequence number about to move; kernels that inline it have none), `end_ret_ps`, the thread, the range
        in host addresses, its `span` in bytes, the `hold_ps` from the start's return to the end's call where
        both were recorded, the range in gfns where it meets a memslot, and how many entries its thread
        changed until the start's return.
        """
        import pandas as pd

        faults = self._faults
        frame = pd.DataFrame({"start_ps": faults.call("start_ps"), "pid": faults.pid(faults.call("thread"))})
        frame.insert(1, "task", frame["pid"].map(self._records.tasks).astype("category"))
        for name in ("hva_start", "hva_end"):
            frame[name] = faults.call(name).view(np.uint64)
        for name in ("start_ret_ps", "end_ps", "seq_ps", "end_ret_ps", "gfn_start", "gfn_end"):
            frame[name] = _optional(faults.call(name))
        frame["span"] = frame["hva_end"] - frame["hva_start"]
        frame["hold_ps"] = frame["end_ps"] - frame["start_ret_ps"]
        frame["zapped"] = faults.call("zapped")
        units = {name: "ps" for name in frame.columns if "_ps" in name}
        frame.attrs["units"] = units | dict.fromkeys(("hva_start", "hva_end", "span"), "B")
        return frame

    @cached_property
    def threads(self) -> pd.DataFrame:
        """All threads of the recording, a row each: `pid`, `task`, and for those of vCPUs `vm` and `vcpu`.

        `faults` and `invalidations` count what they did; threads that did neither help.
        """
        import pandas as pd

        faults, records = self._faults, self._records
        rows = [[pid, vm, vcpu] for (pid, vcpu), vm in self._vms.items()]
        others = sorted(set(faults.pids) - {pid for pid, _ in self._vms})
        frame = pd.DataFrame(rows + [[pid, None, None] for pid in others], columns=["pid", "vm", "vcpu"])
        frame = frame.astype({"vm": "Int64", "vcpu": "Int64"}).sort_values(["vm", "vcpu", "pid"])
        frame.insert(1, "task", frame["pid"].map(records.tasks))
        pid = faults.pid(faults.fault("thread"))
        counts = Counter(zip(pid.tolist(), self._vcpu.tolist(), strict=True))
        calls = Counter(faults.pid(faults.call("thread")).tolist())
        pairs = zip(frame["pid"], frame["vcpu"].fillna(-1), strict=True)
        frame["faults"] = [counts[a, int(b)] for a, b in pairs]
        frame["invalidations"] = [calls[a] for a in frame["pid"]]
        return frame.reset_index(drop=True)

    @cached_property
    def vms(self) -> pd.DataFrame:
        """The VMs, a row each, that with most faults first: `vcpus`, `faults`, distinct `pages`."""
        import pandas as pd

        vcpus = Counter(self._vms.values())
        vm, gfn = self._vm, self._faults.gfn
        rows = [[vcpus[one], int((vm == one).sum()), len(np.unique(gfn[vm == one]))] for one in sorted(vcpus)]
        return pd.DataFrame(rows, columns=["vcpus", "faults", "pages"]).rename_axis("vm")

    @cached_property
    def accesses(self) -> pd.DataFrame:
        """What the guests asked for: consecutive faults of one vCPU on one gfn, until not RETRY, are one row.

        A gfn that faults again after it was resolved is another access. `think_ps` is the time to the first
        fault of an access from the one before it: from its handler's return, else from the guest's entry,
        else, where neither was recorded, from the fault itself (then it holds that fault). So it holds the
        entry, the guest and the exit. It is missing for a vCPU's first access and where events of it were
        lost.
        """
        import pandas as pd

        faults = self._faults
        vm, vcpu, gfn, time = self._vm, self._vcpu, faults.gfn, faults.fault("time_ps")
        outcome = self._outcome[0]
        order = np.lexsort((np.arange(len(gfn)), vcpu, vm))
        first = np.ones(len(order), dtype=np.bool_)
        before, after = order[:-1], order[1:]
        same_vcpu = (vm[before] == vm[after]) & (vcpu[before] == vcpu[after])
        goes_on = same_vcpu & (gfn[before] == gfn[after]) & (outcome[before] == NAMES.index("RETRY"))
        first[1:] = ~goes_on
        left = np.where(faults.fault("end_ps") >= 0, faults.fault("end_ps"), faults.fault("entry_ps"))
        left = np.where(left >= 0, left, time)
        broken = faults.fault("broken") > 0
        think = np.full(len(order), -1, dtype=np.int64)
        chained = same_vcpu & ~broken[after]
        think[1:][chained] = np.maximum(time[after] - left[before], 0)[chained]
        begin = np.flatnonzero(first)
        last = np.append(begin, len(order))[1:] - 1
        head, tail = order[begin], order[last]
        machine = self._machines[0]
        frame = pd.DataFrame(
            {
                "time_ps": time[head],
                "end_ps": _optional(faults.fault("end_ps")[tail]),
                "vm": vm[head],
                "vcpu": vcpu[head],
                "gfn": gfn[head],
                "place": _named(self._places[0][head], PLACES),
                "kind": _named(access_kinds(machine, faults.fault("error_code"))[head], KINDS).astype("str"),
                "think_ps": _optional(think[begin]),
                "tries": last - begin + 1,
                "outcome": _named(outcome[tail], NAMES).astype("str"),
            }
        )
        frame = frame.iloc[np.argsort(head, kind="stable")].reset_index(drop=True)
        frame.attrs["units"] = {name: "ps" for name in frame.columns if name.endswith("_ps")}
        return frame

    def over_time(self, bins: int = 100) -> pd.DataFrame:
        """Return what happened in each of some equal stretches of the recording.

        Parameters
        ----------
        bins : int
            How many.

        Returns
        -------
        DataFrame
            A row a stretch: its start `time_ps`, the `faults` taken, the `retries` among them,
            `invalidations`, the distinct `pages` that faulted and those that were `new_pages`; `working_set`
            counts all pages so far, and `faults_per_s`, `retry_share` and `invalidations_per_s` are rates.
        """
        import pandas as pd

        if type(bins) is not int or bins < 1:
            raise InputError(f"bins: {bins!r} is not a whole number of at least 1; nearest is 1")
        faults = self._faults
        begin = faults.first_ps
        width = max(1, -(-(self.duration_ps + 1) // bins))

        def stretch(times: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.clip((times - begin) // width, 0, bins - 1)

        at = stretch(faults.fault("time_ps"))
        retried = self._outcome[0] == NAMES.index("RETRY")
        page = np.unique(np.column_stack([self._vm, faults.gfn]), axis=0, return_inverse=True)[1].reshape(-1)
        seen = np.unique(np.column_stack([at, page]), axis=0)[:, 0]
        new = at[np.unique(page, return_index=True)[1]] if len(page) else page
        frame = pd.DataFrame({"time_ps": np.arange(bins, dtype=np.int64) * width})
        for name, where in (
            ("faults", at),
            ("retries", at[retried]),
            ("invalidations", stretch(faults.call("start_ps"))),
            ("pages", seen),
            ("new_pages", new),
        ):
            frame[name] = np.bincount(where, minlength=bins)
        frame["working_set"] = frame["new_pages"].cumsum()
        frame["faults_per_s"] = frame["faults"] * (1e12 / width)
        frame["invalidations_per_s"] = frame["invalidations"] * (1e12 / width)
        unknown = np.bincount(at[self._outcome[0] == NAMES.index("unknown")], minlength=bins)
        known = (frame["faults"] > 0) & (unknown <= UNTOLD * frame["faults"])
        frame["retry_share"] = frame["retries"] / frame["faults"].where(known)
        frame.attrs["units"] = {"time_ps": "ps", "faults_per_s": "1/s", "invalidations_per_s": "1/s"}
        return frame

    def counters(self) -> pd.Series[int]:
        """Return KVM's own statistics of the whole run, after minus before, summed over vCPUs."""
        if self.statistics is None:
            raise InputError(f"{self.name}: no counters; nearest valid: the run's .txt beside the recording")
        return self.statistics.counters()

    def outcomes(self) -> pd.Series[int]:
        """Return how many of the recorded faults ended in each outcome, most frequent first."""
        import pandas as pd

        counts = np.bincount(self._outcome[0], minlength=len(NAMES)).tolist()
        found = Counter({name: number for name, number in zip(NAMES, counts, strict=True) if number})
        found.pop("unfinished", None)
        return pd.Series(dict(found.most_common()), dtype="int64", name="outcomes")

    def phases(self, outcome: str = "FIXED") -> pd.DataFrame:
        """Return how long the phases of the faults with one outcome took.

        Parameters
        ----------
        outcome : str
            Which faults.

        Returns
        -------
        DataFrame
            One row a phase of `PHASES`: `count`, and `median`, `mean` and `p90` in microseconds.
        """
        import pandas as pd

        faults = self.faults[self.faults["outcome"] == outcome]
        rows = {}
        for phase, (begin, end) in PHASES.items():
            spent = (faults[end] - faults[begin]).dropna().astype("float64") / 1e6
            rows[phase] = [len(spent), spent.median(), spent.mean(), spent.quantile(0.9)]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["count", "median", "mean", "p90"])
        frame.attrs["units"] = dict.fromkeys(("median", "mean", "p90"), "us")
        return frame

    def replay_gfns(self, vm: int = 0) -> dict[int, int]:
        """Return where each recorded gfn of a VM lies in the memory of a replay.

        The memslots come first, page for page; pages outside them (the recorder's guest's code and page
        tables) follow in the order of their addresses. Without a map the 2 MiB in which no page faulted are
        left out, and within the others pages lie as they did. Pages of devices have none: nothing is mapped
        there.
        """
        gfns = np.unique(self._faults.gfn[(self._vm == vm) & (self._places[0] != MMIO)])
        if self.memslots is None:
            _, region = np.unique(gfns >> HUGE_SHIFT, return_inverse=True)
            places = (region.reshape(-1) << HUGE_SHIFT) + (gfns & (1 << HUGE_SHIFT) - 1)
            return dict(zip(gfns.tolist(), places.tolist(), strict=True))
        places = self.memslots.place(gfns)
        outside = places < 0
        places[outside] = self.memslots.total + np.arange(int(outside.sum()))
        return dict(zip(gfns.tolist(), places.tolist(), strict=True))

    @property
    def replay_bytes(self) -> int:
        """Memory that a scenario needs for `workload`."""
        last = max(self.replay_gfns().values(), default=-1) + 1
        return max(last, self.memslots.total if self.memslots else 0) << PAGE_SHIFT

    def replay_accesses(self, vm: int = 0) -> pd.DataFrame:
        """Return the accesses of a VM that are replayed: `vcpu`, `page` (of the replay), `kind`, `think_ps`.

        A vCPU's first access comes as long after the VM's first as it did; other missing times to think,
        where events were lost, are 0. Accesses to pages of devices are left out.
        """
        frame = self.accesses
        frame = frame[(frame["vm"] == vm) & (frame["place"] != "mmio")]
        first = ~frame["vcpu"].duplicated()
        waited = (frame["time_ps"] - frame["time_ps"].min()).where(first, 0)
        page = frame["gfn"].map(self.replay_gfns(vm)).astype("int64")
        columns = {
            "vcpu": frame["vcpu"],
            "page": page,
            "kind": frame["kind"].map(ACCESS_KIND).astype("int64"),
        }
        return frame[[]].assign(
            **columns, think_ps=frame["think_ps"].mask(first, waited).fillna(0).astype("int64")
        )

    def workload(self, *, think: bool = True, vm: int = 0) -> workloads.Workload:
        """Return the recorded accesses of a VM as a workload.

        Retries are outcomes of the recorded kernel, not input: see `accesses`. Gfns are those of
        `replay_gfns`, and the scenario's memory must have `replay_bytes`.

        Parameters
        ----------
        think : bool
            Whether the times between accesses are replayed too; they hold the recording's own entries and
            exits, in the recording's clock.
        vm : int
            Which VM; 0 is the one with most faults.
        """
        return as_replay(self.replay_accesses(vm), think=think)

    def storms(self) -> list[storm_models.Storm]:
        """Return a fitted storm for each thread that invalidated guest memory at least three times.

        The CONFIG line tells a periodic storm from a closed loop. Without it the times do: see
        `kvmpfn.traces.storm_fit`. Span and hold are medians; a hold runs from the start's return to the end
        call.
        """
        asked = float(self.config.get("rate", 0))
        return [fit_storm(calls, asked, self.memslots) for calls in self.storm_calls()]

    def guest_calls(self) -> pd.DataFrame:
        """Return the invalidations that meet a memslot; without a map of memory, all."""
        calls = self.invalidations
        return calls if self.memslots is None else calls[calls["gfn_start"].notna()]

    def storm_calls(self) -> list[pd.DataFrame]:
        """Return the invalidations that `storms` is fitted to, a table a thread."""
        calls = self.guest_calls()
        groups = (group for _, group in calls.groupby("pid", sort=False))
        return [group for group in groups if len(group) >= INVALIDATORS and group["start_ps"].nunique() > 1]

    def scenario(self, *, vm: int = 0, host: Any = None, **fields: Any) -> Scenario:
        """Return the scenario that replays a VM's accesses one by one; see `kvmpfn.traces.replay`.

        Parameters
        ----------
        vm : int
            Which VM; 0 is the one with most faults.
        host : str or Host, optional
            Whose costs hold; of a recording with all probes the fault path's are the recording's own.
        **fields
            Other fields of `Scenario`.
        """
        from kvmpfn.traces.replay import replay

        return replay(self, vm=vm, host=host, **fields)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the events into a Parquet file, which `read_trace` reads, and much faster than text.

        Parameters
        ----------
        path : path-like
            The file; it appears whole or not at all.
        """
        self._whole().to_parquet(path)

    def _whole(self) -> Records:
        """Return the events, if they were kept."""
        if len(self._records) != self.used:
            raise InputError(
                f"{self.name}: events were not kept; nearest valid: read_trace(..., events=True)"
            )
        return self._records

    def fit(self, *, vm: int = 0, host: Any = None) -> Fit:
        """Return generators that behave like the recording, and can be scaled; see `kvmpfn.traces.fit`.

        Parameters
        ----------
        vm : int
            Which VM; 0 is the one with most faults.
        host : str or Host, optional
            Whose costs hold; of a recording with all probes the fault path's are the recording's own.
        """
        from kvmpfn.traces.fit import fit

        return fit(self, vm=vm, host=host)


def retries_known(faults: pd.DataFrame) -> bool:
    """Whether enough of some faults' outcomes are known for a share of retries."""
    return bool((faults["outcome"] == "unknown").mean() <= UNTOLD)


def as_replay(frame: pd.DataFrame, *, think: bool = True) -> workloads.Workload:
    """Make a workload of a table of accesses, columns as of `Trace.replay_accesses`."""
    vcpus: list[Any] = []
    for _, rows in frame.groupby("vcpu"):
        pauses = rows["think_ps"] if think else rows["think_ps"] * 0
        columns = (column.tolist() for column in (rows["page"], rows["kind"], pauses))
        vcpus.append(tuple(zip(*columns, strict=True)))
    return workloads.replay(vcpus=tuple(vcpus))


def read_trace(
    path: str | os.PathLike[str] | Records,
    *,
    kernel: str | None = None,
    memslots: Memslots | pd.DataFrame | str | os.PathLike[str] | Iterable[Any] | None = None,
    names: Mapping[str, str] | None = None,
    clock_hz: float | None = None,
    events: bool = True,
    progress: bool | None = None,
) -> Trace:
    """Read a recording, whatever its format, and the run's text file beside it if there is one.

    Parameters
    ----------
    path : path-like or Records
        The recording, for instance ``NAME.trace.gz``; ``NAME.txt`` beside it tells the set-up and counters.
        `kvmpfn.traces.events.read.read_blocks` says which formats there are. A summary (see
        `kvmpfn.read_counters`) is a recording without events, of which `Trace.statistics` holds all. Or
        events that were read, as by `kvmpfn.read_bpftrace` with a pattern of the user's.
    kernel : str, optional
        Kernel version recorded, such as ``"6.1"``; found from the entries' empty value, else from the name of
        the folder, if not given.
    memslots : DataFrame, path-like or iterable, optional
        Where guest memory lies in the host: `gfn`, `hva` and `pages` of each memslot, as a table, a CSV file
        or triples (see `Memslots`). The CONFIG line of the text file, if there is one, holds else.
    names : mapping of str to str, optional
        Events by the names that the recording has for them, such as ``{"my_ret": "pf_ret"}``.
    clock_hz : float, optional
        Rate of the clock, for recordings whose times are ticks.
    events : bool
        Whether to keep the events too. If not, memory grows with the faults and invalidations only.
    progress : bool, optional
        Whether to show a bar; by default only on a terminal.

    Returns
    -------
    Trace
        The recording.
    """
    source = Path("records" if isinstance(path, Records) else path)
    statistics = None if isinstance(path, Records) else _beside(source)
    slots = _slots(memslots, statistics)
    if isinstance(path, Records):
        blocks: Iterable[Records] = [path]
    elif is_preset(source):
        blocks = bpftrace_blocks(source, progress=progress)
    else:
        blocks = read_blocks(source, clock_hz=clock_hz, names=names, progress=progress)
    faults, notes, kept = Faults(slots), Records(), []
    for block in blocks:
        faults.feed_records(block)
        if events:
            kept.append(block)
        else:
            notes.take_notes(block, faults.events - len(block))
    if not faults.events:
        statistics = None if isinstance(path, Records) else _summary(source)
        if statistics is None:
            raise InputError(
                f"{source.name}: no event of KVM in it; nearest valid: text of the ftrace buffer"
            )
    records = Records.join(kept) if events else notes
    return Trace(source.name, _kernel(kernel, faults, source), records, statistics, slots, faults)


def _beside(file: Path) -> Counters | None:
    """Read the run's text file; another file may have its name, such as a recording's text."""
    if not file.is_file():
        there = [one.name for one in sorted(file.parent.glob("*.trace*"))] if file.parent.is_dir() else []
        near = nearest(file.name, there) if there else "none"
        raise InputError(f"{file.name}: no such recording; nearest valid: {near}")
    text = text_beside(file)
    return _summary(text) if text.is_file() and text != file else None


def _summary(file: Path) -> Counters | None:
    """Read a file that may be a summary."""
    try:
        return read_counters(file)
    except InputError:
        return None


def _slots(given: Any, statistics: Counters | None) -> Memslots | None:
    """Return the map of memory: the one given, or that of the CONFIG line."""
    if given is not None:
        return Memslots(given)
    if statistics is None or statistics.slot is None:
        return None
    gfn, page, pages = statistics.slot
    return Memslots([(gfn, page << PAGE_SHIFT, pages)])


def _kernel(given: str | None, faults: Faults, file: Path) -> str:
    """Say whose numbers the returns have: told, seen in the first entry made, or in the folder's name."""
    if given is not None:
        found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\..*)?", given)
        if found is None or int(found[1]) < 6:
            raise InputError(f"kernel={given!r}: not a version; nearest valid: {' or '.join(OUTCOMES)}")
        return "6.1" if (int(found[1]), int(found[2])) < (6, 12) else "6.16"
    if faults.empty_entry is not None:
        return "6.16" if faults.empty_entry < 0 else "6.1"
    folder = file.resolve().parent.name
    for name in reversed(OUTCOMES):
        if folder.endswith((name, name.replace(".", ""))):
            return name
    if not faults.saw("pf_ret"):
        return "6.16"
    raise InputError(f"{file.name}: kernel unknown; nearest valid: kernel='6.1' or kernel='6.16'")


def _named(codes: NDArray[np.int8], names: tuple[str, ...]) -> Any:
    """Return codes as a category of their names."""
    import pandas as pd

    return pd.Categorical.from_codes(codes, categories=pd.Index(names))


def _optional(values: NDArray[np.int64]) -> Any:
    """Return numbers of which -1 means that nothing told them."""
    import pandas as pd

    return pd.arrays.IntegerArray(values.copy(), values < 0)
