"""The page tables that a recorded KVM built, beside the ledger's and those of a simulated replay.

No statistic of KVM's counts its tables. A recording of every entry that changed does: an entry that comes to
point to a table links it, and names the page it lies in; the root has no entry above it. What the host's own
fault does with an atomic instruction is in a count of LOCK-prefixed instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.memory import Ledger, scenario_ledger
from kvmpfn.scenario import Region, Scenario
from kvmpfn.simulator import simulate
from kvmpfn.units import InputError, format_size
from kvmpfn.workloads import demand_paging

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from kvmpfn.traces import Trace

__all__ = ["counted_tables", "linked_tables", "page_tables", "recorded_guest"]

TABLE = 4096
HUGE = 7
MMU_PRESENT = 11
FRAME = (1 << 52) - TABLE

PATHS = {"6.1": "v6.1", "6.16": "v6.16"}


def linked_tables(trace: Trace) -> pd.DataFrame:
    """Count by level what entries came to point to.

    Parameters
    ----------
    trace : Trace
        A recording with the event of changed entries.

    Returns
    -------
    DataFrame
        A row a level of the tables, from the last level, 1, to the level below the root: `linked` and
        `unlinked` (entries that began and ceased to point to one), `pages` (different pages they lay in),
        `leaves` and `zapped` (entries of the table's level that began and ceased to map memory).

    Raises
    ------
    InputError
        The recording lacks the event.
    """
    import pandas as pd

    events = trace.events
    events = events[events["event"] == "kvm_tdp_mmu_spte_changed"]
    if events.empty:
        raise InputError(f"{trace.name}: no entry changed in it; nearest valid: a recording with all probes")
    level = events["level"].to_numpy(dtype="int64")
    old, new = (events[name].to_numpy(dtype="uint64") for name in ("old_spte", "new_spte"))

    def kinds(entry: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which entries point to a table, and which map memory."""
        present, leaf = entry >> MMU_PRESENT & 1 == 1, (level == 1) | (entry >> HUGE & 1 == 1)
        return present & ~leaf, present & leaf

    (was_table, was_leaf), (is_table, is_leaf) = kinds(old), kinds(new)
    rows = {}
    for one in range(1, int(level.max())):
        above, here = level == one + 1, level == one
        linked = above & is_table & ~was_table
        rows[one] = {
            "linked": int(linked.sum()),
            "unlinked": int((above & was_table & ~is_table).sum()),
            "pages": len(set((new[linked] & FRAME).tolist())),
            "leaves": int((here & is_leaf & ~was_leaf).sum()),
            "zapped": int((here & was_leaf & ~is_leaf).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("level")


def recorded_guest(trace: Trace) -> Scenario:
    """Return the recorder's guest as a scenario: its memory, its storm, and the accesses that were recorded.

    Parameters
    ----------
    trace : Trace
        A recording with a CONFIG line and the event of changed entries.

    Returns
    -------
    Scenario
        The data slot, and the pages of code and guest page tables beside it as a region of their own.

    Raises
    ------
    InputError
        The recording lacks either.
    """
    if trace.statistics is None or trace.statistics.slot is None:
        raise InputError(f"{trace.name}: no data slot told; nearest valid: the run's .txt beside it")
    pages = trace.statistics.slot[2]
    backing = "thp" if trace.config["thp"] == "1" else "anon"
    return Scenario(
        host="milan_2s",
        vcpus=int(trace.config["vcpus"]),
        memory=[
            Region(format_size(pages << 12), backing=backing),
            Region(format_size(trace.replay_bytes - (pages << 12))),
        ],
        fault_path=PATHS[trace.kernel],
        workload=trace.workload(),
        storms=trace.storms(),
        mmu="npt",
        levels=int(linked_tables(trace).index.max()) + 1,
    )


def page_tables(traces: Iterable[Trace]) -> pd.DataFrame:
    """Compare the tables below the root: linked in recordings, predicted by the ledger, built by a replay.

    Parameters
    ----------
    traces : iterable of Trace
        Recordings with a CONFIG line and the event of changed entries.

    Returns
    -------
    DataFrame
        A row a recording (`kernel`, `recording`): `zapped` (leaves) and `unlinked` (tables), then numbers of
        tables: `bound` (the ledger's for all of memory), `predicted` (the ledger's for memory up to the last
        page that faulted; the recorder's guest goes through it in order), `measured`, `simulated`, and the
        ratios of predicted and simulated to `measured`.
    """
    import pandas as pd

    rows = {}
    for trace in traces:
        counts, scenario = linked_tables(trace), recorded_guest(trace)
        measured = int(counts["pages"].sum())
        predicted = _below_root(scenario_ledger(_swept(trace, scenario)))
        simulated = int(simulate(scenario).memory["kvm_tables"]) - 1
        rows[trace.kernel, trace.name.removesuffix(".trace.gz")] = {
            "zapped": int(counts["zapped"].sum()),
            "unlinked": int(counts["unlinked"].sum()),
            "bound": _below_root(scenario_ledger(scenario)),
            "predicted": predicted,
            "measured": measured,
            "simulated": simulated,
            "predicted/measured": predicted / measured,
            "simulated/measured": simulated / measured,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["kernel", "recording"])


def _swept(trace: Trace, scenario: Scenario) -> Scenario:
    """Leave the guest no more memory than it went through before the recording ended."""
    data, other = scenario.memory
    last = max(place for place in trace.replay_gfns().values() if place < data.pages)
    unit = 512 if data.backing == "thp" else 1
    size = min((last // unit + 1) * unit, data.pages) << 12
    return scenario.replace(memory=[data.replace(size=size), other], workload=demand_paging(), storms=[])


def _below_root(ledger: Ledger) -> int:
    """Take the number of tables that an entry points to."""
    return (ledger["stage-2 tables"] + ledger["stage-2 upper tables"]) // TABLE - 1


def counted_tables(locked: pd.DataFrame, size: str) -> pd.DataFrame:
    """Compare tables with the atomic instructions that only making one executes, in the window of huge pages.

    Parameters
    ----------
    locked : DataFrame
        From `kvmpfn.validation.read_locked`.
    size : str
        Transparent huge pages that the guest wrote; a few pages of its code lie in another gigabyte.

    Returns
    -------
    DataFrame
        A row a structure: `predicted`, `measured` (instructions at one site in the window, of which the count
        prints a fault's share to a thousandth), and their ratio. A kernel that makes a root without an atomic
        has no row for it.

    Notes
    -----
    ``tdp_mmu_link_sp`` executes one try_cmpxchg64 for each table it links (the recorder's host has 5 levels);
    ``kvm_tdp_mmu_alloc_root``, which a vCPU without a root calls, has one in 6.16 (assumed to be one a call:
    its source was not read);
    ``do_huge_pmd_anonymous_page`` calls mm_inc_nr_ptes once for each table that it deposits, and in 6.1 adds
    to a counter of pages beside it.
    """
    import pandas as pd

    huge = locked[locked["access"] == "huge"].set_index("function")
    guest = Scenario(memory=[Region(size, backing="thp"), Region("4KiB")], levels=5)
    ledger = scenario_ledger(guest)
    expected = {
        "tables below the root": ("tdp_mmu_link_sp", _below_root(ledger)),
        "calls for a root": ("kvm_tdp_mmu_alloc_root", 1),
        "host deposited tables": ("do_huge_pmd_anonymous_page", ledger["host deposited tables"] // TABLE),
    }
    rows = {}
    for structure, (function, predicted) in expected.items():
        if function not in huge.index:
            continue
        measured = float((huge["each"] * huge["faults"] / huge["sites"])[function])
        rows[structure] = {
            "predicted": predicted,
            "measured": measured,
            "predicted/measured": predicted / measured,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("structure")
