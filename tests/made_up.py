"""Runs that no engine made: arrays of the right shapes, filled from a generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmpfn.core import layout, names
from kvmpfn.results import Run
from kvmpfn.scenario import Scenario

MEMORY = ("kvm_tables", "kvm_table_bytes")


def make_run(scenario: Scenario | None = None, *, log: int = 0, **changes: Any) -> Run:
    """Make up a run, the same for the same scenario; `changes` go into its meta."""
    s = Scenario(vcpus=4, memory="64MiB") if scenario is None else scenario
    draw = np.random.default_rng(int(s.digest()[:15], 16))
    clients, bins = len(s.clients), 8

    def whole(*shape: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return draw.integers(1, 1000, shape, dtype=np.int64)

    arrays = {
        "counters": whole(s.vms, len(names.COUNTERS)),
        "rmw": whole(s.vms, len(names.RMW_CONTEXTS), len(names.RMW_LINES)),
        "transfers": whole(s.vms, len(names.DISTANCES)),
        "parts": whole(s.vms, len(names.PARTS)),
        "hist": np.zeros(layout.HIST_BUCKETS, dtype=np.int64),
        "tries": np.zeros(layout.TRIES_BUCKETS, dtype=np.int64),
        "vcpus": whole(s.vms * s.vcpus, len(names.VCPU_FIELDS)),
        "clients": whole(clients, len(names.CLIENT_FIELDS)),
        "timeline": whole(bins, len(names.TIMELINE)),
        "memory": whole(len(MEMORY)),
        "log": whole(log, len(names.LOG_FIELDS)) % len(names.STEPS),
    }
    arrays["hist"][1000:1010] = 7
    arrays["tries"][1:4] = (60, 9, 1)
    meta = {
        "end_ps": 10**9,
        "timeline_bin_ps": 1 << 20,
        "log_seen": log,
        "events": 12345,
        "assumed": ["zap_leaf"],
        "died": [],
        "memory_names": list(MEMORY),
    }
    return Run(scenario=s, arrays=arrays, meta=meta | changes)
