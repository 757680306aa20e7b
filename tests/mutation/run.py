"""Plant faults in copies of the package, and see who catches them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutation.faults import FAULTS, Fault

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = TESTS.parent / "kvmpfn"
TIMEOUT = 120  # a fault may make the engine run for ever: that, too, is noticed

LOOK = """
import sys
import kvmpfn
from pathlib import Path
assert Path(kvmpfn.__file__).is_relative_to(sys.argv[1]), kvmpfn.__file__
from mutation.cases import CASES
from oracle.compare import difference
for name, scenario in CASES.items():
    differs = difference(scenario)
    if differs:
        print(f"{name}: {differs.splitlines()[0]}")
        sys.exit(3)
"""
"""What runs in a process of its own, on the copy; 3 is its answer when engine and oracle differ."""


def plant(fault: Fault | None, folder: Path) -> None:
    """Copy the package into a folder, with the fault in it if one is given."""
    shutil.copytree(PACKAGE, folder / "kvmpfn", ignore=shutil.ignore_patterns("__pycache__"))
    if fault is None:
        return
    file = folder / "kvmpfn" / "core" / fault.file
    text = file.read_text(encoding="utf-8")
    found = text.count(fault.old)
    if found != 1:
        raise ValueError(f"{fault.file}: {fault.old.strip()!r} stands there {found} times, not once")
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def look(fault: Fault | None) -> str:
    """Return what gave a fault away: where the oracle differs, or that the engine itself failed; else "".

    The engine runs uncompiled, so that no compiled code of another source can lie.
    """
    with tempfile.TemporaryDirectory() as folder:
        plant(fault, Path(folder))
        path = os.pathsep.join([folder, str(TESTS)])
        env = os.environ | {"PYTHONPATH": path, "NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                [sys.executable, "-c", LOOK, folder],
                env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "the engine runs for ever"
    if ran.returncode == 0:
        return ""
    last = (ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1]
    # Only the engine's own invariants may fail instead: an import that fails must not pass for a catch.
    if ran.returncode != 3 and "InvariantError" not in last and "IndexError" not in last:
        raise RuntimeError(f"{fault and fault.what}: {ran.stderr}")
    return last


def main() -> int:
    """Look at the unharmed engine and at every fault; print what caught it; 1 if one survives."""
    if unharmed := look(None):
        print(f"the engine as it is differs from the oracle: {unharmed}")
        return 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        caught = list(pool.map(look, FAULTS))
    for fault, by in zip(FAULTS, caught, strict=True):
        print(f"{'caught' if by else 'SURVIVES':<9} {fault.file:<16} {fault.what}\n{'':<26} {by}")
    print(f"{sum(map(bool, caught))} of {len(FAULTS)} faults caught")
    return int(not all(caught))
