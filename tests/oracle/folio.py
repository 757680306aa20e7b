"""A struct page: its line, its flags, KVM's references (docs/model.md 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle.lines import Line

if TYPE_CHECKING:
    from oracle.actor import Actor


class Folio:
    """A struct page: the line of its count and flags, the flags that matter, and KVM's references."""

    def __init__(self, *, on_lru: bool = False, hugetlb: bool = False, reserved: bool = False) -> None:
        self.line = Line()
        self.on_lru, self.hugetlb, self.reserved = on_lru, hugetlb, reserved
        self.referenced = self.active = self.workingset = False
        self.uses = 0  # MGLRU's two-bit count
        self.in_flight = 0

    def renew(self, actor: Actor) -> None:
        """Be the folio of a new frame, which the actor has just written."""
        self.referenced = self.active = self.workingset = self.on_lru = False
        self.uses = 0
        if not self.in_flight:
            self.line.owner, self.line.busy = actor.thread, actor.world.env.now

    def like(self, huge: Folio) -> None:
        """Take over the flags of the huge page that it was a part of."""
        self.referenced, self.active, self.workingset = huge.referenced, huge.active, huge.workingset
        self.uses, self.on_lru = huge.uses, huge.on_lru

    def mark_accessed(self, actor: Actor, lru: str) -> None:
        """mark_page_accessed (mm/swap.c): what it takes depends on flags and on the kind of LRU."""
        if lru == "off" or self.reserved:
            return
        if not self.referenced:
            self.referenced = True
            actor.add(self.line, "folio", "folio")
        elif self.hugetlb:
            self.referenced = False
            actor.add(self.line, "folio", "folio")
        elif lru == "mglru":
            if not self.workingset:
                self.workingset = True
                actor.add(self.line, "folio", "folio")
            elif self.uses < 3:
                self.uses += 1
                actor.cas(self.line, "folio", "folio")
        elif not self.active:
            self.active, self.referenced = True, False
            actor.add(self.line, "folio", "folio")
            actor.add(self.line, "folio", "folio")
            if self.on_lru:
                actor.rmw("host_folio", 4)  # when the batch drains

    def mark_dirty(self, actor: Actor) -> None:
        """set_page_dirty, unless the page is none that is tracked (kvm_is_ad_tracked_page)."""
        if not self.reserved:
            actor.add(self.line, "folio", "folio")


class PutBatch:
    """References that a vCPU has still to put, by folio in order of coming."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.since: dict[Folio, list[int]] = {}

    @property
    def full(self) -> bool:
        return self.size > 1 and sum(map(len, self.since.values())) >= self.size

    def add(self, folio: Folio, since: int) -> None:
        """Put later."""
        self.since.setdefault(folio, []).append(since)
