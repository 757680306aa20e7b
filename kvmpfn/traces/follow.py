"""Follow each thread through its faults and invalidations, in the order of the lines: one compiled loop.

What an event means here is its role; which event of a recording has which role is `kvmpfn.traces.faults`'s.
Its codes are numbered in this file, since the compiler's cache is named by the files of this folder.
"""

from __future__ import annotations

from kvmpfn.core.jit import jit, kernel

__all__ = [
    "BEGINS",
    "CALL_FIELDS",
    "COUNTS",
    "FAULT_FIELDS",
    "ROLES",
    "THREAD_FIELDS",
    "WHERE",
    "WHY",
    "follow",
]

ROLES = (
    "none", "fault", "return", "gup", "faultin", "stale", "map", "requested", "set_spte", "changed", "mmio",
    "fast", "entry", "exit", "unmap", "begin", "start_return", "end", "seq", "end_return",
)  # fmt: skip
"""What an event can mean."""

FAULT_FIELDS = (
    "time_ps", "event", "thread", "vcpu", "address", "error_code", "reason", "exit_ps", "gup_ps",
    "faultin_ps", "stale_ps", "map_ps", "end_ps", "entry_ps", "level", "pfn", "state", "ret", "evidence",
    "where", "why", "broken",
)  # fmt: skip
"""Columns of the faults; -1 is what no event told."""

CALL_FIELDS = (
    "start_ps", "thread", "hva_start", "hva_end", "gfn_start", "gfn_end", "start_ret_ps", "end_ps", "seq_ps",
    "end_ret_ps", "zapped",
)  # fmt: skip
"""Columns of the invalidations; -1 is what no event told. `zapped` counts entries changed by the return."""

THREAD_FIELDS = 9
"""Words kept of a thread: its open fault, open invalidation, invalidation in progress, last fault that has
not entered the guest, exit reason and time, the sequence that its fault goes by, row and CPU of its last
event; -1 is none."""

COUNTS = 7
"""Words kept of the recording: faults, invalidations and events so far, whether it tells when a range begins
to be in progress (else that is when the notifier is called), the sequence, and the collapsed range."""

WHERE = ("", "pre_gup", "post_gup", "locked", "race", "unknown")
WHY = ("", "range", "false_range", "seq", "unknown")

NONE, FAULT, RETURN, GUP, FAULTIN, STALE, MAP, REQUESTED, SET_SPTE, CHANGED, MMIO, FAST = range(12)
ENTRY, EXIT, UNMAP, BEGIN, START_RETURN, END, SEQ, END_RETURN = range(12, 20)
(
    F_TIME, F_EVENT, F_THREAD, F_VCPU, F_ADDRESS, F_CODE, F_REASON, F_EXIT, F_GUP, F_FAULTIN, F_STALE,
    F_MAP, F_END, F_ENTRY, F_LEVEL, F_PFN, F_STATE, F_RET, F_EVIDENCE, F_WHERE, F_WHY, F_BROKEN,
) = range(22)  # fmt: skip
(
    C_TIME, C_THREAD, C_HVA_START, C_HVA_END, C_FIRST, C_LAST, C_START_RETURN, C_END, C_SEQ, C_END_RETURN,
    C_ZAPPED,
) = range(11)  # fmt: skip
T_FAULT, T_CALL, T_PROGRESS, T_LAST, T_REASON, T_EXIT, T_SEQUENCE, T_ROW, T_CPU = range(THREAD_FIELDS)
ALL_FAULTS, ALL_CALLS, ALL_EVENTS, BEGINS, MOVED, LOW, HIGH = range(COUNTS)

OPEN, RETURNED, PASSED, LOST = range(4)
"""State of a fault: no end seen, returned, the thread is past it, or its end was lost."""

RETRY = 1
"""RET_PF_RETRY, in all kernels."""

EVIDENCE_NONE, EVIDENCE_FIXED, EVIDENCE_EMULATE, EVIDENCE_SPURIOUS = range(4)
PRE_GUP, POST_GUP, LOCKED, RACE = range(1, 5)
RANGE, FALSE_RANGE, SEQUENCE = range(1, 4)

LEAF_BIT = 1 << 7
"""PT_PAGE_SIZE_MASK: an entry above the lowest level that maps a huge page."""

FROZEN = 0x5A0
"""REMOVED_SPTE, since 6.12 FROZEN_SPTE (arch/x86/kvm/mmu/spte.h): nobody's mapping."""

VALUE = (1 << 63) - 1
"""An entry less SHADOW_NONPRESENT_VALUE's bit (spte.h, since 6.10)."""

GFN = (1 << 52) - 1
LEVELS = 5

BROKEN = -2
"""In place of a thread's last row: events of it were lost since."""


@jit
def begin(mine, calls, threads, counts):  # type: ignore[no-untyped-def]
    """Count a thread's invalidation in: the collapsed range is its own, or widened if others are in progress.

    As mmu_invalidate_range_add does, virt/kvm/kvm_main.c; ranges outside the guest's memory have no part.
    """
    call = threads[mine, T_CALL]
    first, last = calls[call, C_FIRST], calls[call, C_LAST]
    alone = True
    for other in range(len(threads)):
        one = threads[other, T_PROGRESS]
        if one >= 0 and calls[one, C_FIRST] >= 0:
            alone = False
    if first >= 0 and alone:
        counts[LOW], counts[HIGH] = first, last
    elif first >= 0:
        counts[LOW], counts[HIGH] = min(counts[LOW], first), max(counts[HIGH], last)
    threads[mine, T_PROGRESS] = call


@kernel
def follow(  # type: ignore[no-untyped-def]  # numba has no types for a kernel's arguments
    role, thread, time, cpu, a, b, c, d, losses, faults, calls, threads, cpus, counts
) -> None:
    """Go on through a block of events, and fill in what they tell.

    Parameters
    ----------
    role, thread, time, cpu : ndarray of int64, shape (events,)
        Place in `ROLES`, number of the thread (from 0), time in ps, CPU (-1 if not recorded).
    a, b, c, d : ndarray of int64, shape (events,)
        Fields by role: ``fault`` vcpu, address, error code, which event; ``exit`` reason; ``requested`` gfn,
        pfn, level; ``set_spte`` gfn, level; ``changed`` gfn, level, new entry; ``mmio`` gfn; ``fast``
        address, spurious, fixed; ``unmap`` first and last byte, first and last gfn; the return probes what
        was returned.
    losses : ndarray of int64, shape (losses, 2)
        Event of the block before which events were lost, and the CPU (-1: any).
    faults, calls : ndarray of int64
        `FAULT_FIELDS` and `CALL_FIELDS`, with rows of -1 for all that may come.
    threads, cpus : ndarray of int64
        Shape (threads, THREAD_FIELDS), -1 to begin with; and shape (CPUs + 1,): last loss, first of any CPU.
    counts : ndarray of int64, shape (COUNTS,)
        What is kept of the recording.
    """
    lost = 0
    for place in range(len(role)):
        row = counts[ALL_EVENTS] + place
        mine = threads[thread[place]]
        while lost < len(losses) and losses[lost, 0] <= place:
            cpus[losses[lost, 1] + 1] = row
            lost += 1
        gap = max(cpus[0], cpus[mine[T_CPU] + 1], cpus[cpu[place] + 1])
        if gap > mine[T_ROW] >= 0:
            if mine[T_FAULT] >= 0:
                faults[mine[T_FAULT], F_STATE] = LOST
            mine[:T_ROW] = -1
            mine[T_ROW] = BROKEN
        what = role[place]
        broken = mine[T_ROW] == BROKEN
        if not broken or what == FAULT:
            mine[T_ROW] = row
        mine[T_CPU] = cpu[place]
        now = time[place]
        at = mine[T_FAULT]
        if what == FAULT:
            if at >= 0:
                faults[at, F_STATE] = PASSED
            at = mine[T_FAULT] = mine[T_LAST] = counts[ALL_FAULTS]
            counts[ALL_FAULTS] += 1
            one = faults[at]
            one[F_TIME], one[F_EVENT], one[F_THREAD] = now, d[place], thread[place]
            one[F_VCPU], one[F_ADDRESS], one[F_CODE] = a[place], b[place], c[place]
            one[F_REASON], one[F_EXIT] = mine[T_REASON], mine[T_EXIT]
            one[F_STATE], one[F_EVIDENCE], one[F_WHERE], one[F_WHY] = OPEN, EVIDENCE_NONE, 0, 0
            one[F_BROKEN] = broken
            mine[T_SEQUENCE] = counts[MOVED]
        elif what == ENTRY or what == EXIT:
            if at >= 0:
                faults[at, F_STATE] = PASSED
                mine[T_FAULT] = -1
            if what == ENTRY:
                if mine[T_LAST] >= 0:
                    faults[mine[T_LAST], F_ENTRY] = now
                mine[T_REASON] = mine[T_EXIT] = -1
            else:
                mine[T_REASON], mine[T_EXIT] = a[place], now
            mine[T_LAST] = -1
        elif what == UNMAP:
            mine[T_CALL], mine[T_PROGRESS] = counts[ALL_CALLS], -1
            one = calls[counts[ALL_CALLS]]
            counts[ALL_CALLS] += 1
            one[C_TIME], one[C_THREAD], one[C_HVA_START], one[C_HVA_END] = (
                now,
                thread[place],
                a[place],
                b[place],
            )
            one[C_FIRST], one[C_LAST], one[C_ZAPPED] = c[place], d[place], 0
            if not counts[BEGINS]:
                begin(thread[place], calls, threads, counts)
        elif what == BEGIN:
            if mine[T_CALL] >= 0:
                begin(thread[place], calls, threads, counts)
        elif what >= START_RETURN:
            if mine[T_CALL] >= 0:
                calls[mine[T_CALL], C_START_RETURN + what - START_RETURN] = now
                if (what == SEQ or what == END_RETURN) and mine[T_PROGRESS] >= 0:
                    mine[T_PROGRESS] = -1
                    counts[MOVED] += 1
                if what == END_RETURN:
                    mine[T_CALL] = -1
        elif what == CHANGED and mine[T_CALL] >= 0 and calls[mine[T_CALL], C_START_RETURN] < 0:
            calls[mine[T_CALL], C_ZAPPED] += 1
        elif at < 0 or what == NONE:
            continue
        elif what == RETURN:
            faults[at, F_STATE], faults[at, F_RET], faults[at, F_END] = RETURNED, a[place], now
            mine[T_FAULT] = -1
        elif what == GUP:
            faults[at, F_GUP] = now
        elif what == REQUESTED:
            faults[at, F_PFN], faults[at, F_LEVEL] = b[place], c[place]
        elif what == FAULTIN or what == STALE or what == MAP:
            one = faults[at]
            failed = 0
            if what == FAULTIN:
                one[F_FAULTIN] = now
                if a[place] == RETRY:
                    failed = PRE_GUP if one[F_GUP] < 0 else POST_GUP
            elif what == STALE:
                one[F_STALE] = now
                failed = LOCKED if a[place] else 0
            else:
                one[F_MAP] = now
                failed = RACE if a[place] == RETRY else 0
            if failed:
                one[F_WHERE] = failed
                one[F_WHY] = 0
            if failed and failed != RACE:
                # In an active range; else by the sequence, which gaps have no part in; else in a gap.
                gfn = (one[F_ADDRESS] >> 12) & GFN
                one[F_WHY] = SEQUENCE
                active = False
                for other in range(len(threads)):
                    call = threads[other, T_PROGRESS]
                    if call < 0 or calls[call, C_FIRST] < 0:
                        continue
                    active = True
                    if calls[call, C_FIRST] <= gfn < calls[call, C_LAST]:
                        one[F_WHY] = RANGE
                gap = active and counts[LOW] <= gfn < counts[HIGH]
                if one[F_WHY] == SEQUENCE and gap and mine[T_SEQUENCE] == counts[MOVED]:
                    one[F_WHY] = FALSE_RANGE
        else:
            gfn = (faults[at, F_ADDRESS] >> 12) & GFN
            page, level, evidence = a[place], 1, EVIDENCE_FIXED
            if what == SET_SPTE:
                level = b[place]
            elif what == CHANGED:
                level = b[place]
                entry = c[place] & VALUE
                if entry == 0 or entry == FROZEN or (level > 1 and not entry & LEAF_BIT):
                    continue
            elif what == MMIO:
                evidence = EVIDENCE_EMULATE
            elif not (b[place] or c[place]):
                mine[T_SEQUENCE] = counts[MOVED]  # the lockless path did nothing: the snapshot comes after it
                continue
            else:
                page = (page >> 12) & GFN
                evidence = EVIDENCE_SPURIOUS if b[place] else EVIDENCE_FIXED
            if 1 <= level <= LEVELS and (gfn ^ page) >> 9 * (level - 1) == 0:
                faults[at, F_EVIDENCE] = evidence
                if faults[at, F_LEVEL] < 0 and what < MMIO:
                    faults[at, F_LEVEL] = level
    counts[ALL_EVENTS] += len(role)
