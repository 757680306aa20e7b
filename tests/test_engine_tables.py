"""The tables the engine built, read back: their leaves and number are what the counters say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kvmpfn
from kvmpfn.core import layout as L
from kvmpfn.core.engine import prepare, run_until
from kvmpfn.core.names import COUNTERS
from kvmpfn.fault_path import PRESETS
from kvmpfn.scenario import Region, Scenario
from kvmpfn.simulator import _World
from kvmpfn.storms import closed_loop
from kvmpfn.workloads import uniform


def scan(words, table, level):
    """Leaves by level, and the number of tables under (and with) this one."""
    leaves, tables = np.zeros(4, dtype=int), 1
    for entry in words[table : table + 512]:
        if entry & L.SPTE_TABLE:
            below, more = scan(words, entry >> L.SPTE_PFN_SHIFT, level - 1)
            leaves += below
            tables += more
        elif entry & L.SPTE_PRESENT:
            leaves[level] += 1
    return leaves, tables


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backing", ["anon", "thp"])
def test_counters_match_the_tables(preset, levels, backing):
    """Invariant 17, with zaps, refaults and huge-leaf splits (logging without eager splitting)."""
    region = Region("8MiB", backing=backing, mapped=True)
    scenario = Scenario(
        vcpus=4,
        memory=[region],
        fault_path=preset,
        levels=levels,
        dirty_logging=backing == "thp",
        eager_page_split=False,
        workload=uniform(writes=0.5, accesses=800),
        storms=[closed_loop(think="2us", span="64KiB", hold="1us")],
    )
    world = _World(scenario, 0, True, 256)
    prepare(world.words)
    while run_until(world.words, 1 << 16):
        pass
    run = world.result()
    counters = dict(zip(COUNTERS, run.arrays["counters"][0], strict=True))
    leaves, tables = scan(world.words, world.words[world.vm_at[0] + L.ROOT], levels)
    assert [counters["pages_4k"], counters["pages_2m"], counters["pages_1g"]] == list(leaves[1:])
    assert tables == counters["tables_built"] + 1
    assert counters["zapped"] > 0
    if backing == "thp":
        assert counters["huge_splits"] > 0


def test_an_edited_helper_is_not_run_from_a_stale_cache(tmp_path):
    """The cache is keyed by all core sources: after an edit in another file the new code runs."""
    package = tmp_path / "kvmpfn"
    shutil.copytree(Path(kvmpfn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from kvmpfn.core.entry import entry; print(entry(1))"
    (package / "core" / "helper.py").write_text(
        "from .jit import jit\n\n@jit\ndef helper(x):\n    return x + 1\n"
    )
    (package / "core" / "entry.py").write_text(
        "from .helper import helper\nfrom .jit import kernel\n\n"
        "@kernel\ndef entry(x):\n    return helper(x)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "KVMPFN_CACHE_DIR": str(tmp_path / "cache")}

    def answer():
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert answer() == "2"
    assert list((tmp_path / "cache").rglob("*.nbi"))
    helper = package / "core" / "helper.py"
    stamp = helper.stat()
    helper.write_text(helper.read_text().replace("x + 1", "x + 5"))
    os.utime(helper, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert answer() == "6"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    out = subprocess.run(
        [sys.executable, "-c", "import kvmpfn.core.events; from kvmpfn.core.jit import kernel;"
         "print(kernel(lambda x: x + 1)(1))"],
        env=os.environ | {"KVMPFN_CACHE_DIR": str(blocked)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.strip() == "2"
