"""The model held against the real thing: published tables, and recordings of a real KVM."""

from kvmpfn.validation.locked import read_locked, reconcile
from kvmpfn.validation.page_tables import counted_tables, linked_tables, page_tables
from kvmpfn.validation.ratios import per_invalidation, ratios
from kvmpfn.validation.recorded import recorded_blocks
from kvmpfn.validation.storms import Pace, predict
from kvmpfn.validation.tables import read_table, residuals

__all__ = [
    "Pace",
    "counted_tables",
    "linked_tables",
    "page_tables",
    "per_invalidation",
    "predict",
    "ratios",
    "read_locked",
    "read_table",
    "reconcile",
    "recorded_blocks",
    "residuals",
]
