"""Recordings of real KVM faults: events in, faults, invalidations and a workload out; and summaries."""

from kvmpfn.traces.events.bpftrace import read_bpftrace
from kvmpfn.traces.events.read import convert, read_blocks, read_records
from kvmpfn.traces.events.records import Records
from kvmpfn.traces.memslots import Memslots
from kvmpfn.traces.summaries.counters import Counters
from kvmpfn.traces.summaries.tables import read_counters
from kvmpfn.traces.trace import Trace, read_trace

__all__ = [
    "Counters",
    "Memslots",
    "Records",
    "Trace",
    "convert",
    "read_blocks",
    "read_bpftrace",
    "read_counters",
    "read_records",
    "read_trace",
]
