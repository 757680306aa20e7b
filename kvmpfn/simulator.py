"""simulate: a Scenario becomes the engine's memory, the engine runs, its counts become a Run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvmpfn.core import layout as L
from kvmpfn.core.names import (
    CLIENT_FIELDS,
    COUNTERS,
    DISTANCES,
    ERRORS,
    PARTS,
    RMW_CONTEXTS,
    RMW_LINES,
    TIMELINE,
    VCPU_FIELDS,
)
from kvmpfn.hosts import COSTS
from kvmpfn.results import Run
from kvmpfn.scenario import KSM_SHARERS
from kvmpfn.units import InputError
from kvmpfn.workloads import ENDLESS, phases_of

if TYPE_CHECKING:
    from kvmpfn.scenario import Region, Scenario
    from kvmpfn.storms import Storm

__all__ = ["InvariantError", "simulate"]

EVENTS_A_CHUNK = 1 << 18
TIMELINE_START_SHIFT = 20
REGION_ALIGN = 1 << 18
"""Regions start at multiples of 1 GiB of guest memory, as RAM slots do."""

BACKINGS = (
    "anon", "ksm", "zero_page", "thp", "hugetlb_2m", "hugetlb_1g", "page_cache", "dax", "pfnmap",
    "pfnmap_struct_page", "tail_pages",
)  # fmt: skip
ANONYMOUS = ("anon", "ksm", "zero_page", "thp")
ALWAYS_THERE = ("ksm", "zero_page", "pfnmap", "pfnmap_struct_page", "tail_pages")
ARRIVALS = ("poisson", "periodic", "closed_loop", "bursts")
ACTIONS = (
    "madvise", "numa_balancing", "migration", "fork", "age", "ksm", "khugepaged", "mprotect", "reclaim",
    "clear_dirty_log",
)  # fmt: skip
LRU = ("off", "classic", "mglru")
MECHANISMS = (
    (L.M_REFERENCE, "reference", ("held", "early_put", "locked_put", "none")),
    (L.M_GUARDED, "guarded", (False, True)),
    (L.M_SEQ_CHECKED, "seq_checked", (False, True)),
    (L.M_PRECHECKS, "prechecks", (False, True)),
    (L.M_NONREFCOUNTED_MAP, "nonrefcounted", ("refuse", "map")),
    (L.M_SPTE_BIT, "spte_bit", ("none", "4k", "all")),
    (L.M_DIRTY_MARKING, "dirty_marking", ("at_zap", "at_map", "none")),
    (
        L.M_ACCESSED_MARKING,
        "accessed_marking",
        ("after_unlock", "before_unlock", "locked_release", "none"),
    ),
    (L.M_ACCESSED_ON_RETRY, "accessed_on_retry", (False, True)),
    (L.M_ZAP_MARKS_PAGE, "zap_marks_page", (False, True)),
    (L.M_PFNMAP_REFERENCE, "pfnmap_reference", (False, True)),
    (L.M_EXCLUSIVE, "mmu_lock", ("read", "exclusive")),
    (L.M_EARLY_SPURIOUS, "early_spurious", (False, True)),
    (L.M_SPLIT_IN_PLACE, "huge_split", ("zap", "in_place")),
    (L.M_AGING_LOCK, "aging_lock", ("none", "write")),
    (L.M_AGING_FLUSH, "aging_flush", (False, True)),
    (L.M_TABLE_LIST_LOCK, "table_list_lock", (False, True)),
    (L.M_RANGE_LIST, "invalidate_ranges", ("collapsed", "list")),
)
"""Where the engine keeps each mechanism, its name in FaultPath, and its values by number."""

COUNTS = ("cas_factor", "smt_percent", "zone_lock_batch", "lru_batch")
MEMORY = ("kvm_tables", "kvm_table_bytes", "kvm_header_bytes", "host_table_bytes", "simulator_bytes")
HEADER_BYTES = 184  # struct kvm_mmu_page (kernel sources of 6.1 and 6.12, 64-bit)


class InvariantError(RuntimeError):
    """The engine broke an invariant of the model: a defect here, never the user's mistake."""


def simulate(
    scenario: Scenario,
    *,
    until: int | str | None = None,
    progress: bool | None = None,
    log: int = 0,
    check: bool = False,
    timeline_bins: int = 256,
) -> Run:
    """Run a scenario to its end.

    Parameters
    ----------
    scenario : Scenario
        What to simulate.
    until : int or str, optional
        Faults taken (``3_000_000``) or a virtual time (``"10ms"``) at which guests stop.
    progress : bool, optional
        Show a bar on stderr; None shows it on a terminal only.
    log : int
        Rows of the step log to keep (`Run.events`); 0 keeps none.
    check : bool
        Look at the invariants after every event; several times slower.
    timeline_bins : int
        Bins of the timeline, an even number of at least 2; their width follows from the run's length.

    Returns
    -------
    Run
        Counters, parts, latencies, timeline.

    Raises
    ------
    InputError
        The scenario cannot be simulated; one line says why.
    InvariantError
        An invariant of the model did not hold.
    """
    if until is not None:
        scenario = scenario.replace(until=until)
    if timeline_bins < 2 or timeline_bins % 2:
        raise InputError(f"timeline_bins: {timeline_bins} is not an even number of at least 2; nearest is 2")
    world = _World(scenario, log, check, timeline_bins)
    world.run(progress)
    return world.result()


def _bar(scenario: Scenario, progress: bool | None) -> Any:
    """Make a progress bar over faults taken; silent when nobody looks."""
    from tqdm import tqdm

    disable = None if progress is None else not progress
    return tqdm(total=scenario.until_faults, unit=" faults", unit_scale=True, disable=disable, leave=False)


def _place(storm: Storm) -> int:
    """Where a storm's span lies, as the engine has it."""
    if storm.offset_pages is not None:
        return storm.offset_pages
    return L.PLACE_SCAN if storm.place == "scan" else L.PLACE_RANDOM


class _World:
    """The engine's memory for one scenario, and where its parts begin."""

    def __init__(
        self, scenario: Scenario, log: int, check: bool, bins: int, slowest: int = 0, waits: int = 0
    ) -> None:
        self.scenario = scenario
        self.bins = bins
        self.slowest = slowest
        self.waits = waits
        self.at = L.HEADER_WORDS
        self.writes: list[tuple[int, Any]] = []
        self.client_at: list[int] = []
        self.vcpu_at: list[int] = []
        self.vm_at: list[int] = []
        client_cpus, vcpu_cpus = scenario.threads()
        actors = len(client_cpus) + len(vcpu_cpus)
        topology = scenario.machine.topology()
        if len(topology) > L.OWNER_MASK or actors > L.OWNER_MASK:
            raise InputError(f"host: {len(topology)} threads; the model holds at most {L.OWNER_MASK}")
        self._header(log, check, actors, topology)
        self._vms(client_cpus, vcpu_cpus)
        sockets = max(socket for _, _, socket in topology) + 1
        self._set(L.SOCKETS, self._take(3 * sockets))
        self._set(L.BUMP, self.at)
        self.words: NDArray[np.int64] = np.zeros(self.at + self._table_words(), dtype=np.int64)
        self._set(L.LIMIT, len(self.words))
        for where, value in self.writes:
            if isinstance(value, int):
                self.words[where] = value
            else:
                self.words[where : where + len(value)] = value

    def run(self, progress: bool | None) -> None:
        """Run to the end."""
        from kvmpfn.core.engine import prepare, run_until

        w = self.words
        with np.errstate(over="ignore"), _bar(self.scenario, progress) as bar:
            prepare(w)
            left, seen = 1, 0
            while left and not w[L.ERROR]:
                left = run_until(w, EVENTS_A_CHUNK)
                bar.update(int(w[L.TAKEN]) - seen)
                seen = int(w[L.TAKEN])
        if w[L.ERROR]:
            at = f"at {w[L.NOW]} ps, event {w[L.EVENTS]}"
            raise InvariantError(f"{ERRORS[w[L.ERROR]]} ({w[L.ERROR_AT]}) {at}")

    def _set(self, where: int, value: Any) -> None:
        self.writes.append((where, value if isinstance(value, np.ndarray) else int(value)))

    def _take(self, words: int) -> int:
        start = self.at
        self.at += words
        return start

    def _table(self, values: NDArray[np.int64]) -> int:
        start = self._take(values.size)
        self._set(start, values.reshape(-1))
        return start

    def _array(self, header: int, values: Any) -> int:
        start = self._table(np.asarray(values, dtype=np.int64))
        self._set(header, start)
        return start

    def _header(self, log: int, check: bool, actors: int, topology: list[tuple[int, int, int]]) -> None:
        s, path = self.scenario, self.scenario.mechanisms
        for place, name in enumerate(COSTS, start=L.C_OWN_ADD):
            if name == "smt_percent":
                continue
            self._set(place, s.machine.factor(name) if name in COUNTS else s.machine.cost_ps(name))
        for place, name, values in MECHANISMS:
            self._set(place, values.index(getattr(path, name)))
        self._set(L.M_PUT_BATCH, path.put_batch)
        yields = {"never": False, "preemption": s.preempt != "none", "full": s.preempt == "full"}
        for place, value in (
            (L.PREEMPT_YIELDS, yields[path.zap_yields]),
            (L.LEVELS, s.levels),
            (L.DIRTY_LOGGING, s.dirty_logging),
            (L.PML, s.pml_on),
            (L.EAGER_PAGE_SPLIT, s.eager_page_split),
            (L.INITIALLY_ALL_SET, s.initially_all_set),
            (L.NX_HUGE_PAGES, s.nx_huge_pages_on),
            (L.LRU, LRU.index(s.lru)),
            (L.SEED_LOW, s.seed & 0xFFFFFFFF),
            (L.SEED_HIGH, s.seed >> 32),
            (L.CHECK, check),
            (L.ACTORS, actors),
            (L.CLIENT_COUNT, len(s.clients)),
            (L.VCPU_COUNT, s.vms * s.vcpus),
            (L.VM_COUNT, s.vms),
            (L.RUNNING, s.vms * s.vcpus),
            (L.UNTIL_FAULTS, 1 << 62 if s.until_faults is None else s.until_faults),
            (L.UNTIL_PS, L.TIME_LIMIT if s.until_ps is None else min(s.until_ps, L.TIME_LIMIT)),
            (L.LOG_CAP, log),
            (L.SLOWEST_CAP, self.slowest),
            (L.WAITS_CAP, self.waits),
            (L.TIMELINE_BINS, self.bins),
            (L.TIMELINE_SHIFT, TIMELINE_START_SHIFT),
        ):
            self._set(place, value)
        self._array(
            L.CPU_PLACE,
            [((socket << L.PLACE_BITS | llc) << L.PLACE_BITS) | core for core, llc, socket in topology],
        )
        self.outputs = {
            "counters": (L.COUNTERS, (s.vms, len(COUNTERS))),
            "rmw": (L.RMW, (s.vms, 2, len(RMW_LINES))),
            "transfers": (L.TRANSFERS, (s.vms, len(DISTANCES))),
            "parts": (L.PARTS, (s.vms, len(PARTS))),
            "hist": (L.HIST, (L.HIST_BUCKETS,)),
            "tries": (L.TRIES, (L.TRIES_BUCKETS,)),
            "timeline": (L.TIMELINE, (self.bins, len(TIMELINE))),
            "log": (L.LOG, (log, 5)),
            "slowest": (L.SLOWEST, (self.slowest, 4)),
            "waits": (L.WAITS, (self.waits, 5)),
        }
        self.output_at = {name: self._take(int(np.prod(shape))) for name, (_, shape) in self.outputs.items()}
        for name, (header, _) in self.outputs.items():
            self._set(header, self.output_at[name])
        self._set(L.QUEUE_LEAVES, actors)
        self._array(L.QUEUE, [L.NEVER] * (2 * actors))
        zero = self._take(L.FOLIO_WORDS)
        self._set(L.ZERO_FOLIO, zero)
        self._set(zero + L.FOLIO_STATE, L.F_RESERVED)  # PG_reserved: never marked

    def _vms(self, client_cpus: list[int], vcpu_cpus: list[int]) -> None:
        s = self.scenario
        topology = s.machine.topology()
        used = set(client_cpus) | set(vcpu_cpus)
        cores = [topology[cpu][0] for cpu in sorted(used)]
        busy = {core for core in cores if cores.count(core) > 1}
        percent = s.machine.factor("smt_percent")
        files: dict[int, int] = {}
        for i in range(s.vms):
            vm = self._take(L.VM_WORDS)
            self.vm_at.append(vm)
            self._set(vm + L.VM_ID, i)
            self._set(vm + L.ALIVE, 1)
            self._set(vm + L.VM_RUNNING, s.vcpus)
            self._set(vm + L.VCPU_TOTAL, s.vcpus)
            self._set(vm + L.PAGES, s.pages)
            self._set(vm + L.ROOT, self._take(L.TABLE_WORDS))
            self._set(vm + L.REGIONS, self._take(L.REGION_WORDS * len(s.memory)))
            self._set(vm + L.REGION_COUNT, len(s.memory))
            at, gfn, first = self.writes[-2][1], 0, 0
            for j, region in enumerate(s.memory):
                self._region(at + j * L.REGION_WORDS, region, gfn, first, files, j)
                first += region.pages
                gfn += -(-region.pages // REGION_ALIGN) * REGION_ALIGN

        def actor(words: int, number: int, cpu: int, vm: int) -> int:
            a = self._take(words)
            core, _, socket = topology[cpu]
            for place, value in (
                (L.ID, number),
                (L.CPU, cpu),
                (L.SOCKET, socket),
                (L.VM, self.vm_at[vm]),
                (L.SMT, percent if core in busy else 100),
                (L.COUNTERS_AT, self.output_at["counters"] + vm * len(COUNTERS)),
                (L.RMW_AT, self.output_at["rmw"] + vm * len(RMW_CONTEXTS) * len(RMW_LINES)),
                (L.TRANSFERS_AT, self.output_at["transfers"] + vm * len(DISTANCES)),
            ):
                self._set(a + place, value)
            return a

        for number, ((storm, vm), cpu) in enumerate(zip(s.clients, client_cpus, strict=True)):
            a = actor(L.CLIENT_WORDS, number, cpu, vm)
            self.client_at.append(a)
            self._check_action(storm)
            for place, value in (
                (L.PART_AS, PARTS.index("wasted")),
                (L.CONTEXT, L.CTX_ZAP),
                (L.S_ARRIVAL, ARRIVALS.index(storm.arrival)),
                (L.S_GAP, storm.gap_ps),
                (L.S_ON, storm.on_ps),
                (L.S_OFF, storm.off_ps),
                (L.S_SPAN, storm.span_pages),
                (L.S_OFFSET, _place(storm)),
                (L.S_HOLD, storm.hold_ps),
                (L.S_ACTION, ACTIONS.index(storm.action)),
                (L.S_LIMIT, -1 if storm.limit is None else storm.limit),
            ):
                self._set(a + place, value)
        for i, cpu in enumerate(vcpu_cpus):
            a = actor(L.VCPU_WORDS, len(client_cpus) + i, cpu, i // s.vcpus)
            self.vcpu_at.append(a)
            if i % s.vcpus == 0:
                self._set(self.vm_at[i // s.vcpus] + L.VCPUS, a)
            self._set(a + L.IS_VCPU, 1)
            self._set(a + L.INDEX, i)
            self._set(a + L.PART_AS, -1)
            self._set(a + L.V_SEEN, -1)
        self._workload()
        for a in self.vcpu_at:
            if s.dirty_logging and s.pml_on:
                self._set(a + L.V_PML, self._take(L.PML_ENTRIES))
            if s.mechanisms.put_batch > 1:
                self._set(a + L.V_BATCH, self._take(s.mechanisms.put_batch * L.BATCH_WORDS))
        self._array(L.ACTOR_PTRS, self.client_at + self.vcpu_at)
        self._array(L.VM_PTRS, self.vm_at)

    def _check_action(self, storm: Storm) -> None:
        """Refuse what an action cannot do to this memory."""
        backings = {region.backing for region in self.scenario.memory}
        shared = any(region.is_shared_file for region in self.scenario.memory)
        moves = {"migration": "moves", "reclaim": "swaps out", "ksm": "merges"}
        if storm.action in moves and backings - set(ANONYMOUS):
            what = f"{storm.action} {moves[storm.action]} {', '.join(ANONYMOUS)} memory only"
            raise InputError(f"storms: {what}; nearest is 'madvise'")
        if storm.action == "khugepaged" and backings != {"thp"}:
            raise InputError("storms: khugepaged collapses thp memory only; nearest is 'madvise'")
        if storm.action == "fork" and (shared or backings - {"anon", "ksm", "zero_page", "page_cache"}):
            what = "fork write-protects small anonymous and private page_cache memory only"
            raise InputError(f"storms: {what}; nearest is 'madvise'")
        if storm.action == "clear_dirty_log" and not self.scenario.dirty_logging:
            raise InputError(
                "storms: clear_dirty_log reads no log without dirty_logging; nearest is dirty_logging=True"
            )

    def _region(
        self, r: int, region: Region, gfn: int, first: int, files: dict[int, int], index: int
    ) -> None:
        s = self.scenario
        level = region.host_level
        file = region.backing in ("page_cache", "dax")
        order = region.folio_order if file else 9 * (level - 1)
        slots = -(-region.pages // (1 << 9 * max(1, level - 1)))
        mapped = 0
        if region.mapped:
            split = s.dirty_logging and s.eager_page_split and not s.initially_all_set
            mapped = 1 if split else level
        fields = {
            L.R_GFN: gfn,
            L.R_FIRST: first,
            L.R_PAGES: region.pages,
            L.R_BACKING: BACKINGS.index(region.backing),
            L.R_MAX_LEVEL: 3 if region.congruent else 1,
            L.R_HOST_LEVEL: level,
            L.R_HOST: self._take(slots),
            L.R_HOST_LINES: self._take(slots // 8 + 1),
            L.R_PTLS: self._take(L.PTL_WORDS * (region.pages // REGION_ALIGN + 1)),
            L.R_ORDER: order,
            L.R_PRIVATE: region.mapping == "private" and region.backing != "dax",
            L.R_FAULT_AROUND: 1 if region.backing == "dax" else region.fault_around_pages,
            L.R_WRITABLE: region.writable,
            L.R_POPULATED: region.populated or region.backing in ALWAYS_THERE,
            L.R_MAPPED: mapped,
        }
        if s.dirty_logging:
            fields[L.R_BITMAP] = self._take((region.pages // 512 + 1) * L.BITMAP_WORDS)
        if region.backing == "thp":
            fields[L.R_SPARE] = self._take(slots)
        folios = -(-region.pages // (1 << (0 if file else order)))
        if region.backing not in ("pfnmap", "tail_pages", "dax"):
            fields[L.R_FOLIOS] = self._take(L.FOLIO_WORDS * folios)
        if region.backing.startswith("hugetlb"):
            for i in range(folios):
                self._set(fields[L.R_FOLIOS] + i * L.FOLIO_WORDS + L.FOLIO_STATE, L.F_TOGGLES)
        if file:
            if index not in files or not region.shared:
                files[index] = self._folios(-(-region.pages // (1 << order)), region.backing == "dax")
            fields[L.R_FILE_FOLIOS] = files[index]
        if region.backing == "ksm" or any(storm.action == "ksm" for storm in s.storms):
            sharers = KSM_SHARERS // s.vms if region.shared else KSM_SHARERS
            fields[L.R_KSM_SHIFT] = max(1, sharers).bit_length() - 1
            if index not in files or not region.shared:
                files[index] = self._folios((region.pages >> fields[L.R_KSM_SHIFT]) + 1, False)
            fields[L.R_KSM_FOLIOS] = files[index]
        for place, value in fields.items():
            self._set(r + place, value)

    def _folios(self, count: int, reserved: bool) -> int:
        """Folios of a file or of KSM; DAX's are PG_reserved."""
        start = self._take(L.FOLIO_WORDS * count)
        if reserved:
            states = np.zeros(L.FOLIO_WORDS * count, dtype=np.int64)
            states[L.FOLIO_STATE :: L.FOLIO_WORDS] = L.F_RESERVED
            self._set(start, states)
        return start

    def _workload(self) -> None:
        """Write the phases of the workload down, for each vCPU a ring of records of its own."""
        s = self.scenario
        phases, repeat = phases_of(s.workload)
        tables = [[self._table(table) for table in phase.tables(s.pages, s.vcpus)] for phase in phases]
        for i, a in enumerate(self.vcpu_at):
            index = i % s.vcpus
            ring = [self._take(L.PHASE_WORDS) for _ in phases]
            self._set(a + L.V_PHASE, ring[0])
            self._set(a + L.V_PHASES_LEFT, len(ring) * repeat)
            for phase, at, after, table in zip(phases, ring, ring[1:] + ring[:1], tables, strict=True):
                words = phase.words(s.pages, s.vcpus, index)
                words[L.PH_NEXT] = after
                words[L.PH_ENDLESS] = phase.endless and s.until_faults is not None
                if table:  # one for all vCPUs, or one each
                    words[L.PH_TABLE] = table[index % len(table)]
                for place, value in words.items():
                    self._set(at + place, min(value, ENDLESS))

    def _table_words(self) -> int:
        """Words that all page tables, KVM's and the host's, can need; untouched ones cost nothing."""
        words = 0
        for region in self.scenario.memory:
            if region.host_level == 1:
                words += (region.pages // 512 + 1) * L.TABLE_WORDS
            elif region.backing == "thp" and self.scenario.storms:
                words += (region.pages // 512) * L.SPLIT_WORDS
            tables = region.pages // 512 + region.pages // (1 << 18) + region.pages // (1 << 27) + 6
            words += tables * L.TABLE_WORDS
        return self.scenario.vms * words + L.TABLE_WORDS

    def result(self) -> Run:
        """Take the counts out of the memory."""
        w, s = self.words, self.scenario
        arrays: dict[str, NDArray[np.int64]] = {}
        for name, (header, shape) in self.outputs.items():
            start = int(w[header])
            arrays[name] = w[start : start + int(np.prod(shape))].reshape(shape).copy()
        arrays["log"] = arrays["log"][: min(len(arrays["log"]), int(w[L.LOG_SEEN]))]
        columns = {
            "start": L.T_START, "end": L.T_END, "guest": L.V_GUEST, "faults": L.V_FAULTS,
            "kicked": L.V_KICKED, "accesses": L.V_ACCESSES, "taken": L.V_TAKEN, "retries": L.V_RETRIES,
            "tries_max": L.V_TRIES_MAX, "latency_max": L.V_LATENCY_MAX,
        }  # fmt: skip
        places = [columns[field] for field in VCPU_FIELDS]
        arrays["vcpus"] = np.array([[w[a + p] for p in places] for a in self.vcpu_at], dtype=np.int64)
        rows = [
            [s.clients[i][1], *(w[a + p] for p in (L.S_ASKED, L.S_DONE, L.S_LATE, L.S_LATE_MAX, L.S_BUSY)),
             w[a + L.S_SKIPPED]]
            for i, a in enumerate(self.client_at)
        ]  # fmt: skip
        arrays["clients"] = np.array(rows, dtype=np.int64).reshape(-1, len(CLIENT_FIELDS))
        built, freed = (
            arrays["counters"][:, COUNTERS.index(f"tables_{what}")] for what in ("built", "freed")
        )
        tables = int((built - freed).sum()) + s.vms
        memory = (tables, tables * 4096, tables * HEADER_BYTES, int(w[L.HOST_TABLES]) * 4096,
                  int(w[L.BUMP]) * 8)  # fmt: skip
        arrays["memory"] = np.array(memory, dtype=np.int64)
        self._check_end(arrays)
        died = [i for i, vm in enumerate(self.vm_at) if not w[vm + L.ALIVE]]
        return Run(
            scenario=s,
            arrays=arrays,
            meta={
                "end_ps": int(max((int(w[a + L.T_END]) for a in self.vcpu_at), default=0)),
                "timeline_bin_ps": 1 << int(w[L.TIMELINE_SHIFT]),
                "log_seen": int(w[L.LOG_SEEN]) if len(arrays["log"]) else 0,
                "events": int(w[L.EVENTS]),
                "assumed": list(s.machine.assumed),
                "died": died,
                "memory_names": list(MEMORY),
            },
        )

    def _check_end(self, arrays: dict[str, NDArray[np.int64]]) -> None:
        """Hold the identities that every run must meet, exactly."""
        c = {name: arrays["counters"][:, i] for i, name in enumerate(COUNTERS)}
        retry = sum(c[name] for name in COUNTERS if name.startswith("retry."))
        outcomes = c["pf_fixed"] + c["pf_spurious"] + c["pf_emulate"] + c["pf_error"] + retry
        v = {name: arrays["vcpus"][:, i] for i, name in enumerate(VCPU_FIELDS)}
        for holds, what in (
            ((c["pf_taken"] == outcomes).all(), "pf_taken is not the sum of its outcomes"),
            ((c["gets"] == c["puts"]).all(), "a reference was leaked"),
            ((v["end"] - v["start"] == v["guest"] + v["faults"] + v["kicked"]).all(), "a vCPU lost time"),
            (arrays["parts"].sum() == v["faults"].sum(), "the parts are not the faults' time"),
            ((c["remote_tlb_flush"] <= c["remote_tlb_flush_requests"]).all(), "more flushes than requests"),
            (all(self.words[a + L.FINISHED] for a in self.vcpu_at + self.client_at), "an actor is stuck"),
        ):
            if not holds:
                raise InvariantError(what)
