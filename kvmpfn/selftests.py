"""The KVM selftests by their own command lines: a line as it is typed becomes a Scenario.

The options are those of tools/testing/selftests/kvm in Linux (demand_paging_test.c, dirty_log_perf_test.c,
access_tracking_perf_test.c, memslot_perf_test.c, mmu_stress_test.c, lib/memstress.c, lib/test_util.c), read
as their getopt does. What the model has no counterpart for is refused, and the nearest named. Threads are not
pinned in the tests; the scheduler balances them over both sockets, which is ``placement="spread"``.
"""

from __future__ import annotations

import getopt
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvmpfn.fault_path import FaultPath
from kvmpfn.hosts import Host
from kvmpfn.scenario import Region, Scenario
from kvmpfn.storms import Storm
from kvmpfn.units import PAGE, InputError, format_size, nearest
from kvmpfn.workloads import DemandPaging, Uniform, Workload

__all__ = ["SELFTESTS", "Selftest", "selftest"]

BACKING_SOURCES = {
    "anonymous": "anon",
    "anonymous_thp": "thp",
    "anonymous_hugetlb": "hugetlb_2m",
    "anonymous_hugetlb_2mb": "hugetlb_2m",
    "anonymous_hugetlb_1gb": "hugetlb_1g",
    "shmem": "page_cache",
    "shared_hugetlb": "hugetlb_2m",
}
"""Backings of the tests' `-s` (vm_mem_backing_src_alias, lib/test_util.c), of page sizes that x86 has."""

DEFAULT_PER_VCPU_MEM_SIZE = "1G"
SHIFTS = {"t": 40, "g": 30, "m": 20, "k": 10, "b": 0, "": 0}
NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+", re.ASCII)
GIB = 1 << 30

MEMSLOT_TEST_BYTES = (512 << 20) + PAGE
"""MEM_SIZE of memslot_perf_test.c."""

RW_TEST = 5
"""The number of memslot_perf_test's last test."""

KVM_USER_MEM_SLOTS = 32764
"""What x86 has (arch/x86/include/asm/kvm_host.h)."""

MOST_REGIONS = 512
"""Memslots of one scenario: each is a region, 1 GiB of guest addresses apart from the next."""


class Selftest(NamedTuple):
    """One selftest: its options, its phases, and how a phase becomes a scenario.

    Attributes
    ----------
    options : str
        The option string of its getopt.
    phases : tuple of str
        The phases that can be simulated; the first is what is simulated if none is named.
    refused : mapping of str to str
        Options without a counterpart, and what is nearest.
    build : callable
        From options and phase to the fields of a Scenario.
    """

    options: str
    phases: tuple[str, ...]
    refused: Mapping[str, str]
    build: Callable[[Options, str], dict[str, Any]]


class Options:
    """The options of a command line, read with the tests' own functions."""

    def __init__(self, given: Mapping[str, str], host: Host) -> None:
        self._given = given
        self.host = host

    def __contains__(self, option: str) -> bool:
        return option in self._given

    def text(self, option: str, default: str = "") -> str:
        """Return a value as it was typed."""
        return self._given.get(option, default)

    def size(self, option: str, default: str) -> int:
        """Read a size as parse_size does (lib/test_util.c): ``64M``, 1024-fold, in any base that C knows."""
        text = self.text(option, default)
        digits = NUMBER.match(text)
        shift = SHIFTS.get(text[digits.end() :][:1].lower()) if digits else None
        if digits is None or shift is None:
            raise _wrong(option, text, "not a size as the tests write it", "64M")
        return _integer(digits[0], option) << shift

    def number(self, option: str, default: int, least: int = 1, most: int | None = None) -> int:
        """Read a number as atoi_positive or atoi_non_negative does."""
        text = self.text(option, str(default))
        if not NUMBER.fullmatch(text):
            raise _wrong(option, text, "not a whole number", str(max(least, default)))
        value = _integer(text, option)
        if value < least or (most is not None and value > most):
            near = least if value < least or most is None else most
            raise _wrong(option, text, f"out of range, which begins at {least}", str(near))
        return value

    def backing(self) -> str:
        """Read the type of memory."""
        name = self.text("s", "anonymous")
        if name not in BACKING_SOURCES:
            raise _wrong("s", name, "not a type of memory that x86 has", nearest(name, BACKING_SOURCES))
        return name


def _wrong(option: str, value: str, what: str, near: str) -> InputError:
    """Say what is wrong with an option, and what is nearest."""
    return InputError(f"{value!r} is {what}; nearest is '-{option} {near}'", f"-{option}")


def _integer(digits: str, option: str) -> int:
    """Read a number as strtol does with base 0: hexadecimal after 0x, octal after 0."""
    try:
        return int(digits, 0 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    except ValueError:
        raise _wrong(option, digits, "not octal, as a leading 0 says", digits.lstrip("0")) from None


def selftest(command: str, phase: str | None = None, **changes: Any) -> Scenario:
    """Return the scenario that a KVM selftest's command line asks for.

    Parameters
    ----------
    command : str
        The command line as it is, such as ``"demand_paging_test -b 64M -v 64"``; a path before the name is
        ignored.
    phase : str, optional
        Which phase of the test: ``populate`` or ``dirty`` of dirty_log_perf_test (dirty if not given); the
        others have one that can be simulated.
    **changes
        Fields of the Scenario, such as ``host``, ``fault_path`` or ``until``.

    Returns
    -------
    Scenario
        One VM.

    Raises
    ------
    InputError
        The test is unknown, an option is wrong or has no counterpart in the model, or the scenario cannot be.

    Notes
    -----
    demand_paging_test
        Each vCPU writes its memory once, page by page. userfaultfd is not modelled.
    dirty_log_perf_test
        *populate*: the same, before logging begins. *dirty*: one of the iterations, from the state that each
        begins in once the log was cleared: memory mapped, at 4K if eager_page_split, nothing logged as dirty.
        With PML hardware logs without faults; ``pml=False`` or ``mmu="npt"`` has faults. The model has no
        actor that reads or clears the log, so that the number of iterations changes nothing; the first one
        after logging began differs under KVM_DIRTY_LOG_INITIALLY_SET (without ``-g``).
    access_tracking_perf_test
        *populate*: the first touch. With ``-p``, an option of the series that data/published/houghton.csv is
        from, aging goes on beside it, page by page, in a random order. Where hardware sets accessed bits, the
        accesses to memory that is mapped, idle or not, have no faults.
    memslot_perf_test
        Test 5, RW, of which the first round faults; memory is in place, the slots are regions. In the other
        tests host and guest take turns, or a slot is moved.
    mmu_stress_test
        The first run over memory that is in place, with one slot only: more would map the same pages again.
        The pages left over when the number of vCPUs does not divide them are touched too.

    Examples
    --------
    >>> selftest("demand_paging_test -b 64M -v 4").memory_bytes >> 20
    256
    """
    words = _words(command)
    name = words[0].rpartition("/")[2]
    if name not in SELFTESTS:
        what = f"{name!r} is not one of {', '.join(SELFTESTS)}"
        raise InputError(f"{what}; nearest is {nearest(name, SELFTESTS)!r}", "selftest")
    test = SELFTESTS[name]
    if phase is not None and phase not in test.phases:
        near = nearest(phase, test.phases)
        raise InputError(f"{name} has no phase {phase!r} that can be simulated; nearest is {near!r}", "phase")
    try:
        host = changes.get("host", "icelake_sp_2s")
        given = _given(name, test, words[1:])
        fields = test.build(Options(given, Host.from_plain(host)), phase or test.phases[0])
        return Scenario(**{"placement": "spread"} | fields | changes)
    except InputError as error:
        raise InputError(error.message, f"{name} {error.where}".rstrip()) from None


def _words(command: str) -> list[str]:
    """Split a command line as a shell does."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"{command!r} cannot be split: {str(error).lower()}", "selftest") from None
    if not words:
        raise InputError("empty; nearest is 'demand_paging_test -b 64M -v 4'", "selftest")
    return words


def _given(name: str, test: Selftest, words: list[str]) -> dict[str, str]:
    """Parse the options; the last of a kind counts."""
    letters = test.options.replace(":", "")
    try:
        pairs, rest = getopt.gnu_getopt(words, test.options)
    except getopt.GetoptError as error:
        if error.opt in letters:
            raise InputError(f"needs a value; nearest is {_usage(test)!r}", f"-{error.opt}") from None
        raise InputError(f"has no option -{error.opt}; nearest is {_usage(test)!r}") from None
    if rest:
        raise InputError(f"{rest[0]!r} belongs to no option; nearest is {_usage(test)!r}")
    given = {option[1:]: value for option, value in pairs}
    if "h" in given:
        raise InputError(f"takes {_usage(test)}")
    for letter in letters:
        if letter in given and letter in test.refused:
            raise InputError(f"the model has no counterpart; nearest is {test.refused[letter]}", f"-{letter}")
    return given


def _usage(test: Selftest) -> str:
    """Show the options that are taken."""
    without = {"h", *test.refused}
    pairs = [
        (letter, colon) for letter, colon in re.findall(r"(\w)(:?)", test.options) if letter not in without
    ]
    return " ".join(f"-{letter} VALUE" if colon else f"-{letter}" for letter, colon in pairs)


def _memory(options: Options, *, in_place: bool, slots: int = 1) -> dict[str, Any]:
    """Return VM size and vCPUs as memstress_create_vm has them: so much a vCPU, in equal slots."""
    vcpus = options.number("v", 1)
    each, source = options.size("b", DEFAULT_PER_VCPU_MEM_SIZE), options.backing()
    if not each or each % PAGE:
        what = "not a multiple of the page size"
        raise _wrong("b", options.text("b"), what, f"{max(1, round(each / PAGE)) * PAGE >> 10}K")
    pages = each * vcpus // PAGE
    if pages % slots or slots > MOST_REGIONS:
        near = next(one for one in range(min(pages, slots, MOST_REGIONS), 0, -1) if pages % one == 0)
        what = f"no divisor of {pages} pages, or more than {MOST_REGIONS} regions"
        raise _wrong("x", str(slots), what, str(near))
    if source == "shmem" and not in_place:
        # The model's page cache is full from the start; shmem allocates at the first touch.
        raise _wrong("s", source, "allocated by a first touch, as no page cache here is", "anonymous")
    fields: dict[str, Any] = {"backing": BACKING_SOURCES[source], "mapped": in_place}
    if source == "shmem":
        fields["mapping"] = "shared"
    return {"vcpus": vcpus, "memory": [Region(format_size(pages // slots * PAGE), **fields)] * slots}


def _sweep(options: Options) -> DemandPaging:
    """Return memstress_guest_code's pass over all pages, in order."""
    return DemandPaging(share="overlapping" if "o" in options else "partitioned")


def _demand_paging(options: Options, phase: str) -> dict[str, Any]:
    return _memory(options, in_place=False) | {"workload": _sweep(options)}


def _dirty_log(options: Options, phase: str) -> dict[str, Any]:
    options.number("i", 2, least=2)
    fields = _memory(options, in_place=phase == "dirty", slots=options.number("x", 1))
    fields["seed"] = options.number("r", 1)
    if phase == "populate":
        # All pages are written, in order, whatever the iterations do.
        return fields | {"workload": _sweep(options)}
    pages = sum(region.pages for region in fields["memory"])
    return fields | {"workload": _dirtying(options, fields["vcpus"], pages), "dirty_logging": True}


def _dirtying(options: Options, vcpus: int, pages: int) -> Workload:
    """Return what an iteration touches: in order, or drawn anew for each access; written or read."""
    percent = options.number("w", 100, least=0, most=100)
    fraction = options.number("f", 1)
    if "a" in options:
        if vcpus > 1 and "o" not in options:
            raise InputError("random pages of a part of memory; nearest is '-a -o'", "-a")
        if fraction > 1:
            raise _wrong("f", str(fraction), "not in one kernel with -a", "1")
        return Uniform(writes=percent / 100, accesses=pages)
    if fraction > 1:
        raise _wrong("f", str(fraction), "a mix of reads and writes in order", "1")
    if percent % 100:
        raise _wrong("w", str(percent), "a mix of reads and writes in order", f"{percent} -a -o")
    return _sweep(options).replace(access="write" if percent else "read")


def _access_tracking(options: Options, phase: str) -> dict[str, Any]:
    fields = _memory(options, in_place=False) | {"workload": _sweep(options)}
    if "l" in options or "p" in options:
        fields["lru"] = "mglru"
    if "p" in options:
        # MGLRU asks with clear_young, which flushes in no kernel.
        fields["fault_path"] = FaultPath("v6.1", aging_flush=False)
        aging = Storm(arrival="closed_loop", think="0ns", span=format_size(PAGE), hold="0ns", action="age")
        fields["storms"] = [aging]
    return fields


def _memslot(options: Options, phase: str) -> dict[str, Any]:
    first, last = options.number("f", 0, least=0), options.number("e", RW_TEST, least=0, most=RW_TEST)
    if first != RW_TEST or last != RW_TEST:
        what = f"tests {first} to {last}: all but {RW_TEST} (RW) take turns with the host, or move a slot"
        raise InputError(f"{what}; nearest is '-f {RW_TEST} -e {RW_TEST}'", "-f")
    # -1, the default, is as many as KVM has.
    cap = KVM_USER_MEM_SLOTS if options.text("s") == "-1" else options.number("s", KVM_USER_MEM_SLOTS, 2)
    slots = cap - 1
    if slots > MOST_REGIONS:
        what = f"{slots} slots beside the first are more than {MOST_REGIONS} regions"
        raise InputError(f"{what}; nearest is '-s {MOST_REGIONS + 1}'", "-s")
    pages = MEMSLOT_TEST_BYTES // PAGE
    # The last slot has what is left over.
    sizes = [pages // slots] * (slots - 1) + [pages // slots + pages % slots]
    return {
        "vcpus": 1,
        "memory": [Region(format_size(size * PAGE), populated=True) for size in sizes],
        "workload": DemandPaging(),
    }


def _mmu_stress(options: Options, phase: str) -> dict[str, Any]:
    vcpus = options.number("c", options.host.threads * 3 // 4)
    most, slot = options.number("m", 128), options.number("s", 2)
    if most > slot:
        what = f"{most} GiB in slots of {slot} GiB, which all map the same pages"
        raise InputError(f"{what}; nearest is '-m {slot}'", "-m")
    if "H" in options:
        region = Region(format_size(slot * GIB), backing="hugetlb_2m", populated=True)
    else:
        region = Region(format_size(slot * GIB), backing="page_cache", mapping="shared", populated=True)
    return {"vcpus": vcpus, "memory": [region], "workload": DemandPaging()}


_MODE = "no -m, which is 4K pages, the only mode of x86"
_PIN = "--set placement=cores"
_LEVEL_1 = "no -n: nested guests are out of scope"

SELFTESTS = {
    "demand_paging_test": Selftest(
        "ahom:u:d:b:s:v:c:r:",
        ("populate",),
        {"m": _MODE, "u": "no -u: userfaultfd is out of scope", "c": _PIN},
        _demand_paging,
    ),
    "dirty_log_perf_test": Selftest(
        "ab:c:ef:ghi:m:nop:r:s:v:x:w:",
        ("dirty", "populate"),
        {
            "m": _MODE,
            "c": _PIN,
            "n": _LEVEL_1,
            "e": "no -e: logging does not end during a run",
            "p": "no -p: regions begin at multiples of 1 GiB",
        },
        _dirty_log,
    ),
    "access_tracking_perf_test": Selftest(
        "hm:b:v:os:w:lr:p",
        ("populate",),
        {"m": _MODE},
        _access_tracking,
    ),
    "memslot_perf_test": Selftest(
        "hvds:f:e:l:r:",
        ("RW",),
        {},
        _memslot,
    ),
    "mmu_stress_test": Selftest(
        "c:hm:s:H",
        ("run1",),
        {},
        _mmu_stress,
    ),
}
"""The selftests by name. The options are those of all kernels from v6.1 on: `-f` of dirty_log_perf_test is
older, `-w`, `-a` and `-r` are newer."""
