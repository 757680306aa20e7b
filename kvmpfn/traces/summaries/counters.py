"""What a summary holds: tables of values with their units, and what became of each line of the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmpfn.units import PAGE_SHIFT, TIMES, InputError, round_half_even

if TYPE_CHECKING:
    import pandas as pd


NUMBER = r"\d{1,20}"
"""Digits of a counter; the largest of 64 bits has 20."""

DECIMAL = r"\d{1,15}\.\d{1,12}"

READING = "total"
"""The measure of a counter that was read as it stood; its growth is the last reading less the first."""

GROWTH = ("samples", "count", "delta")
"""The measures of what was counted during the table's own time."""


class Value(NamedTuple):
    """One number of a summary.

    Attributes
    ----------
    scope : str
        Of whom: ``all``, ``vm``, ``vcpu3``, or as the file names it.
    name : str
        The counter, event or step, as the file names it.
    measure : str
        What of it: `READING`, one of `GROWTH`, ``rate``, ``mean``, ``time`` and so on.
    value : int or float
        Times are integer picoseconds, counts are integers.
    unit : str
        ``1``, ``ps``, ``B``, ``%``, ``1/s``, ``pages``, ``pages/s`` or ``cycles``.
    """

    scope: str
    name: str
    measure: str
    value: int | float
    unit: str


@dataclass
class Table:
    """One table, dump or run of a summary.

    Attributes
    ----------
    source : str
        The tool: a key of `kvmpfn.traces.summaries.tables.READERS`, or ``binary stats``.
    label : str
        When or of what: ``before``, a time of day, the name of a test; empty if nothing tells.
    facts : dict of str to str
        What the file says beside the numbers: options, the guest's mode, of whom a table is.
    values : list of Value
        The numbers, in the file's order.
    totals : dict of str to int
        The table's own sums, by measure; those of times in picoseconds.
    read : set of (str, str)
        Scope and name of each value: where one comes again, another table has begun.
    """

    source: str
    label: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    read: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def add(self, scope: str, name: str, measure: str, value: int | float, unit: str = "1") -> None:
        """Append a value."""
        self.values.append(Value(scope, name, measure, value, unit))
        self.read.add((scope, name))


@dataclass(frozen=True)
class Counters:
    """A summary of faults and exits, as a tool printed it.

    Made by `kvmpfn.traces.summaries.tables.read_counters`.

    Attributes
    ----------
    name : str
        Name of the file.
    tables : tuple of Table
        What it holds, in its order.
    lines : int
        Lines of the file; of a binary statistics file, descriptors.
    used : int
        Lines that a table or a fact was read from.
    skipped : dict of str to int
        The other lines, by reason.
    lost : int
        Events that the tool says it lost.
    kernel : str
        The kernel's version, where a line tells it; else empty.
    warnings : tuple of str
        What does not add up.
    """

    name: str
    tables: tuple[Table, ...]
    lines: int
    used: int
    skipped: dict[str, int]
    lost: int
    kernel: str
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        numbers = sum(len(table.values) for table in self.tables)
        return (
            f"Counters {self.name!r}: {self.source}, {len(self.tables):,d} tables of {numbers:,d} values, "
            f"{self.used:,d} of {self.lines:,d} lines"
        )

    @property
    def source(self) -> str:
        """The tools whose output this is."""
        return ", ".join(dict.fromkeys(table.source for table in self.tables))

    @property
    def config(self) -> dict[str, str]:
        """What was run, as far as the file tells: the facts of all tables, of which the first counts."""
        facts: dict[str, str] = {}
        for table in self.tables:
            facts = table.facts | facts
        return facts

    @property
    def result(self) -> dict[str, int]:
        """What the program that ran measured itself (the RESULT line); times in picoseconds."""
        values = (value for table in self.tables for value in table.values)
        return {one.name: int(one.value) for one in values if one.measure == "result" and one.scope == "vm"}

    @property
    def slot(self) -> tuple[int, int, int] | None:
        """First gfn, first host virtual page and number of pages of the data slot, if a CONFIG line tells."""
        config = self.config
        try:
            hva, gpa = (int(config[key], 16) >> PAGE_SHIFT for key in ("hva", "gpa"))
            return gpa, hva, int(config["mib"]) << 8
        except (KeyError, ValueError):
            return None

    @property
    def machine(self) -> str:
        """What the names of the exits are of: ``vmx``, ``svm``, ``arm64`` or ``unknown``."""
        names = {value.name for table in self.tables for value in table.values}
        names |= {name[name.find("(") + 1 : -1] for name in names if name.endswith(")")}
        for machine, telling in EXITS.items():
            if names & telling:
                return machine
        return "unknown"

    @property
    def frame(self) -> pd.DataFrame:
        """All values, a row each.

        Columns: `table` (its number), `source`, `label`, `scope`, `name`, `measure`, `value`, `unit`. `value`
        is of integers if all are; else of float64, and `tables` holds the exact ones.
        """
        import pandas as pd

        rows = [
            (number, table.source, table.label, *value)
            for number, table in enumerate(self.tables)
            for value in table.values
        ]
        names = ["table", "source", "label", *Value._fields]
        frame = pd.DataFrame(rows, columns=names)
        frame["value"] = _numbers([row[-2] for row in rows])
        return frame

    def counters(self, table: int | None = None) -> pd.Series[int]:
        """Return how much each counter grew, summed over vCPUs and VMs.

        Counters that were read several times grew by the last reading less the first; a single reading is
        the growth since the VM was created. A counter that stands both for a VM and for its vCPUs, or for all
        VMs and for each, is the same one: only the finer counts.

        Parameters
        ----------
        table : int, optional
            One of several tables of a tool that says itself what it counted; not needed for logs, of which
            all lines add up.

        Raises
        ------
        InputError
            Nothing was counted, or there are several tables and none was named.
        """
        tables = self.tables
        if table is not None:
            if not 0 <= table < len(tables):
                raise InputError(f"{self.name}: no table {table}; nearest valid: 0 to {len(tables) - 1}")
            tables = tables[table : table + 1]
        elif sum(any(one.measure in GROWTH[:2] for one in each.values) for each in tables) > 1:
            raise InputError(f"{self.name}: {len(tables)} tables; nearest valid: counters(table=0)")
        grown = _grown(tables)
        if not grown:
            raise InputError(f"{self.name}: nothing was counted in it; nearest valid: its frame")
        finest: dict[str, int] = {}
        for _, name in grown:
            finest[name] = max(finest.get(name, 0), *(_depth(scope) for scope, one in grown if one == name))
        sums: dict[str, int] = {}
        for (scope, name), value in grown.items():
            if _depth(scope) == finest[name]:
                sums[name] = sums.get(name, 0) + value
        import pandas as pd

        return pd.Series(_numbers(list(sums.values())).to_numpy(), index=list(sums), name="counters")


STATISTICS = frozenset(
    """
    blocking directed_yield_attempted directed_yield_successful efer_reload exits fpu_reload guest_mode
    halt_attempted_poll halt_exits halt_poll_fail_hist halt_poll_fail_ns halt_poll_invalid
    halt_poll_success_hist halt_poll_success_ns halt_successful_poll halt_wait_hist halt_wait_ns halt_wakeup
    host_state_reload hvc_exit_stat hypercalls insn_emulation insn_emulation_fail invlpg io_exits irq_exits
    irq_injections irq_window_exits l1d_flush largepages lpages max_mmu_page_hash_collisions
    max_mmu_rmap_size mmio_exit_kernel mmio_exit_user mmio_exits mmu_cache_miss mmu_flooded mmu_pde_zapped
    mmu_pte_updated mmu_pte_write mmu_recycled mmu_shadow_zapped mmu_unsync nested_run nmi_injections
    nmi_window_exits notify_window_exits nx_largepages_splitted nx_lpage_splits pages_1g pages_2m pages_4k
    pf_emulate pf_fast pf_fixed pf_guest pf_mmio_spte_created pf_spurious pf_taken preemption_other
    preemption_reported remote_tlb_flush remote_tlb_flush_requests req_event request_irq_exits signal_exits
    tlb_flush wfe_exit_stat wfi_exit_stat
    """.split()
)
"""Names of KVM's statistics: debugfs of x86 in 6.18, arm64's of arch/arm64/kvm/guest.c, older ones of x86."""

EXITS = {
    "vmx": {"EPT_VIOLATION", "EPT_MISCONFIG", "EXTERNAL_INTERRUPT", "EXCEPTION_NMI", "PENDING_INTERRUPT"},
    "svm": {"npf", "NPF", "EXIT_NPF", "vintr", "VINTR", "EXCP_BASE"},
    "arm64": {"DABT_LOW", "IABT_LOW", "HVC64", "WFx", "SYS64", "DABT", "IABT"},
}
"""Names of exits that one machine has only (tools/perf/arch/*/util/kvm-stat.c, tools/kvm/kvm_stat)."""


def picoseconds(number: str, unit: str) -> int:
    """Turn a printed time into picoseconds, exactly."""
    return round_half_even(Decimal(number) * TIMES[unit])


def _grown(tables: Iterable[Table]) -> dict[tuple[str, str], int]:
    """Return the growth of each counter of each scope."""
    readings: dict[tuple[str, str], list[int]] = {}
    grown: dict[tuple[str, str], int] = {}
    for table in tables:
        for scope, name, measure, value, _ in table.values:
            if measure == READING and isinstance(value, int):
                readings.setdefault((scope, name), []).append(value)
            elif measure in GROWTH and isinstance(value, int):
                grown[scope, name] = grown.get((scope, name), 0) + value
    again = any(len(values) > 1 for values in readings.values())
    for key, values in readings.items():
        if len(values) > 1 or not again:
            grown[key] = values[-1] - (values[0] if again else 0)
    return grown


def _depth(scope: str) -> int:
    """Say how fine a scope is: all VMs, one VM, one vCPU."""
    return 0 if scope == "all" else 2 if scope.rpartition("/")[2].startswith("vcpu") else 1


def _numbers(values: list[int | float]) -> pd.Series[Any]:
    """Make a column of integers where it holds them all."""
    import pandas as pd

    whole = all(isinstance(value, int) for value in values)
    if whole and all(-(1 << 63) <= value < 1 << 63 for value in values):
        return pd.Series(values, dtype="int64")
    if whole and all(0 <= value < 1 << 64 for value in values):
        return pd.Series(values, dtype="uint64")
    return pd.Series(values, dtype="float64")
