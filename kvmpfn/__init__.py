"""A model of how KVM turns guest page faults into host pages.

What users need is here, and is loaded when it is first asked for: ``import kvmpfn`` itself loads nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "FaultPath": "kvmpfn.fault_path",
    "Host": "kvmpfn.hosts",
    "InputError": "kvmpfn.units",
    "Region": "kvmpfn.scenario",
    "Run": "kvmpfn.results",
    "Scenario": "kvmpfn.scenario",
    "Storm": "kvmpfn.storms",
    "Study": "kvmpfn.study",
    "check_protocol": "kvmpfn.protocol",
    "compare": "kvmpfn.study",
    "load": "kvmpfn.results",
    "memory_ledger": "kvmpfn.memory",
    "read_bpftrace": "kvmpfn.traces",
    "read_counters": "kvmpfn.traces",
    "read_trace": "kvmpfn.traces",
    "scenario_ledger": "kvmpfn.memory",
    "selftest": "kvmpfn.selftests",
    "show_versions": "kvmpfn.versions",
    "simulate": "kvmpfn.simulator",
    "sweep": "kvmpfn.study",
}
_MODULES = ("storms", "workloads")

__all__ = [
    "__version__",
    *_HOMES,
    *_MODULES,
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("kvmpfn")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"kvmpfn.{name}")
    else:
        raise AttributeError(f"module 'kvmpfn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
