"""Recordings of real KVM faults: ftrace text in, faults, invalidations and a replayable workload out."""

from kvmpfn.traces.statistics import Statistics, read_statistics
from kvmpfn.traces.trace import Trace, read_trace

__all__ = ["Statistics", "Trace", "read_statistics", "read_trace"]
