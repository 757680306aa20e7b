"""The fault path as orthogonal mechanisms, and the presets made of them.

A preset lists every mechanism in which its kernel differs from another, not only what it does with the
page's reference: figures that compare references vary that one mechanism of one preset.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kvmpfn.records import Flag, Record, Whole
from kvmpfn.units import InputError, nearest

__all__ = ["PRESETS", "FaultPath"]

_V6_1: dict[str, Any] = {
    "reference": "held",
    "put_batch": 1,
    "guarded": True,
    "seq_checked": True,
    "prechecks": False,
    "invalidate_ranges": "collapsed",
    "nonrefcounted": "refuse",
    "spte_bit": "none",
    "dirty_marking": "at_zap",
    "accessed_marking": "after_unlock",
    "accessed_on_retry": True,
    "zap_marks_page": True,
    "pfnmap_reference": True,
    "mmu_lock": "read",
    "early_spurious": False,
    "huge_split": "zap",
    "aging_lock": "write",
    "aging_flush": True,
    "zap_yields": "preemption",
    "table_list_lock": True,
    "recover_huge": "zap",
}
# The fault splits huge pages in place since v6.2, counts tables with an atomic since v6.3, checks before
# GUP since v6.8; the run-time rule of rwlock_needbreak came between v6.8 and v6.12 and is taken for both.
_V6_8 = _V6_1 | {
    "prechecks": True,
    "huge_split": "in_place",
    "zap_yields": "full",
    "table_list_lock": False,
}
_V7_SERIES = _V6_1 | {"reference": "early_put", "nonrefcounted": "map", "spte_bit": "4k"}
_V11_SERIES = _V7_SERIES | {"spte_bit": "all", "accessed_marking": "before_unlock"}
_V6_13 = _V6_8 | {
    "reference": "locked_put",
    "nonrefcounted": "map",
    "dirty_marking": "at_map",
    "accessed_marking": "locked_release",
    "accessed_on_retry": False,
    "zap_marks_page": False,
    "pfnmap_reference": False,
    "aging_flush": False,
    "recover_huge": "in_place",
}
_V6_16 = _V6_13 | {"early_spurious": True, "aging_lock": "none"}
_NO_REF = _V6_1 | {
    "reference": "none",
    "nonrefcounted": "map",
    "dirty_marking": "none",
    "accessed_marking": "none",
    "accessed_on_retry": False,
    "zap_marks_page": False,
    "pfnmap_reference": False,
}
_MECHANISMS = {
    "v6.1": _V6_1,
    "v6.8": _V6_8,
    "v7_series": _V7_SERIES,
    "v11_series": _V11_SERIES,
    "v6.13": _V6_13,
    "v6.16": _V6_16,
    "no_ref": _NO_REF,
}


class FaultPath(Record):
    """A preset of the fault path, perhaps with some mechanisms changed.

    Parameters
    ----------
    preset : str
        Name of one of `PRESETS`.
    **changes
        Mechanisms that differ from the preset's, by the names below; and `name`.

    Attributes
    ----------
    preset : str
        Where the mechanisms that were not named come from.
    name : str
        What figures and tables call it; the preset and the changes, if not given.
    reference : {"held", "early_put", "locked_put", "none"}
        When the reference that GUP took is put: after mmu_lock is released, at once, before mmu_lock is
        released; or GUP takes none (no kernel can).
    put_batch : int
        References that a vCPU saves up before it puts them, one atomic a folio; 1 puts each by itself, as
        every kernel does.
    guarded : bool
        Whether MMU notifiers zap what the fault installs.
    seq_checked : bool
        Whether the invalidation sequence is checked under mmu_lock.
    prechecks : bool
        Whether staleness is also checked before GUP and before mmu_lock, without a lock.
    invalidate_ranges : {"collapsed", "list"}
        What of the invalidations in progress a fault is compared with: the one interval that covers them all,
        or each by itself, which no kernel keeps.
    nonrefcounted : {"map", "refuse"}
        What happens to a page with a struct page whose count is zero.
    spte_bit : {"none", "4k", "all"}
        Which SPTEs note that their page is reference counted.
    dirty_marking : {"at_zap", "at_map", "none"}
        When the page is marked dirty.
    accessed_marking : {"after_unlock", "before_unlock", "locked_release", "none"}
        When the page is marked accessed; ``locked_release`` is with the put under mmu_lock.
    accessed_on_retry : bool
        Whether a fault that ends in RETRY marks the page accessed too.
    zap_marks_page : bool
        Whether a zap touches the struct page.
    pfnmap_reference : bool
        Whether a PFNMAP page with a reference-counted struct page is referenced.
    mmu_lock : {"read", "exclusive"}
        How faults take mmu_lock.
    early_spurious : bool
        Whether a present leaf that allows the access ends the fault before the entry is made.
    huge_split : {"zap", "in_place"}
        What a fault does to a huge leaf in its way.
    aging_lock : {"write", "none"}
        How aging takes mmu_lock.
    aging_flush : bool
        Whether aging flushes TLBs.
    zap_yields : {"preemption", "full", "never"}
        Which kernels let a zap give up a contended mmu_lock: those with CONFIG_PREEMPTION, those that run
        fully preemptible, none.
    table_list_lock : bool
        Whether new tables go on a list under tdp_mmu_pages_lock; else they are counted atomically.
    recover_huge : {"zap", "in_place"}
        How huge mappings come back when dirty logging stops.

    Examples
    --------
    >>> FaultPath("v6.1", reference="early_put").name
    'v6.1 reference=early_put'
    """

    preset: str
    name: str
    reference: Literal["held", "early_put", "locked_put", "none"]
    put_batch: Annotated[Whole, Field(ge=1, le=31)]
    guarded: Flag
    seq_checked: Flag
    prechecks: Flag
    invalidate_ranges: Literal["collapsed", "list"]
    nonrefcounted: Literal["map", "refuse"]
    spte_bit: Literal["none", "4k", "all"]
    dirty_marking: Literal["at_zap", "at_map", "none"]
    accessed_marking: Literal["after_unlock", "before_unlock", "locked_release", "none"]
    accessed_on_retry: Flag
    zap_marks_page: Flag
    pfnmap_reference: Flag
    mmu_lock: Literal["read", "exclusive"]
    early_spurious: Flag
    huge_split: Literal["zap", "in_place"]
    aging_lock: Literal["write", "none"]
    aging_flush: Flag
    zap_yields: Literal["preemption", "full", "never"]
    table_list_lock: Flag
    recover_huge: Literal["zap", "in_place"]

    def __init__(self, preset: str = "v6.1", **changes: Any) -> None:
        if preset not in _MECHANISMS:
            near = nearest(preset, _MECHANISMS)
            raise InputError(
                f"no preset {preset!r}; nearest is {near!r} of {', '.join(_MECHANISMS)}", "FaultPath"
            )
        base = _MECHANISMS[preset]
        changes.setdefault("name", _name(preset, changes))
        super().__init__(preset=preset, **(base | changes))

    @property
    def changes(self) -> dict[str, Any]:
        """The mechanisms that differ from the preset's."""
        base = _MECHANISMS[self.preset]
        return {key: getattr(self, key) for key in base if getattr(self, key) != base[key]}

    def replace(self, **changes: Any) -> FaultPath:
        """Return a copy with some mechanisms changed; its name follows, unless it was given."""
        mechanisms = self.changes | changes
        if self.name != _name(self.preset, self.changes):
            mechanisms.setdefault("name", self.name)
        return FaultPath(**({"preset": self.preset} | mechanisms))

    def plain(self) -> Any:
        """Return the preset's name, or the preset and what differs."""
        named = {} if self.name == _name(self.preset, self.changes) else {"name": self.name}
        return {"preset": self.preset} | named | self.changes if named or self.changes else self.preset


def _name(preset: str, changes: dict[str, Any]) -> str:
    """Name a preset with changes; those that change nothing are not named."""
    base = _MECHANISMS[preset]
    differing = [f"{key}={changes[key]}" for key in base if key in changes and changes[key] != base[key]]
    return " ".join([preset, *differing])


PRESETS: dict[str, FaultPath] = {preset: FaultPath(preset) for preset in _MECHANISMS}
"""The presets by name, from the oldest mechanism to the hypothetical bound."""
