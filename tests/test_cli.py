"""The command line: the API's verbs, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import kvmpfn as kp
from kvmpfn.cli import main

SCENARIO = """
vcpus = 2
memory = "2MiB"

[[storms]]
arrival = "poisson"
rate = "10k/s"
span = "64KiB"
hold = "4us"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


def call(*arguments: object) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    code = exit.value.code
    assert isinstance(code, int)
    return code


def test_run_says_what_it_found(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", file) == 0
    run = kp.simulate(kp.Scenario.load(file))
    out = capsys.readouterr().out
    assert run.summary() in out and run.digest in out


def test_run_explains_the_slowest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", file, "--explain", 2) == 0
    run = kp.simulate(kp.Scenario.load(file))
    assert f"digest: {run.digest}\n\n{run.explain(2)}\n" in capsys.readouterr().out
    assert call("run", file, "--explain", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [fault["latency"] for fault in found["explanation"]["faults"]] == list(
        run.explain(2).frame["latency"]
    )
    assert call("run", file, "--explain", 0) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_run_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", file, "--json", "--set", "vcpus=3", "--set", "storms.0.rate=20k/s") == 0
    found = json.loads(capsys.readouterr().out)
    scenario = kp.Scenario.load(file).replace(**{"vcpus": 3, "storms.0.rate": "20k/s"})
    assert found["scenario"] == json.loads(scenario.to_json())
    assert found["digest"] == kp.simulate(scenario).digest
    assert found["counters"]["faults"] == found["faults"]


def test_run_writes_a_run(file: Path, tmp_path: Path) -> None:
    assert call("run", file, "--until", "100 faults", "--output", tmp_path / "run.parquet") == 0
    assert kp.load(tmp_path / "run.parquet").scenario.until == "100 faults"


def test_compare_shows_paired_differences(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", file, "fault_path=v6.1,v6.13,no_ref", "--replicas", 2, "--metric", "latency.mean"]
    assert call(*arguments, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    study = kp.compare(kp.Scenario.load(file), fault_path=["v6.1", "v6.13", "no_ref"], replicas=2)
    paired = study.paired(metric="latency.mean")
    assert [row["fault_path"] for row in rows] == ["v6.13", "no_ref"]
    assert [row["difference"] for row in rows] == pytest.approx(list(paired["difference"]))
    assert call(*arguments) == 0
    assert "no_ref" in capsys.readouterr().out


def test_sweep_writes_a_row_a_run_and_keeps_them(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", file, "storms.0.rate=1k/s,5k/s", "vcpus=1,2", "--replicas", 2, "--json"]
    assert call(*arguments, "--csv", tmp_path / "a.csv", "--store", tmp_path / "store") == 0
    rows = json.loads(capsys.readouterr().out)
    frame = pd.read_csv(tmp_path / "a.csv")
    assert len(frame) == len(list((tmp_path / "store").iterdir())) == 8
    assert {row["storms.0.rate"] for row in rows} == {"1k/s", "5k/s"}
    assert call(*arguments, "--csv", tmp_path / "b.csv", "--store", tmp_path / "store", "--jobs", 1) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_one_replica_is_null_in_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", file, "vcpus=1", "--replicas", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["low"] is None


def test_memory_prints_the_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = kp.memory_ledger("1GiB", level="2m", backing="thp", vcpus=4)
    assert call("memory", "1GiB", "--level", "2m", "--backing", "thp", "--vcpus", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total_bytes"] == ledger.total
    assert call("memory", "1GiB", "--backing", "ksm") == 0
    assert "held in 4,194,304" in (text := capsys.readouterr().out) and "stage-2 tables" in text


def test_memory_takes_what_the_ledger_takes(capsys: pytest.CaptureFixture[str]) -> None:
    ring = ("--vcpus", 2, "--dirty-logging", "--dirty-ring", 4096, "--pml")
    assert call("memory", "1GiB", *ring, "--json") == 0
    sizes = {row["structure"]: row["bytes"] for row in json.loads(capsys.readouterr().out)["structures"]}
    assert (sizes["dirty rings"], sizes["dirty bitmaps"], sizes["PML buffers"]) == (131_072, 0, 8192)
    assert call("memory", "1GiB", "--mmu", "shadow", "--address-spaces", 3, "--json") == 0
    ledger = kp.memory_ledger("1GiB", mmu="shadow", address_spaces=3)
    assert json.loads(capsys.readouterr().out)["total_bytes"] == ledger.total


def test_version_is_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert kp.__version__ in capsys.readouterr().out


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    for verb in ("run", "compare", "sweep", "figures", "memory"):
        assert f"\n  {verb} " in text
        assert call(verb, "--help") == 0


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["run", "scenaro.toml"], "scenario.toml"),
        (["run", "scenario.toml", "--set", "vcpu=3"], "vcpus"),
        (["run", "scenario.toml", "--set", "vcpus"], "KEY=VALUE"),
        (["run", "scenario.toml", "--set", "vcpus=1000"], "largest is vcpus="),
        (["run", "scenario.toml", "--set", "storms.1.rate=1k/s"], "nearest is 0"),
        (["run", "scenario.toml", "--until", "10 fortnights"], "nearest"),
        (["run", "scenario.toml", "--output", "absent/run.parquet"], "folder does not exist"),
        (["run", "scenario.toml", "--output", "."], "is a folder"),
        (["run", "scenario.toml", "--otput", "x"], "--otput"),
        (["run"], "SCENARIO"),
        (["compare", "scenario.toml", "fault_path"], "KEY=VALUE"),
        (["compare", "scenario.toml", "fault_path=v6.1,v6.12"], "v6.1"),
        (["compare", "scenario.toml", "fault_path=v6.1", "--metric", "fault"], "'faults'"),
        (["sweep", "scenario.toml", "vcpus=1", "vcpus=2"], "twice"),
        (["sweep", "scenario.toml", "vcpus=1", "--replicas", "0"], "nearest is 1"),
        (["sweep", "scenario.toml", "vcpus=1", "--replicas", "two"], "--replicas"),
        (["sweep", "scenario.toml", "vcpus=1", "--jobs", "-1"], "nearest is 0"),
        (["sweep", "scenario.toml", "vcpus=1", "--csv", "absent/x.csv"], "folder does not exist"),
        (["memory", "16GB"], "16GiB"),
        (["memory", "1GiB", "--level", "4m"], "4k"),
        (["figures"], "--root"),
        (["rnu", "scenario.toml"], "rnu"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str],
    near: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(file.parent)
    before = sorted(file.parent.iterdir())
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kvmpfn: ") and err.count("\n") == 1 and near in err
    assert sorted(file.parent.iterdir()) == before


def test_a_broken_scenario_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a.toml", "vcpus ="), ("b.json", "{"), ("c.yaml", ""), ("d.toml", "hots = 'x'")):
        (tmp_path / name).write_text(text)
        assert call("run", tmp_path / name) == 2
        err = capsys.readouterr().err
        assert name in err and err.count("\n") == 1


def test_the_installed_command_exits_as_it_should(file: Path) -> None:
    command = [sys.executable, "-m", "kvmpfn", "run"]
    good = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*command, "absent.toml"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_a_reader_that_had_enough_is_no_error(file: Path) -> None:
    code = (
        "import os, sys; os.close(1); os.dup2(int(sys.argv.pop(1)), 1); from kvmpfn.cli import main; main()"
    )
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-c", code, str(writing), "run", file, "--json"],
        pass_fds=[writing],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(writing)
    assert process.returncode == 1 and process.stderr == ""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of three notebooks, the second of which fails."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write = "import os, pathlib; pathlib.Path(os.environ['KVMPFN_FIGURES'], '{}.txt').write_text(os.getcwd())"
    sources = {
        "10-last": write.format("last"),
        "01-first": write.format("first"),
        "02-second": "raise ValueError('two\\nlines')",
    }
    for name, source in sources.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return tmp_path


def figures(checkout: Path, *arguments: str, below: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvmpfn", "figures", *arguments]
    return subprocess.run(command, cwd=checkout / below, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_figures_runs_all_notebooks_in_order_and_tells_of_failures(checkout: Path) -> None:
    before = {path: path.read_bytes() for path in checkout.glob("notebooks/*")}
    result = figures(checkout, below="notebooks")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "kvmpfn: 02-second.ipynb: ValueError: two"
    assert result.stdout.split() == ["01-first", "...", "02-second", "...", "10-last", "..."]
    made = {path.name: path.read_text() for path in checkout.glob("figures/*")}
    assert made == {"first.txt": str(checkout), "last.txt": str(checkout)}
    assert {path: path.read_bytes() for path in checkout.glob("notebooks/*")} == before


@pytest.mark.slow
def test_figures_runs_those_named(checkout: Path) -> None:
    result = figures(checkout, "last", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"10-last": None}
    assert [path.name for path in checkout.glob("figures/*")] == ["last.txt"]


def test_figures_names_the_nearest_notebook(checkout: Path) -> None:
    result = figures(checkout, "secnod")
    assert result.returncode == 2
    assert result.stderr == "kvmpfn: figures: no notebook 'secnod'; nearest is '02-second'\n"
    assert not (checkout / "figures").exists()
