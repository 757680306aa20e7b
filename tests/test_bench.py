"""The benchmark: what it measures is what it says; how fast anything is, no test asks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from oracle.draws import GFN, Draws

from kvmpfn.bench import QUICK, SCHEMA, Report, bench_16g, case, measure, programs, rounds, write_readme
from kvmpfn.bench.programs import Floor, Unavailable, engine, oracle, update_lines
from kvmpfn.cli import main
from kvmpfn.plots.bench import plot_sizes

TINY = replace(
    QUICK, vcpus=(2, 200), memory=("16MiB", "64MiB"), presets=("v6.16",), faults=500, bench_faults=1000,
    oracle_faults=100, repetitions=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Floor:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return Floor(tmp_path_factory.mktemp("floor"))


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(TINY)


@pytest.fixture
def results(repo_root: Path) -> Path:
    return repo_root / "benchmarks" / "results.json"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["bench", *map(str, arguments)])
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_the_standard_workload():
    s = bench_16g()
    assert (s.host, s.vcpus, s.memory_bytes, s.until_faults) == ("icelake_sp_2s", 64, 1 << 34, 3_000_000)
    assert s.mechanisms.name == "v6.1" and s.workload.kind == "uniform" and s.workload.think == "0ns"
    assert [(x.gap_ps, x.span_pages, x.hold_ps) for x in s.storms] == [(50_000_000, 64, 3_000_000)] * 2
    assert [(r.backing, r.populated) for r in s.memory] == [("anon", False)]


def test_a_large_case_has_a_host_with_room_for_its_storms_too():
    assert case(126, "4GiB").machine.threads == 128
    for vcpus in (127, 512):
        machine = case(vcpus, "4GiB").machine
        assert machine.extrapolated and machine.threads >= vcpus + 2


@pytest.mark.parametrize("storms", [True, False])
def test_the_yardstick_draws_as_the_model_does(floor: Floor, storms: bool):
    """Its first vCPU's page is the model's draw for that vCPU's number; prefetching changes no number."""
    scenario = case(4, "64MiB", storms=storms, faults=5000).replace(seed=(7 << 32) + 3)
    one, other = (floor.numbers(scenario, 3_000_000, prefetch) for prefetch in (False, True))
    del one["seconds"], other["seconds"]
    assert one == other
    n, page = one["first_vcpu"]
    assert n > 100 and page == Draws(scenario.seed).below(len(scenario.storms), GFN, n, scenario.pages)
    assert one["taken"] == 5000 and 0 <= one["taken"] - one["fixed"] - one["retry"] <= scenario.vcpus
    assert (one["retry"] > 0) is (one["zapped"] > 0) is storms
    assert one["end_ps"] > 10_000_000


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_yardstick_is_brought_to_a_share_of_retries(floor: Floor, share: float):
    scenario = case(16, "1GiB", faults=100_000)
    window = floor.window_for(scenario, share)
    assert floor.run(scenario, window, prefetch=True).retry_share == pytest.approx(share, abs=0.01)


def test_engine_and_oracle_are_timed_on_the_same_run():
    scenario = case(4, "16MiB", faults=300)
    one, other = engine(scenario), oracle(scenario)
    assert (one.taken, one.events, one.retry) == (other.taken, other.events, other.retry)
    assert one.simulator_bytes > scenario.pages * 16


def test_every_update_is_made():
    words = np.zeros(8 * 1000, dtype=np.int64)
    update_lines(words, 100_000)
    assert words.sum() == 100_000
    lines = words.reshape(-1, 8)
    assert not lines[:, 1:].any()
    assert (lines[:, 0] > 50).all() and (lines[:, 0] < 170).all()  # 100 each, and their spread is 10


def test_tables_have_units_and_survive_json(report: Report, tmp_path: Path):
    assert list(report.tables) == ["yardsticks", "sizes", "presets", "footprint", "parallel", "start"]
    for table in report.tables.values():
        numbers = {name for name in table.columns if table[name].dtype.kind == "f"}
        assert numbers == numbers & set(table.attrs["units"])
        if "low" in table:
            assert (table["low"] <= table["high"]).all()
    path = tmp_path / "results.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert json.loads(report.to_json())["schema"] == SCHEMA == 2
    again = Report.load(path)
    assert again.to_json() == report.to_json() and str(again) == str(report)
    assert again.markdown() == report.markdown()


def test_the_tables_hold_what_was_planned(report: Report):
    t = report.tables
    assert list(zip(t["sizes"]["memory"], t["sizes"]["vcpus"], strict=True)) == [
        (memory, vcpus) for memory in TINY.memory for vcpus in TINY.vcpus
    ]
    assert list(zip(t["presets"]["preset"], t["presets"]["storms"], strict=True)) == [
        ("v6.16", 2),
        ("v6.16", 0),
    ]
    engines = t["yardsticks"][t["yardsticks"]["program"] == "engine"]
    assert set(engines["of_engine"]) == {1.0}
    assert {"oracle"} <= set(t["yardsticks"]["program"])
    assert list(t["parallel"]["replicas"]) == [2 * t["parallel"]["threads"][0]]
    assert t["footprint"]["bytes_per_page"][0] > 16  # a host entry and an SPTE
    assert report.machine["cpu"] and report.versions["numba"]


def test_what_is_not_there_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(programs, "CHECKOUT", tmp_path)
    monkeypatch.setattr(rounds, "_memory_available", lambda: (16 << 8) * 64)  # for 16MiB, no more
    found = measure(replace(TINY, start=False, repetitions=1))
    assert set(found.tables["yardsticks"]["program"]) == {"engine"}
    assert set(found.tables["sizes"]["memory"]) == {"16MiB"}
    assert found.tables["sizes"]["c_per_s"].isna().all()
    assert json.loads(found.to_json())["tables"]["sizes"]["rows"][0]["of_c"] is None
    assert [note.split(":")[0] for note in found.notes] == ["floor", "oracle", "64MiB"]
    assert all("\n" not in note for note in found.notes)
    plot_sizes(found.tables["sizes"])
    plt.close("all")


def test_a_compiler_that_is_missing_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="no C compiler 'cc'"):
        Floor(tmp_path)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with pytest.raises(Unavailable, match=r"^floor: left out; cc: cc: no such header$"):
        Floor(tmp_path)


def test_the_figure_holds_the_table(report: Report):
    sizes = report.tables["sizes"]
    (ax,) = plot_sizes(sizes).axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    for memory in TINY.memory:
        assert list(lines[memory].get_ydata()) == list(sizes.loc[sizes["memory"] == memory, "taken_per_s"])
    assert list(lines["ideal: as the first"].get_ydata()) == [sizes["taken_per_s"][0]] * 2
    assert set(lines["random line updates"].get_ydata()) == {sizes["updates_per_s"].unique().mean()}
    plt.close("all")


def test_the_readme_shows_the_results(repo_root: Path, results: Path, tmp_path: Path):
    """The table is the one that the committed results give."""
    copy = tmp_path / "README.md"
    copy.write_bytes((repo_root / "README.md").read_bytes())
    write_readme(Report.load(results), copy)
    assert copy.read_bytes() == (repo_root / "README.md").read_bytes()


def test_command(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    readme, output = tmp_path / "NOTES.md", tmp_path / "again.json"
    readme.write_text("a\n<!-- kvmpfn bench -->\nold\n<!-- end of kvmpfn bench -->\nb\n")
    assert call("--results", results, "--readme", readme, "--output", output, "--figures", tmp_path) == 0
    report = Report.load(results)
    assert capsys.readouterr().out == f"{report}\n"
    assert output.read_bytes() == results.read_bytes()
    before, _, rest = readme.read_text().partition(report.markdown())
    assert (before, rest) == ("a\n<!-- kvmpfn bench -->\n", "<!-- end of kvmpfn bench -->\nb\n")
    assert {"bench.svg", "bench.pdf", "bench.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert call("--results", results, "--json") == 0
    assert json.loads(capsys.readouterr().out) == report.to_dict()
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--results", "none.json"), "none.json: No such file"),
        (("--results", "other.json"), "other.json: is no benchmark of schema 2"),
        (("--results", "text.json"), "text.json: is not JSON"),
        (("--results", "other.json", "--full"), "--full: measures"),
        (("--readme", "READM.md"), "READM.md: no such file; nearest is README.md"),
        (("--readme", "README.md"), "README.md: has no lines"),
        (("--output", "no/results.json"), "no/results.json: its folder does not exist"),
        (("--figures", "text.json"), "text.json: is a file"),
    ],
)
def test_mistakes_are_one_line_and_measure_nothing(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("nothing")
    (tmp_path / "other.json").write_text('{"schema": 1, "tables": {}}')
    (tmp_path / "text.json").write_text("text")
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"kvmpfn: {message}")
