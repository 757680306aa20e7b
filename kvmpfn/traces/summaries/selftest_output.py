"""What KVM's selftests print: what was run, and the times that were measured.

The lines are those of tools/testing/selftests/kvm in Linux: demand_paging_test.c, dirty_log_perf_test.c,
access_tracking_perf_test.c, memslot_perf_test.c, mmu_stress_test.c (before that max_guest_memory_test.c) and
lib/memstress.c (before that lib/perf_test_util.c), by themselves or within the output of kselftest.
`kvmpfn.selftests.selftest` takes the fact ``command``, where a file has it.
"""

from __future__ import annotations

import re
from decimal import Decimal

from kvmpfn.traces.summaries.counters import NUMBER, Table, picoseconds
from kvmpfn.traces.summaries.reader import Reader

DEMAND, DIRTY, ACCESS, MEMSLOT, STRESS = (
    "demand_paging_test", "dirty_log_perf_test", "access_tracking_perf_test", "memslot_perf_test",
    "mmu_stress_test",
)  # fmt: skip
TESTS = {name: name for name in (DEMAND, DIRTY, ACCESS, MEMSLOT, STRESS)} | {"max_guest_memory_test": STRESS}

_S = r"(\d{1,12}\.\d{1,9})s"
_N = rf"({NUMBER})"
_RATE = r"(\d{1,15}\.\d{1,9})"

LINES: tuple[tuple[str, str, tuple[tuple[int, str, str], ...]], ...] = (
    ("", r"Random seed: (\w+)", ((1, "seed", "fact"),)),
    (DEMAND, rf"Total guest execution time:\s*{_S}", ((1, "guest execution", "time"),)),
    (DEMAND, rf"Per-vcpu demand paging rate:\s*{_RATE} pgs/sec/vcpu", ((1, "demand paging a vCPU", "rate"),)),
    (DEMAND, rf"Overall demand paging rate:\s*{_RATE} pgs/sec", ((1, "demand paging", "rate"),)),
    (DEMAND, rf"vCPU (\d{{1,5}}) execution time: {_S}", ((2, "vCPU {0}", "time"),)),
    (DIRTY, rf"Test iterations: {_N}", ((1, "iterations", "fact"),)),
    (DIRTY, rf"Populate memory time: {_S}", ((1, "populate memory", "time"),)),
    (DIRTY, rf"Setting dirty log mode took : {_S}", ((1, "set dirty log mode", "time"),)),
    (DIRTY, rf"(En|Dis)abling dirty logging time: {_S}", ((2, "{0}able dirty logging", "time"),)),
    (DIRTY, rf"Iteration (\d{{1,6}}) (.+) time: {_S}", ((3, "{1}, iteration {0}", "time"),)),
    (DIRTY, rf"(Get|Clear) dirty log over \d+ iterations took {_S}\. \(Avg {_S}/iteration\)", (
        (2, "{0} dirty log", "time"), (3, "{0} dirty log", "mean"),
    )),
    (ACCESS, r"Using (lru_gen|page_idle) for aging", ((1, "aging", "fact"),)),
    (ACCESS, (
        r"((?:Re-)?[Pp]opulating memory|(?:Writ|Read)ing (?:to|from) (?:populated|idle) memory"
        rf"|Mark memory idle(?: \(\w+\))?)\s*: {_S}"
    ), ((2, "{0}", "time"),)),
    (ACCESS, rf"WARNING: (?:(vCPU\d{{1,5}}): )?Too many pages still idle \({_N} ?out of {_N}\).*", (
        (2, "pages still idle {0}", "number"),
    )),
    (MEMSLOT, rf"Testing (.+) performance with {_N} runs, {_N} seconds each", (
        (1, "test", "step"), (2, "runs", "number"), (3, "length", "seconds"),
    )),
    (MEMSLOT, rf"Test took {_S} for slot setup \+ {_S} all iterations", (
        (1, "slot setup", "time"), (2, "all iterations", "time"),
    )),
    (MEMSLOT, rf"Done {_N} iterations, avg {_S} each", (
        (1, "iterations", "number"), (2, "an iteration", "mean"),
    )),
    (MEMSLOT, rf"Best runtime result was {_S} per iteration \(with {_N} iterations\)", (
        (1, "an iteration, best run", "time"),
    )),
    (MEMSLOT, rf"Best slot setup time for the whole test area was {_S}", (
        (1, "slot setup, best run", "time"),
    )),
    (MEMSLOT, rf"Allowed number of memory slots: {_N}", ((1, "slots allowed", "fact"),)),
    (MEMSLOT, rf"Adding slots 1\.\.{_N}, each slot with {_N} pages \+ {_N} extra pages last", (
        (1, "slots", "fact"), (2, "pages a slot", "fact"), (3, "extra pages", "fact"),
    )),
    (MEMSLOT, rf"Memslot count (?:too high|may be too high) for this test, .+?(?: \(max is {_N}\))?", (
        (1, "not run: most slots", "number"),
    )),
    (STRESS, rf"Running with {_N}gb of guest memory and {_N} vCPUs", (
        (1, "GiB", "fact"), (2, "vcpus", "fact"),
    )),
    (STRESS, rf"run1 = {_S}, reset = {_S}, run2 = {_S}(?:, ro = {_S}, rw = {_S})?", (
        (1, "run1", "time"), (2, "reset", "time"), (3, "run2", "time"), (4, "ro", "time"), (5, "rw", "time"),
    )),
)  # fmt: skip
"""Of each line: the test, empty for all; the pattern; and of its groups number, name and what they are."""

_LINES = tuple((test, re.compile(pattern), parts) for test, pattern, parts in LINES)
_MODE = re.compile(r"Testing guest mode: (.+)")
_PAGE_SIZE = re.compile(r"\b(\d{1,4})K pages")
_MEMORY = re.compile(r"guest physical test memory: \[0x([0-9a-f]{1,16}), 0x([0-9a-f]{1,16})\)")
_COMMAND = re.compile(
    r"(?:[\w=@:~.\[\]/-]*[$#%>]\s*)?(?:(?:sudo|time|taskset -c \S+|numactl(?: -\S+)+) )*(?:\S*/)?"
    rf"({'|'.join(TESTS)})((?:\s+-[a-zA-Z]\S*(?:\s+(?!-[a-zA-Z])\S+)?)*)"
)
_KSELFTEST = re.compile(r"(?:(ok|not ok) \d{1,6} )?selftests: kvm: (\w+)(?: #.*)?")
_SAID = re.compile(
    r"Finished creating vCPUs.*|Started all vCPUs|All vCPU threads joined|timeout set to \d+"
    r"|Waiting for vCPUs to finish .+|(?:\d+ vCPUs haven't rendezvoused\.\.\.\s*)+(?:All vCPUs finished .+)?"
    r"|All vCPUs finished .+, releasing\.\.\.|Initial aging pass \(lru_gen\)|Launching the test VM"
    r"|No full loops done .+"
)


class SelftestOutput(Reader):
    """Reads the output of KVM's selftests: a table a run, whose label is the test."""

    source = "selftest"

    def __init__(self, tables: list[Table]) -> None:
        super().__init__(tables)
        self._step = ""

    def take(self, line: str) -> bool | str:
        """Read a line."""
        if run := _KSELFTEST.fullmatch(line):
            if run[1] and self.table and run[2] == self.table.facts.get("test"):
                self.table.facts["result"] = run[1]
                self.table = None
            elif not run[1]:
                self._begin(run[2])
            return True
        if command := _COMMAND.fullmatch(line):
            self._begin(command[1], command=" ".join((command[1] + command[2]).split()))
            return True
        if mode := _MODE.fullmatch(line):
            table = self._of("") if self.table is None or "mode" not in self.table.facts else self._again()
            table.facts["mode"] = mode[1]
            return True
        if memory := _MEMORY.fullmatch(line):
            self._memory(self._of(""), int(memory[1], 16), int(memory[2], 16))
            return True
        for test, pattern, parts in _LINES:
            if found := pattern.fullmatch(line):
                self._line(test, found, parts)
                return True
        return "says how far it is" if self.table and _SAID.fullmatch(line) else False

    def finish(self) -> None:
        """Compare the rates with pages and times."""
        for table in self._tables:
            if table.source == self.source and table.label == DEMAND:
                self._compare(table)

    def _begin(self, name: str, **facts: str) -> Table:
        """Begin a run; one that has only been named is the same."""
        self._step, test = "", TESTS.get(name, name)
        if self.table and not self.table.values and self.table.label == test:
            self.table.facts |= facts
            return self.table
        return self.begin(test, test=name, **facts)

    def _again(self) -> Table:
        """Begin another run of the same command, as for another guest mode."""
        assert self.table is not None
        kept = {key: value for key, value in self.table.facts.items() if key in ("test", "command")}
        return self.begin(self.table.label, **kept)

    def _of(self, test: str) -> Table:
        """Return the run that a line of this test belongs to."""
        if self.table is None or (test and self.table.label not in ("", test)):
            return self.begin(test)
        self.table.label = self.table.label or test
        return self.table

    def _line(self, test: str, found: re.Match[str], parts: tuple[tuple[int, str, str], ...]) -> None:
        """Take the groups of a line."""
        table = self._of(test)
        groups = [group or "" for group in found.groups()]
        for number, template, kind in parts:
            text = groups[number - 1]
            name = template.format(*groups).strip()
            if kind == "step":
                self._step = text
                continue
            if not text:
                continue
            if kind == "fact":
                table.facts.setdefault(name, text)
                continue
            name = f"{self._step}: {name}" if self._step and test == MEMSLOT else name
            if test != MEMSLOT and ("vm", name) in table.read and kind == "time":
                table = self._again()
            if kind == "seconds":
                table.add("vm", name, "time", int(text) * 10**12, "ps")
            elif kind in ("time", "mean"):
                table.add("vm", name, kind, picoseconds(text, "s"), "ps")
            elif kind == "rate":
                table.add("vm", name, kind, float(text), "pages/s")
            else:
                table.add("vm", name, kind, int(text), "1")

    def _memory(self, table: Table, start: int, end: int) -> None:
        """Note the memory that is tested."""
        table.facts["memory"] = f"[{start:#x}, {end:#x})"
        table.add("vm", "test memory", "size", max(0, end - start), "B")
        if size := _PAGE_SIZE.search(table.facts.get("mode", "")):
            table.add("vm", "test memory", "number", max(0, end - start) // (int(size[1]) << 10), "pages")

    def _compare(self, table: Table) -> None:
        """Warn of a rate that is not pages by time.

        Before a fix of 2023 (NSEC_PER_SEC in demand_paging_test.c) the test divided nanoseconds by 1e8 there.
        """
        read = {(one.name, one.unit): one.value for one in table.values}
        pages, time = read.get(("test memory", "pages")), read.get(("guest execution", "ps"))
        rate = read.get(("demand paging", "pages/s"))
        if not pages or not time or not rate:
            return
        seconds, rest = divmod(int(time), 10**12)
        wrong = Decimal(int(pages)) / (seconds + Decimal(rest) / 10**11)
        if abs(float(wrong) / rate - 1) < 1e-6 < abs(int(pages) * 1e12 / int(time) / rate - 1):
            self.warnings.append(
                f"{DEMAND}: the rate it printed is not pages by time but ten times the fraction of a second; "
                f"{int(pages) * 1e12 / int(time):,.0f} pages/s is"
            )
