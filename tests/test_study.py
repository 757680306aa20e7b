"""Studies: shared draws, exact pairing, the same results whoever runs them, and a store to go on from."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import make_run

import kvmpfn as kp
from kvmpfn.results import Run
from kvmpfn.scenario import Scenario
from kvmpfn.study import T_975, T_975_BEYOND, Study, compare, replica_seed, sweep, t_quantile
from kvmpfn.units import InputError

SCENARIO = Scenario(
    vcpus=4, memory="4MiB", storms=[kp.storms.poisson(rate="20k/s", span="64KiB", hold="4us")]
)
PATHS = ["v6.1", "v6.13"]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[Scenario]:
    """Put made-up runs in the engine's place; the list holds what was simulated."""
    asked: list[Scenario] = []

    def simulate(scenario: Scenario, **_: object) -> Run:
        asked.append(scenario)
        return make_run(scenario)

    module = types.ModuleType("kvmpfn.simulator")
    module.simulate = simulate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvmpfn.simulator", module)
    return asked


def digests(study: Study) -> list[str]:
    return list(study.frame["digest"])


def test_a_sweep_is_every_combination_in_order(stub: list[Scenario]) -> None:
    axes = {"storms.0.rate": ["1k/s", "2k/s"], "vcpus": [2, 4, 8]}
    study = sweep(SCENARIO, axes, replicas=2, executor="serial")
    frame = study.frame
    assert len(frame) == len(stub) == 12
    assert list(frame["storms.0.rate"][:6]) == ["1k/s"] * 6
    assert list(frame["vcpus"][:6]) == [2, 2, 4, 4, 8, 8]
    assert [s.vcpus for s in stub[:6]] == [2, 2, 4, 4, 8, 8]
    assert stub[-1].storms[0].rate == "2k/s"
    assert frame["faults"].tolist() == [make_run(s).faults for s in stub]
    assert frame.attrs["units"]["latency.mean"] == "ps"


def test_replicas_share_their_seeds_across_cells(stub: list[Scenario]) -> None:
    frame = compare(SCENARIO, fault_path=PATHS, replicas=3, executor="serial").frame
    seeds = frame.pivot(index="replica", columns="fault_path", values="seed")
    assert (seeds["v6.1"] == seeds["v6.13"]).all()
    assert seeds["v6.1"].is_unique and seeds["v6.1"][0] == SCENARIO.seed


def test_replica_seeds_are_fixed_and_do_not_collide() -> None:
    assert replica_seed(1, 0) == 1
    # Written down once: a stored study must find its runs again.
    assert replica_seed(1, 1) == 0xBFEF8030DDC2D772
    seeds = {replica_seed(seed, r) for seed in range(50) for r in range(1, 50)}
    assert len(seeds) == 50 * 49
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    Scenario(seed=replica_seed((1 << 64) - 1, 7))


def test_paired_differences_are_taken_replica_by_replica(stub: list[Scenario]) -> None:
    study = compare(SCENARIO, fault_path=[*PATHS, "no_ref"], replicas=5, executor="serial")
    row = study.paired(metric="retry").iloc[0]
    before = [run.metric("retry") for run in study.runs[0]]
    after = [run.metric("retry") for run in study.runs[1]]
    differences = [b - a for a, b in zip(before, after, strict=True)]
    half = 2.776 * statistics.stdev(differences) / math.sqrt(5)
    assert row["fault_path"] == "v6.13"
    assert row["difference"] == pytest.approx(statistics.mean(differences))
    assert (row["low"], row["high"]) == pytest.approx((row["difference"] - half, row["difference"] + half))
    assert row["baseline"] == pytest.approx(statistics.mean(before))
    assert row["relative"] == pytest.approx(row["difference"] / row["baseline"])
    back = study.paired("v6.13", "retry")
    assert list(back["fault_path"]) == ["v6.1", "no_ref"]
    assert back["difference"][0] == pytest.approx(-row["difference"])


def test_a_baseline_of_a_grid_names_its_axes(stub: list[Scenario]) -> None:
    study = sweep(SCENARIO, {"vcpus": [2, 4], "fault_path": PATHS}, replicas=2, executor="serial")
    paired = study.paired({"fault_path": "v6.1"}, "faults")
    assert list(paired["vcpus"]) == [2, 4]
    assert set(paired["fault_path"]) == {"v6.13"}
    mean = study.summary("faults").set_index(["vcpus", "fault_path"])["mean"]
    assert list(paired["baseline"]) == [mean[2, "v6.1"], mean[4, "v6.1"]]
    whole = study.paired({"vcpus": 2, "fault_path": "v6.1"}, "faults")
    assert len(whole) == 3 and set(whole["baseline"]) == {mean[2, "v6.1"]}


def test_one_replica_has_no_interval(stub: list[Scenario]) -> None:
    study = compare(SCENARIO, vcpus=[1, 2], replicas=1, executor="serial")
    assert study.summary()[["low", "high"]].isna().all(axis=None)
    assert study.paired()[["low", "high"]].isna().all(axis=None)
    assert math.isnan(t_quantile(0))


def test_t_quantiles_fall_to_the_normal_one() -> None:
    values = [t_quantile(n) for n in range(1, 400)]
    assert values[:30] == list(T_975)
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert values[-1] == T_975_BEYOND[0][1] > 1.95996


def test_parts_of_a_scenario_are_labelled(stub: list[Scenario]) -> None:
    early = kp.FaultPath("v6.1", reference="early_put")
    study = compare(SCENARIO, fault_path=["v6.1", early], replicas=1, executor="serial")
    assert [cell["fault_path"] for cell in study.cells] == ["v6.1", "v6.1 reference=early_put"]
    assert len(study.paired(baseline=early)) == 1
    hosts = ["icelake_sp_2s", kp.Host.scaled("icelake_sp_2s", sockets=4)]
    study = compare(SCENARIO, host=hosts, replicas=1, executor="serial")
    assert study.cells[0]["host"] == "icelake_sp_2s" and "extrapolated" in study.cells[1]["host"]
    study = sweep(SCENARIO, {"memory": ["4MiB", [kp.Region("8MiB")]]}, replicas=1, executor="serial")
    assert "8MiB" in study.cells[1]["memory"]
    study = sweep(SCENARIO, {"vcpus": np.array([1, 2])}, replicas=1, executor="serial")
    assert [cell["vcpus"] for cell in study.cells] == [1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweep(SCENARIO, {}), "nothing to vary"),
        (lambda: sweep(SCENARIO, {"vcpu": [1]}), "vcpus"),
        (lambda: sweep(SCENARIO, {"vcpus": 4}), r"nearest is \[4\]"),
        (lambda: sweep(SCENARIO, {"fault_path": "v6.1"}), "not a list"),
        (lambda: sweep(SCENARIO, {"vcpus": []}), "no value"),
        (lambda: sweep(SCENARIO, {"vcpus": [4, 4]}), "twice"),
        (lambda: sweep(SCENARIO, {"vcpus": [4]}, replicas=0), "nearest is 1"),
        (lambda: sweep(SCENARIO, {"vcpus": [4]}, executor="lokal"), "nearest is 'local'"),
        (lambda: sweep(SCENARIO, {"vcpus": [4]}, executor=-1), "nearest is 'local'"),
        (lambda: sweep(SCENARIO, {"vcpus": [4]}, metrics=["fault"]), "nearest is 'faults'"),
        (lambda: sweep(SCENARIO, {"vcpus": [1000]}), "largest is vcpus"),
        (lambda: compare(SCENARIO), "varies one field"),
        (lambda: compare(SCENARIO, vcpus=[1], seed=[1]), "nearest is sweep"),
    ],
)
def test_mistakes_are_found_before_anything_runs(call: object, message: str, stub: list[Scenario]) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)
    assert stub == []


def test_a_wrong_baseline_names_the_nearest(stub: list[Scenario]) -> None:
    study = sweep(SCENARIO, {"vcpus": [2, 8], "fault_path": PATHS}, replicas=1, executor="serial")
    for baseline, near in (
        (None, "named"),
        ({"vcpu": 2}, "vcpus"),
        ({"vcpus": 7}, "8"),
        ({"fault_path": "v6.12"}, "v6.1"),
    ):
        with pytest.raises(InputError, match=near):
            study.paired(baseline)


def test_a_store_is_gone_on_from(stub: list[Scenario], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "store"
    first = compare(SCENARIO, vcpus=[1, 2], replicas=2, executor="serial", store=folder)
    assert len(stub) == len(list(folder.iterdir())) == 4
    again = compare(SCENARIO, vcpus=[1, 2, 4], replicas=2, executor=2, store=folder)
    assert len(stub) == 6
    assert digests(again)[:4] == digests(first)
    # A run that was damaged, or never finished, is made again.
    file = folder / f"{SCENARIO.replace(vcpus=1).digest()}.parquet"
    file.write_bytes(file.read_bytes()[:100])
    assert digests(compare(SCENARIO, vcpus=[1, 2], replicas=2, store=folder)) == digests(first)
    assert len(stub) == 7
    assert kp.load(file).scenario.vcpus == 1


def test_a_run_of_another_version_is_made_again(
    stub: list[Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_run(SCENARIO)
    Run(old.scenario, old.arrays, old.meta, version="0.0.1").to_parquet(
        tmp_path / f"{SCENARIO.digest()}.parquet"
    )
    study = compare(SCENARIO, vcpus=[4], replicas=1, executor="serial", store=tmp_path)
    assert len(stub) == 1 and study.runs[0][0].version == kp.__version__


def test_a_store_that_cannot_be(stub: list[Scenario], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="store"):
        compare(SCENARIO, vcpus=[1], store=tmp_path / "file")
    assert stub == []


def test_progress_is_told(stub: list[Scenario], capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    compare(SCENARIO, vcpus=[1, 2], replicas=2, executor="serial", progress=lambda *at: told.append(at))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    compare(SCENARIO, vcpus=[1, 2], replicas=2, executor="serial", progress=True)
    assert "4/4" in capsys.readouterr().err


def test_until_reaches_the_scenario(stub: list[Scenario]) -> None:
    compare(SCENARIO, vcpus=[1], replicas=1, until="100 faults")
    assert stub[0].until == "100 faults"


def test_a_failure_is_passed_on(monkeypatch: pytest.MonkeyPatch, stub: list[Scenario]) -> None:
    def broken(scenario: Scenario, **_: object) -> Run:
        raise RuntimeError("broken")

    monkeypatch.setattr(sys.modules["kvmpfn.simulator"], "simulate", broken)
    for executor in ("local", "serial"):
        with pytest.raises(RuntimeError, match="broken"):
            compare(SCENARIO, vcpus=[1, 2], executor=executor)


def test_results_do_not_depend_on_who_runs_them(tmp_path: Path) -> None:
    serial = compare(SCENARIO, fault_path=PATHS, replicas=3, executor="serial")
    with ThreadPoolExecutor(2) as pool:
        others = [
            compare(SCENARIO, fault_path=PATHS, replicas=3, executor=executor)
            for executor in ("local", 3, pool)
        ]
    others.append(compare(SCENARIO, fault_path=PATHS, replicas=3, store=tmp_path))
    others.append(compare(SCENARIO, fault_path=PATHS, replicas=3, store=tmp_path))
    for study in others:
        pd.testing.assert_frame_equal(study.frame, serial.frame)


def test_alternatives_meet_the_same_storm() -> None:
    """Common random numbers: what a storm asks for does not depend on the fault path."""
    limited = SCENARIO.replace(storms=[SCENARIO.storms[0].replace(limit=5)])
    study = compare(limited, fault_path=PATHS, replicas=4, executor="serial")
    paired = study.paired(metric="storm_asked")
    assert list(paired["difference"]) == [0] and list(paired["low"]) == [0]


def test_a_study_shows_itself() -> None:
    study = compare(SCENARIO, fault_path=PATHS, replicas=2, executor="serial")
    assert repr(study) == "<Study of fault_path (2): 2 cells, 2 replicas each>"
    html = study._repr_html_()
    assert "<table" in html and "<script" not in html
