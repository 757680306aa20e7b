"""Storms by the name of the kernel's own invalidators, with the kernel's own defaults.

Each preset is one `Storm`; what the kernel lets a user tune has the kernel's name for it. The hold is 0 in
all of them: an operation takes what its own steps take. Where a preset's place in memory is random, the
kernel's own order is not expressible; its rates, calls a second and pages a second, are the kernel's.
"""

from __future__ import annotations

from typing import Any, Literal

from kvmpfn.storms.knobs import PASS_PS, at_least, blocks_of, buddy_order, passes, per_second, preset, scan
from kvmpfn.storms.storm import Storm
from kvmpfn.units import PAGE, InputError, format_size, nearest, parse_size, parse_time

__all__ = ["balloon", "compaction", "fork", "free_page_reporting", "madvise_loop", "numa_balancing"]

MAX_SCAN_WINDOW_MB = 2560
"""MAX_SCAN_WINDOW of kernel/sched/fair.c: never more than so many MB a second."""

PAGE_REPORTING_CAPACITY = 32
"""Blocks of one report (include/linux/page_reporting.h)."""

BUDGET_SHARE = 16
"""A pass of page_reporting_cycle goes through a sixteenth of a free list, and one report more."""


def numa_balancing(
    memory: int | str = "1GiB",
    *,
    scan_size_mb: int = 256,
    scan_period_min_ms: int = 1000,
    scan_period_max_ms: int = 60000,
    pace: Literal["fastest", "slowest"] = "fastest",
    **others: Any,
) -> Storm:
    """Return NUMA balancing's protection scan of one process.

    Every period one task of the process makes the next `scan_size_mb` of its memory PROT_NONE, under
    mmap_lock for reading. The memory is one VMA: one call of change_prot_numa, and one notifier call, a
    pass. The periods are meant for the whole of the memory, so that a pass comes the more often the more
    windows of `scan_size_mb` there are, but never more than 2560 MB a second. Between `scan_period_min_ms`
    and `scan_period_max_ms` the kernel adapts to where the faults come from; `pace` chooses an end.

    Parameters
    ----------
    memory : str
        Resident memory of the process: what the VM has, populated.
    scan_size_mb, scan_period_min_ms, scan_period_max_ms : int
        As in ``/sys/kernel/debug/sched/numa_balancing``.
    pace : {"fastest", "slowest"}
        Which of the two periods.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Periodic; a pass goes on from where the last one ended.

    Raises
    ------
    InputError
        A number is less than 1, or `pace` is neither.

    Notes
    -----
    Defaults and formulas: kernel/sched/fair.c, sysctl_numa_balancing_scan_size, _scan_period_min and
    _scan_period_max, MAX_SCAN_WINDOW, task_nr_scan_windows, task_scan_min, task_scan_max (with its integer
    divisions, in ms) and task_numa_work. Kernels that call the notifier in change_pmd_range (mm/mprotect.c)
    have two calls where a pass crosses a GiB. The first scan_delay (1 s) is left out; so are hugetlb VMAs,
    which the kernel skips.
    """
    scan_size_mb = at_least(1, scan_size_mb, "scan_size_mb")
    at_least(1, scan_period_min_ms, "scan_period_min_ms")
    at_least(1, scan_period_max_ms, "scan_period_max_ms")
    if pace not in ("fastest", "slowest"):
        near = nearest(pace, ("fastest", "slowest"))
        raise InputError(f"{pace!r} is neither 'fastest' nor 'slowest'; nearest is {near!r}", "pace")
    resident, window = parse_size(memory), scan_size_mb << 20
    windows = max(1, -(-resident // window))
    floor = 1000 // max(1, MAX_SCAN_WINDOW_MB // scan_size_mb)
    period_ms = max(1, floor, scan_period_min_ms // windows)
    if pace == "slowest":
        period_ms = max(period_ms, scan_period_max_ms // windows)
    return preset(
        "periodic",
        others,
        rate=per_second(1, period_ms * 10**9),
        span=format_size(min(window, resident)),
        action="numa_balancing",
        **scan(others),
    )


def compaction(
    *, hpage_frag_check_interval_ms: int = 500, pageblock_order: int = 9, blocks: int = 1, **others: Any
) -> Storm:
    """Return kcompactd's proactive compaction.

    It wakes up at an interval and, if memory is more fragmented than compaction_proactiveness (20) allows,
    moves pages until it is not. Every page is unmapped by itself (try_to_migrate), with a notifier call of
    its own. How many are moved depends on the fragmentation, which the model does not have: `blocks` is
    **assumed**, and 1 is the least that makes a huge page (all pages of the block in use).

    Parameters
    ----------
    hpage_frag_check_interval_ms : int
        Between two wake-ups.
    pageblock_order : int
        Pages of a block, as a power of two.
    blocks : int
        Blocks emptied a wake-up.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Bursts: on average `blocks` << `pageblock_order` migrations of one page an interval.

    Raises
    ------
    InputError
        A number is out of range.

    Notes
    -----
    Defaults: mm/compaction.c, HPAGE_FRAG_CHECK_INTERVAL_MSEC and sysctl_compaction_proactiveness;
    pageblock_order is HUGETLB_PAGE_ORDER, 9, on x86 (include/linux/pageblock-flags.h). The kernel isolates
    COMPACT_CLUSTER_MAX (32) pages at a time; the model flushes and copies page by page.
    """
    at_least(2, hpage_frag_check_interval_ms, "hpage_frag_check_interval_ms")
    buddy_order(pageblock_order, "pageblock_order")
    pages = at_least(1, blocks, "blocks") << pageblock_order
    interval_ps = hpage_frag_check_interval_ms * 10**9
    return preset("bursts", others, span=format_size(PAGE), action="migration", **passes(pages, interval_ps))


def madvise_loop(span: int | str = "2MiB", *, think: int | str = "0ns", **others: Any) -> Storm:
    """Return a loop of MADV_DONTNEED, one call after the other.

    Parameters
    ----------
    span : str
        What one call covers. The default is the chunk of memslot_perf_test's test "unmap chunked"
        (MEM_TEST_UNMAP_CHUNK_PAGES, tools/testing/selftests/kvm/memslot_perf_test.c).
    think : str
        From the end of a call to the next one.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Closed loop; one notifier call a call (zap_page_range_single, mm/memory.c).
    """
    return preset("closed_loop", others, think=think, span=span, action="madvise")


def balloon(size: int | str | None = None, *, think: int | str = "0ns", **others: Any) -> Storm:
    """Return a virtio balloon that is inflated as fast as the host takes pages.

    The guest names up to 256 pages at a time (VIRTIO_BALLOON_ARRAY_PFNS_MAX,
    drivers/virtio/virtio_balloon.c), but QEMU gives each back by itself (balloon_inflate_page,
    hw/virtio/virtio-balloon.c): one MADV_DONTNEED, and one notifier call, for 4 KiB. The guest's side takes
    no time here, so that this is the most that a balloon can do; `think` slows it down.

    Parameters
    ----------
    size : str, optional
        How much to inflate; without end if not given. A page may come twice, since places are random.
    think : str
        From the end of a call to the next one.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Closed loop of single pages.

    Raises
    ------
    InputError
        `size` is not a multiple of 4 KiB, or is nothing.
    """
    if size is not None:
        others = {"limit": blocks_of(size, 0)} | others
    return preset("closed_loop", others, think=think, span=format_size(PAGE), action="madvise")


def free_page_reporting(
    free: int | str = "1GiB",
    *,
    page_reporting_order: int = 9,
    page_reporting_delay: int | str = "2s",
    **others: Any,
) -> Storm:
    """Return a guest that reports its free memory, block by block, and a host that gives it back.

    A pass comes every `page_reporting_delay`. It goes through a sixteenth of the free list, in whole reports
    of 32 blocks, and one report more, until all free blocks are reported. QEMU gives each block of a report
    back by itself (virtio_balloon_handle_report, hw/virtio/virtio-balloon.c): one MADV_DONTNEED, and one
    notifier call, a block.

    Parameters
    ----------
    free : str
        Memory that the guest has freed, in blocks of this order, all on one free list.
    page_reporting_order : int
        Pages of a block, as a power of two.
    page_reporting_delay : str
        From pass to pass.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Bursts, as many calls as there are blocks; a block may come twice, or across two tables, since places
        are random.

    Raises
    ------
    InputError
        `free` is not a multiple of the block, or is nothing, or another value is out of range.

    Notes
    -----
    Defaults: mm/page_reporting.c, page_reporting_order (pageblock_order, 9 on x86), PAGE_REPORTING_DELAY (2 *
    HZ) and the budget of page_reporting_cycle; include/linux/page_reporting.h, PAGE_REPORTING_CAPACITY.
    """
    buddy_order(page_reporting_order, "page_reporting_order")
    blocks = blocks_of(free, page_reporting_order, "free")
    delay_ps = parse_time(page_reporting_delay)
    if delay_ps <= PASS_PS:
        what = f"{page_reporting_delay!r} is no longer than a pass; nearest is '2ms'"
        raise InputError(what, "page_reporting_delay")
    budget = -(-blocks // (PAGE_REPORTING_CAPACITY * BUDGET_SHARE))
    a_pass = min(blocks, PAGE_REPORTING_CAPACITY * (budget + 1))
    return preset(
        "bursts",
        {"limit": blocks} | others,
        span=format_size(PAGE << page_reporting_order),
        action="madvise",
        **passes(a_pass, delay_ps),
    )


def fork(memory: int | str = "1GiB", *, rate: str = "1/s", **others: Any) -> Storm:
    """Return a VMM that forks: all of its memory in one notifier call, under mmap_lock for writing.

    The kernel has no default rate for it. QEMU is never one: it asks for MADV_DONTFORK on guest memory
    (ram_block_add, system/physmem.c).

    Parameters
    ----------
    memory : str
        What the VM has, one VMA (copy_page_range, mm/memory.c, has one call a VMA).
    rate : str
        Forks a second.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Periodic, over all memory.
    """
    return preset("periodic", {"offset": "0B"} | others, rate=rate, span=memory, action="fork")
