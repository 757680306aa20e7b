"""A run's steps as ftrace's events: KVM's tracepoints and the probes of our recordings.

An event stands where the kernel would print it, at the time of the step that does it. Between two events
lies what the model charges between them. What the model does not have (flags, the guest's rip, addresses of
frames and tables) is left out, zero or made up (`kvmpfn.export.encoding`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TextIO

from kvmpfn.core import layout as L
from kvmpfn.core.names import STEPS
from kvmpfn.explain.actors import begins_fault
from kvmpfn.explain.retries import cells, new_retry
from kvmpfn.export.encoding import Encoding
from kvmpfn.export.tracepoints import FIXED, SPURIOUS, TRACEPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpfn.export.steps import Machine
    from kvmpfn.results import Run

__all__ = ["Ftrace", "Sink", "Task", "Text", "header", "memory_map"]

COMM = 15
"""Characters that the kernel keeps of a thread's name."""

STATISTICS = (
    "pf_taken", "pf_fixed", "pf_spurious", "pf_emulate", "pf_fast", "remote_tlb_flush",
    "remote_tlb_flush_requests", "pages_4k", "pages_2m", "pages_1g",
)  # fmt: skip
"""Counters of a run that KVM keeps as statistics, by the same names."""

VMX, SVM = 1, 2
VIOLATION = {True: 48, False: 0x400}
INTERRUPT = {True: 1, False: 0x60}
PML_FULL = {True: 62, False: 62}
"""Exit reasons, by whether the machine is Intel's."""

IN_QUEUE = (L.PC_READ_LOCK, L.PC_WRITE_LOCK, L.PC_QUEUE_HEAD)
"""The step of an actor that has asked for mmu_lock and did not get it at once."""


class Task(NamedTuple):
    """A thread: its name, its number, its process's, and the hardware thread that it is pinned to."""

    comm: str
    pid: int
    tgid: int
    cpu: int


class Sink(Protocol):
    """Where events go."""

    def event(self, t: int, task: Task, name: str, values: tuple[int, ...]) -> None:
        """Take an event at `t` ps, with the values of its fields."""


class Text:
    """Events as lines of text, as tracefs prints them with record-tgid and without irq-info.

    Parameters
    ----------
    out : text file
        Where lines go.

    Attributes
    ----------
    events : int
        Lines written so far.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.events = 0
        self.prefixes: dict[Task, str] = {}

    def event(self, t: int, task: Task, name: str, values: tuple[int, ...]) -> None:
        """Print an event."""
        told = TRACEPOINTS[name].line(values)
        self.line(t, task, f"{name}: {told}" if told else f"{name}:")

    def line(self, t: int, task: Task, text: str) -> None:
        """Print a line; picoseconds are cut, not rounded, so that no event gets before another."""
        prefix = self.prefixes.get(task)
        if prefix is None:
            prefix = f"{task.comm:>16}-{task.pid:<7d} ({task.tgid:7d}) [{task.cpu:03d}]"
            self.prefixes[task] = prefix
        self.events += 1
        ns = t // 1000
        self.out.write(f"{prefix} {ns // 10**9:5d}.{ns % 10**9:09d}: {text}\n")

    def mark(self, t: int, process: int, text: str) -> None:
        """Print a mark of a process, as a program writes to trace_marker."""
        self.line(t, Task("kvmpfn", process, process, 0), f"tracing_mark_write: {text}")


class _Fault:
    """What a vCPU's thread is in the middle of."""

    __slots__ = ("code", "entering", "entry", "faulting", "mapping", "seen_gup", "spurious_early")

    def __init__(self) -> None:
        self.entering = True
        """The guest is about to be entered."""
        self.entry = self.code = 0
        self.faulting = False
        """kvm_faultin_pfn has not returned."""
        self.seen_gup = False
        self.mapping = False
        """kvm_tdp_mmu_map has not returned."""
        self.spurious_early = False


class Ftrace:
    """Tells the events of each step; a `kvmpfn.export.steps.Follower`.

    Parameters
    ----------
    machine : Machine
        What is simulated.
    sink : Sink
        Where events go.
    """

    def __init__(self, machine: Machine, sink: Sink) -> None:
        self.machine, self.w, self.sink = machine, machine.words, sink
        self.encoding = Encoding(machine)
        self.tasks: dict[int, Task] = {}
        self.faults: dict[int, _Fault] = {}
        self.flushing: set[int] = set()
        self.old: list[tuple[int, int, int, int]] = []
        self.retries: list[int] = []
        self.counted = 0
        for number, a in enumerate(machine.actors.pointers):
            self.tasks[a] = self._task(a, number)
            if self.w[a + L.IS_VCPU]:
                self.faults[a] = _Fault()
        names = {name: getattr(self, name) for name in dir(self) if name.startswith(("before_", "after_"))}
        self.ahead: list[Callable[[int, int], None] | None] = [names.get(f"before_{one}") for one in STEPS]
        self.behind: list[Callable[[int, int], None] | None] = [names.get(f"after_{one}") for one in STEPS]

    def before(self, t: int, a: int, step: int) -> None:
        """Print what comes first in a step, and note what it is about to change."""
        if handler := self.ahead[step]:
            handler(t, a)

    def after(self, t: int, a: int, step: int) -> None:
        """Print what a step has done."""
        if handler := self.behind[step]:
            handler(t, a)

    def event(self, t: int, a: int, name: str, *values: int) -> None:
        """Tell an event of an actor's thread."""
        self.sink.event(t, self.tasks[a], name, values)

    def _task(self, a: int, number: int) -> Task:
        """Name an actor's thread."""
        w, machine = self.w, self.machine
        if w[a + L.IS_VCPU]:
            name = f"CPU {self._vcpu(a)}/KVM"
        else:
            name = f"storm {number} {machine.actors.actions[number]}"[:COMM]
        return Task(name, machine.thread(a), machine.process(w[w[a + L.VM] + L.VM_ID]), w[a + L.CPU])

    # The guest, and the way in and out of it.

    def before_access(self, t: int, a: int) -> None:
        """kvm_entry comes when the guest goes on; kvm_exit again if a kick or a full log is owed for."""
        fault, w, vcpu = self.faults[a], self.w, self._vcpu(a)
        if fault.entering:
            fault.entering = False
            self.event(t, a, "kvm_entry", vcpu, 0)
        if w[a + L.V_OWED]:
            full = w[a + L.V_PML_COUNT] == L.PML_ENTRIES
            self._exit(t, a, PML_FULL if full else INTERRUPT, 0, 0)
            fault.entering = True

    def after_access(self, t: int, a: int) -> None:
        """A violation, if the access was not granted."""
        w, fault, code = self.w, self.faults[a], self.encoding
        if not begins_fault(w, a):
            return
        at, _ = self.machine.lookup(w[a + L.VM], w[a + L.V_GFN])
        fault.entry = w[at]
        fault.code = code.error_code(w[a + L.V_KIND], fault.entry)
        self._exit(t, a, VIOLATION, fault.code, 0 if code.ept else w[a + L.V_GFN] << 12)

    def _exit(self, t: int, a: int, reason: dict[bool, int], info1: int, info2: int) -> None:
        ept = self.encoding.ept
        self.event(t, a, "kvm_exit", self._vcpu(a), reason[ept], 0, info1, info2, 0, 0, VMX if ept else SVM)

    def _vcpu(self, a: int) -> int:
        """Return a vCPU's number in its VM."""
        return self.w[a + L.INDEX] % self.machine.scenario.vcpus

    # A fault, in the order of direct_page_fault.

    def before_handle(self, t: int, a: int) -> None:
        """Enter the handler."""
        gpa, fault = self.w[a + L.V_GFN] << 12, self.faults[a]
        fault.faulting, fault.seen_gup, fault.mapping = True, False, False
        self.event(t, a, "kvm_page_fault", self._vcpu(a), 0, gpa, fault.code)
        self._count(a)

    def after_handle(self, t: int, a: int) -> None:
        """The check before GUP has failed."""
        if self._retried(a):
            self._faulted_in(t, a, L.RET_RETRY)

    def before_fast_page_fault(self, t: int, a: int) -> None:
        """Note the entry that the fast path looks at."""
        gfn, vm = self.w[a + L.V_GFN], self.w[a + L.VM]
        self._note(*self.machine.lookup(vm, gfn), gfn)
        self._count(a)
        self.counted = self._counter(a, L.K_PF_FAST)

    def after_fast_page_fault(self, t: int, a: int) -> None:
        """The fast path has been tried; a snapshot and the check before GUP follow if it did nothing."""
        w, code, vm = self.w, self.encoding, self.w[a + L.VM]
        at, gfn, level, old = self.old.pop()
        fast = self._counter(a, L.K_PF_FAST) != self.counted
        ret = 0 if not fast else FIXED if w[a + L.V_OUTCOME] == L.RET_FIXED else SPURIOUS
        self.event(
            t, a, "fast_page_fault", self._vcpu(a), w[a + L.V_GFN] << 12, code.pferr(w[a + L.V_KIND], old),
            code.sptep(at, gfn, level), code.spte(vm, gfn, level, old), code.spte(vm, gfn, level, w[at]), ret,
        )  # fmt: skip
        if fast:
            self.faults[a].faulting = False
        elif self._retried(a):
            self._faulted_in(t, a, L.RET_RETRY)

    def before_gup(self, t: int, a: int) -> None:
        """hva_to_pfn is entered once a fault; that a read asks for write permission later is inside it."""
        if not self.faults[a].seen_gup:
            self.faults[a].seen_gup = True
            self.event(t, a, "gup")

    def before_precheck(self, t: int, a: int) -> None:
        """Look at the cells."""
        self._count(a)

    def after_precheck(self, t: int, a: int) -> None:
        """The check after GUP has failed."""
        self.after_handle(t, a)

    def _faulted_in(self, t: int, a: int, outcome: int | None) -> None:
        """kvm_faultin_pfn returns; RET_PF_CONTINUE is 0."""
        self.faults[a].faulting = False
        self.event(t, a, "faultin_ret", 0 if outcome is None else self.encoding.returns[outcome])

    def before_mapped(self, t: int, a: int) -> None:
        """Look at the cells."""
        self._count(a)

    def after_mapped(self, t: int, a: int) -> None:
        """The check under mmu_lock has been made, and the level is known."""
        w = self.w
        cell = self._retried(a)
        stale = cell.startswith("retry.locked.")
        if w[L.M_SEQ_CHECKED]:
            self.event(t, a, "stale_ret", int(stale))
        if stale:
            return
        gfn, level, fault = w[a + L.V_GFN], w[a + L.V_LEVEL], self.faults[a]
        fault.mapping, fault.spurious_early = True, False
        pfn = self.encoding.pfn(w[a + L.VM], gfn, w[a + L.V_GEN])
        self.event(t, a, "kvm_mmu_spte_requested", gfn, pfn, level)

    def before_link(self, t: int, a: int) -> None:
        """Note the entry that a table may take the place of."""
        self._note(self.w[a + L.V_LINK], self.w[a + L.V_LINK_LEVEL], self.w[a + L.V_GFN])

    before_freeze = before_link

    def after_link(self, t: int, a: int) -> None:
        """Tell of the change."""
        self._changed(t, a)

    after_freeze = after_link

    def before_leaf(self, t: int, a: int) -> None:
        """Note the entry that the leaf may take the place of."""
        self._note(self.w[a + L.V_LEAF], self.w[a + L.V_LEVEL], self.w[a + L.V_GFN])

    before_set_leaf = before_leaf

    def after_leaf(self, t: int, a: int) -> None:
        """Tell of the change; a leaf that is let stand before one is made is not printed at all."""
        self.faults[a].spurious_early = bool(self.w[L.M_EARLY_SPURIOUS])
        self._changed(t, a)

    after_set_leaf = after_leaf

    def before_unlink(self, t: int, a: int) -> None:
        """Note eight entries of a table whose place a huge leaf has taken."""
        w, level = self.w, self.w[a + L.V_LEVEL]
        table, first = w[a + L.V_UNLINK], w[a + L.V_UNLINK_NEXT]
        start = w[a + L.V_GFN] >> 9 * (level - 1) << 9 * (level - 1)
        for i in range(first, first + 8):
            self._note(table + i, level - 1, start + (i << 9 * (level - 2)))

    def after_unlink(self, t: int, a: int) -> None:
        """handle_removed_pt: each of them is frozen for good."""
        frozen, vm = self.encoding.empty | L.SPTE_FROZEN, self.w[a + L.VM]
        for _, gfn, level, old in self.old:
            self._spte_changed(t, a, gfn, level, self.encoding.spte(vm, gfn, level, old), frozen)
        self.old.clear()

    def _mapped(self, t: int, a: int) -> None:
        """kvm_tdp_mmu_map returns; it has printed the leaf unless it lost a race or let it stand."""
        w, code, fault = self.w, self.encoding, self.faults[a]
        fault.mapping = False
        outcome, level = w[a + L.V_OUTCOME], w[a + L.V_LEVEL]
        if outcome == L.RET_FIXED or (outcome == L.RET_SPURIOUS and not fault.spurious_early):
            at, gfn = w[a + L.V_LEAF], w[a + L.V_GFN] >> 9 * (level - 1) << 9 * (level - 1)
            entry, executable = code.spte(w[a + L.VM], gfn, level, w[at]), bool(w[at] & L.SPTE_X)
            self.event(t, a, "kvm_mmu_set_spte", gfn, entry, code.sptep(at, gfn, level), level, executable)
        self.event(t, a, "map_ret", code.returns[outcome])

    def before_release(self, t: int, a: int) -> None:
        """The first step after kvm_tdp_mmu_map, if there is something to release."""
        if (fault := self.faults.get(a)) and fault.mapping:
            self._mapped(t, a)

    before_release_unused = before_read_unlock = before_write_unlock = before_release

    def before_finish(self, t: int, a: int) -> None:
        """kvm_tdp_page_fault returns."""
        fault, outcome = self.faults[a], self.w[a + L.V_OUTCOME]
        if fault.faulting and outcome in (L.RET_EMULATE, L.RET_ERROR):
            self._faulted_in(t, a, outcome)
        self.event(t, a, "pf_ret", self.encoding.returns[outcome])
        fault.entering = True

    # mmu_lock.

    def before_read_lock(self, t: int, a: int) -> None:
        """A fault that asks for mmu_lock has its page."""
        if self.w[a + L.AFTER] == L.PC_MAPPED:
            self._faulted_in(t, a, None)

    before_write_lock = before_read_lock

    def after_read_lock(self, t: int, a: int) -> None:
        """queued_read_lock_slowpath."""
        if self.w[a + L.PC] in IN_QUEUE:
            self.event(t, a, "rlock_slow")

    def after_write_lock(self, t: int, a: int) -> None:
        """queued_write_lock_slowpath."""
        if self.w[a + L.PC] in IN_QUEUE:
            self.event(t, a, "wlock_slow")

    # The notifier.

    def before_start(self, t: int, a: int) -> None:
        """invalidate_range_start is called."""
        w = self.w
        self._range(t, a, "kvm_unmap_hva_range", w[a + L.N_START], w[a + L.N_END])

    def before_start_locked(self, t: int, a: int) -> None:
        """kvm_mmu_invalidate_begin."""
        self.event(t, a, "inv_begin")

    def before_zap(self, t: int, a: int) -> None:
        """Note the leaf that may be zapped."""
        w = self.w
        self._note(w[a + L.N_LEAF], w[a + L.N_LEAF_LEVEL], w[a + L.N_GFN])

    def after_zap(self, t: int, a: int) -> None:
        """Tell of the change, unless the zap has given way."""
        self._changed(t, a)

    def before_started(self, t: int, a: int) -> None:
        """invalidate_range_start returns."""
        self.event(t, a, "inv_start_ret", 0)

    def before_end(self, t: int, a: int) -> None:
        """invalidate_range_end is called."""
        self.event(t, a, "inv_end")

    def before_end_locked(self, t: int, a: int) -> None:
        """kvm_mmu_invalidate_end."""
        self.event(t, a, "inv_seq")

    def after_ended(self, t: int, a: int) -> None:
        """invalidate_range_end returns."""
        self.event(t, a, "inv_end_ret")

    def before_flush(self, t: int, a: int) -> None:
        """kvm_flush_remote_tlbs is called; the steps after the first are in it."""
        if a not in self.flushing:
            self.flushing.add(a)
            self.event(t, a, "flush")

    def after_flush(self, t: int, a: int) -> None:
        """All have been asked."""
        if self.w[a + L.PC] != L.PC_FLUSH:
            self.flushing.discard(a)

    # Storm clients outside the notifier.

    def after_idle(self, t: int, a: int) -> None:
        """clear_flush_young is called."""
        w = self.w
        if w[a + L.S_ACTION] == L.ACT_AGE and w[a + L.PC] not in (L.PC_IDLE, L.PC_STOPPED):
            self._range(t, a, "kvm_age_hva", w[a + L.S_START], w[a + L.S_END])

    def before_age(self, t: int, a: int) -> None:
        """Note where aging is."""
        self.counted = self._counter(a, L.K_AGED)

    def after_age(self, t: int, a: int) -> None:
        """Tell of a leaf that was aged: the one that ends where aging goes on."""
        if self._counter(a, L.K_AGED) != self.counted:
            w, vm = self.w, self.w[a + L.VM]
            at, level = self.machine.lookup(vm, w[a + L.N_CURSOR] - 1)
            self.old.append((at, w[a + L.N_CURSOR] - 1, level, w[at] | L.SPTE_A))
            self._changed(t, a)

    def before_clear_leaf(self, t: int, a: int) -> None:
        """Note the leaf that the first of the taken bits leads to."""
        w = self.w
        bits = w[a + L.S_BITS] | w[a + L.S_BITS_HIGH] << 32
        while bits:
            gfn = w[a + L.S_BITS_GFN] + (bits & -bits).bit_length() - 1
            at, level = self.machine.lookup(w[a + L.VM], gfn)
            if w[at] & L.SPTE_PRESENT:
                self._note(at, level, gfn)
                return
            bits &= bits - 1

    def after_clear_leaf(self, t: int, a: int) -> None:
        """Tell of the change, if there was one."""
        self._changed(t, a)

    # What several of them share.

    def _note(self, at: int, level: int, gfn: int) -> None:
        """Keep an entry as it is."""
        first = gfn >> 9 * (level - 1) << 9 * (level - 1)
        self.old.append((at, first, level, self.w[at]))

    def _changed(self, t: int, a: int) -> None:
        """Print the entries kept that are others now (handle_changed_spte)."""
        vm, spte = self.w[a + L.VM], self.encoding.spte
        for at, gfn, level, old in self.old:
            if self.w[at] != old:
                self._spte_changed(
                    t, a, gfn, level, spte(vm, gfn, level, old), spte(vm, gfn, level, self.w[at])
                )
        self.old.clear()

    def _spte_changed(self, t: int, a: int, gfn: int, level: int, old: int, new: int) -> None:
        first = gfn >> 9 * (level - 1) << 9 * (level - 1)
        self.event(t, a, "kvm_tdp_mmu_spte_changed", 0, first, level, old, new)

    def _range(self, t: int, a: int, name: str, start: int, end: int) -> None:
        """Tell of a range of gfns by the host addresses that it has."""
        base = self.encoding.hva(self.w[self.w[a + L.VM] + L.VM_ID])
        self.event(t, a, name, base + (start << 12), base + (end << 12))

    def _counter(self, a: int, counter: int) -> int:
        """Return a counter of the actor's VM."""
        return self.w[self.w[a + L.COUNTERS_AT] + counter]

    def _count(self, a: int) -> None:
        """Keep the retries of the actor's VM as they are."""
        self.retries = cells(self.machine.actors, self.w[a + L.VM])

    def _retried(self, a: int) -> str:
        """Name the cell in which the step has counted a retry; empty if in none."""
        return new_retry(self.retries, cells(self.machine.actors, self.w[a + L.VM]))


def header(run: Run, events: int) -> str:
    """Write what stands above the lines of the file `trace` of tracefs, and how far the log goes."""
    kept, steps = len(run.arrays["log"]), run.meta["log_seen"]
    cut = f"\n# cut: the log held {kept} of the run's {steps} steps" if kept < steps else ""
    return (
        "# tracer: nop\n#\n"
        f"# entries-in-buffer/entries-written: {events}/{events}   #P:{run.scenario.machine.threads}\n#\n"
        f"# kvmpfn {run.version}: {run.scenario.mechanisms.name}, run {run.digest[:16]}{cut}\n#\n"
        "#           TASK-PID     TGID   CPU#     TIMESTAMP  FUNCTION\n"
        "#              | |         |      |         |         |\n"
    )


def memory_map(run: Run, machine: Machine) -> str:
    """Write where each VM's memory lies in the host, and KVM's counters of the whole run.

    Lines are as in the text beside a recording (`kvmpfn.read_counters`): CONFIG names the host
    address of gfn 0, and the MiB up to the end of the last region, gaps included. One line of each kind a VM.
    """
    s, code, counters = run.scenario, Encoding(machine), run.vm_counters
    lines = []
    for vm in range(s.vms):
        name = "kvmpfn" if s.vms == 1 else f"kvmpfn-vm{vm}"
        lines.append(
            f"CONFIG {name} tgid={machine.process(vm)} vcpus={s.vcpus} mib={-(-code.pages // 256)} "
            f"hva={code.hva(vm):#x} gpa=0x0 fault_path={s.mechanisms.preset} mmu={s.mmu} seed={s.seed} "
            f"digest={run.digest[:16]}"
        )
        lines += [f"STAT {name} after vm {column} {int(counters[column].iloc[vm])}" for column in STATISTICS]
    return "".join(f"{line}\n" for line in lines)
