"""Storms that the host's memory management makes in the background, and readers of the dirty log.

As in presets.py: each is one `Storm`, with the kernel's names and defaults where it has them.
"""

from __future__ import annotations

from typing import Any

from kvmpfn.storms.knobs import PASS_PS, at_least, passes, per_second, preset, scan
from kvmpfn.storms.storm import Storm
from kvmpfn.units import PAGE, InputError, format_size, parse_size, parse_time

__all__ = ["dirty_log", "khugepaged", "ksm", "mprotect", "reclaim"]

PAGES_OF_PMD = 512


def ksm(
    *,
    pages_to_scan: int = 100,
    sleep_millisecs: int = 20,
    mergeable: float = 1.0,
    **others: Any,
) -> Storm:
    """Return ksmd, which scans pages in batches and merges those whose contents it has seen before.

    A merge is two notifier calls of a page: the page is write-protected, then replaced by the shared one. A
    page that is merged already, or is not there, is passed over without a call.

    Parameters
    ----------
    pages_to_scan, sleep_millisecs : int
        As in ``/sys/kernel/mm/ksm``.
    mergeable : float
        Share of the pages scanned that are merged, above 0 up to 1: **assumed**, since the model has no
        contents. Merges then come one page after the other, not scattered.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Periodic merges of a page in scan order, on average `mergeable` * `pages_to_scan` each
        `sleep_millisecs`.

    Raises
    ------
    InputError
        A number is out of range.

    Notes
    -----
    Defaults: mm/ksm.c, ksm_thread_pages_to_scan and ksm_thread_sleep_millisecs; try_to_merge_one_page,
    write_protect_page and replace_page for the calls. The time that a scan takes is left out.
    """
    at_least(1, pages_to_scan, "pages_to_scan")
    at_least(1, sleep_millisecs, "sleep_millisecs")
    if not 0 < mergeable <= 1:
        raise InputError(f"{mergeable!r} is not a share above 0 up to 1; nearest is 1.0", "mergeable")
    merges = max(1, round(pages_to_scan * mergeable * 10**6))
    return preset(
        "periodic",
        others,
        rate=per_second(merges, sleep_millisecs * 10**15),
        span=format_size(PAGE),
        action="ksm",
        **scan(others),
    )


def khugepaged(
    *, pages_to_scan: int = 8 * PAGES_OF_PMD, scan_sleep_millisecs: int = 10000, **others: Any
) -> Storm:
    """Return khugepaged, which makes huge pages of small ones (of regions backed by ``thp``).

    Parameters
    ----------
    pages_to_scan, scan_sleep_millisecs : int
        As in ``/sys/kernel/mm/transparent_hugepage/khugepaged``; whole 2M pages of it.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Bursts of `pages_to_scan` / 512 2M pages each `scan_sleep_millisecs`, in scan order; a 2M page that is
        huge, or cannot be made so, is passed over.

    Raises
    ------
    InputError
        A number is out of range.

    Notes
    -----
    Defaults: mm/khugepaged.c, khugepaged_pages_to_scan (HPAGE_PMD_NR * 8) and
    khugepaged_scan_sleep_millisecs. max_ptes_none is at its default, 511: one page is enough; max_ptes_swap
    is taken as 0. What a failed allocation of a huge page sleeps (alloc_sleep_millisecs) is left out.
    """
    at_least(PAGES_OF_PMD, pages_to_scan, "pages_to_scan")
    at_least(2, scan_sleep_millisecs, "scan_sleep_millisecs")
    return preset(
        "bursts",
        others,
        span=format_size(PAGES_OF_PMD * PAGE),
        action="khugepaged",
        **passes(pages_to_scan // PAGES_OF_PMD, scan_sleep_millisecs * 10**9),
        **scan(others),
    )


def reclaim(rate: str = "1k/s", **others: Any) -> Storm:
    """Return kswapd under memory pressure, or MADV_PAGEOUT: pages are swapped out one by one.

    Parameters
    ----------
    rate : str
        Pages a second: the kernel reclaims as many as are asked for, and has no rate of its own.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Poisson, single pages at random places; each is unmapped by itself (try_to_unmap), with a notifier
        call of its own.
    """
    return preset("poisson", others, rate=rate, span=format_size(PAGE), action="reclaim")


def mprotect(span: int | str = "2MiB", *, rate: str = "100/s", **others: Any) -> Storm:
    """Return a process that forbids writing to a part of guest memory and allows it again.

    Parameters
    ----------
    span : str
        What a pair of calls covers.
    rate : str
        Pairs a second; the kernel has no default for it.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Periodic, at random places; two notifier calls for each GiB of guest memory that the span touches.
    """
    return preset("periodic", others, rate=rate, span=span, action="mprotect")


def dirty_log(
    memory: int | str = "1GiB",
    *,
    interval: int | str = "1s",
    clear_bitmap_shift: int = 18,
    **others: Any,
) -> Storm:
    """Return live migration's reader: each interval all of the dirty log is read and cleared, chunk by chunk.

    Parameters
    ----------
    memory : str
        What the VM has.
    interval : str
        From one pass to the next: **assumed**; a migration's passes follow each other as fast as the network
        takes the pages.
    clear_bitmap_shift : int
        Pages that one KVM_CLEAR_DIRTY_LOG covers, as a power of two; QEMU's x-clear-bitmap-shift, from 6 on.
    **others
        Fields of `Storm`.

    Returns
    -------
    Storm
        Bursts of as many calls as there are chunks, in scan order. It is no invalidation; the scenario needs
        ``dirty_logging``.

    Raises
    ------
    InputError
        A number is out of range.

    Notes
    -----
    Default: CLEAR_BITMAP_SHIFT_DEFAULT, migration/ram.c of QEMU: 1 GiB a call.
    """
    at_least(6, clear_bitmap_shift, "clear_bitmap_shift")
    if clear_bitmap_shift > 31:
        raise InputError(f"{clear_bitmap_shift!r} is more than 31; nearest is 31", "clear_bitmap_shift")
    every_ps = parse_time(interval)
    if every_ps <= PASS_PS:
        raise InputError(f"{interval!r} is no longer than a pass; nearest is '2ms'", "interval")
    size, chunk = parse_size(memory), PAGE << clear_bitmap_shift
    return preset(
        "bursts",
        others,
        span=format_size(min(chunk, size)),
        action="clear_dirty_log",
        **passes(-(-size // chunk), every_ps),
        **scan(others),
    )
