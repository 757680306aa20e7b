"""How fast the simulator is, beside programs that say what is possible (``kvmpfn bench``)."""

from kvmpfn.bench.cases import FULL, QUICK, Plan, bench_16g, case
from kvmpfn.bench.report import SCHEMA, Report, split_readme, write_readme
from kvmpfn.bench.rounds import measure

__all__ = [
    "FULL",
    "QUICK",
    "SCHEMA",
    "Plan",
    "Report",
    "bench_16g",
    "case",
    "measure",
    "split_readme",
    "write_readme",
]
