"""Recordings of real KVM faults: ftrace text in, faults, invalidations and a replayable workload out."""

from kvmpfn.traces.read import convert, read_blocks, read_records
from kvmpfn.traces.records import Records
from kvmpfn.traces.statistics import Statistics, read_statistics
from kvmpfn.traces.trace import Trace, read_trace

__all__ = [
    "Records",
    "Statistics",
    "Trace",
    "convert",
    "read_blocks",
    "read_records",
    "read_statistics",
    "read_trace",
]
