"""What a run of the oracle found, by the names of `kvmpfn.core.names`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvmpfn.core.names import PARTS, RMW_CONTEXTS

Row = tuple[int, int, str, int, int]
"""Time, actor, step, the vCPU's gfn, and the start of the actor's last invalidation."""


@dataclass
class Tally:
    """All that is counted for one VM."""

    counters: Counter[str] = field(default_factory=Counter)
    rmw: dict[str, Counter[str]] = field(default_factory=lambda: {c: Counter() for c in RMW_CONTEXTS})
    transfers: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)


@dataclass
class Found:
    """A whole run.

    Attributes
    ----------
    log : list of Row
        Every step, in order.
    vms : list of Tally
        Counters, atomics by context and line, transfers by distance, time by part.
    vcpus, clients : list of dict
        By `VCPU_FIELDS` and `CLIENT_FIELDS`.
    hist, tries : Counter
        Resolved faults by latency bucket, and by number of attempts.
    died : list of int
        VMs that a refused fault ended.
    """

    log: list[Row]
    vms: list[Tally]
    vcpus: list[dict[str, int]]
    clients: list[dict[str, int]]
    hist: Counter[int]
    tries: Counter[int]
    died: list[int]

    def total(self, name: str) -> int:
        """Return a counter, summed over VMs."""
        return sum(vm.counters[name] for vm in self.vms)

    def check(self) -> None:
        """Hold the identities of docs/model.md 13, which no run may break."""
        for vm in self.vms:
            c = vm.counters
            retry = sum(n for name, n in c.items() if name.startswith("retry."))
            resolved = c["pf_fixed"] + c["pf_spurious"] + c["pf_emulate"] + c["pf_error"]
            assert c["pf_taken"] == resolved + retry
            assert c["gets"] == c["puts"]
            assert c["remote_tlb_flush"] <= c["remote_tlb_flush_requests"]
            assert set(vm.parts) <= set(PARTS)
        for v in self.vcpus:
            assert v["end"] - v["start"] == v["guest"] + v["faults"] + v["kicked"]
        assert sum(sum(vm.parts.values()) for vm in self.vms) == sum(v["faults"] for v in self.vcpus)
