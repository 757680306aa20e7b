"""Published tables: every row has a source, and no more than half of them may be fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpfn.units import InputError
from kvmpfn.validation import ratios, read_table, residuals
from kvmpfn.validation.scaling import fit

TABLES = {"houghton": 8, "upton": 7, "martins": 9, "downs": 40, "will_it_scale": 11, "core_to_core": 4}


@pytest.fixture
def published(repo_root: Path) -> Path:
    return repo_root / "data" / "published"


def test_every_table_is_here_and_told_of(published: Path, repo_root: Path) -> None:
    assert {file.stem for file in published.glob("*.csv")} == {*TABLES, "sources"}
    readme = (repo_root / "data" / "README.md").read_text()
    for name, rows in TABLES.items():
        assert len(read_table(published / f"{name}.csv")) == rows
        assert f"`{name}.csv`" in readme


def test_what_follows_from_the_rows(published: Path) -> None:
    houghton = read_table(published / "houghton.csv").set_index("vcpus")
    million_a_second = houghton.index.to_series() * 0.262144 / houghton["no_aging_s"]
    assert million_a_second.round(2).to_dict() == pytest.approx(
        {1: 0.30, 2: 0.53, 4: 0.83, 8: 1.42, 16: 2.05, 32: 2.53, 64: 2.58, 112: 3.45}, abs=0.011
    )
    martins = read_table(published / "martins.csv")
    saved = (martins["each_page_ms"] - martins["batched_ms"]) / martins["pages"] * 1e6
    assert saved.iloc[[0, 1, 8]].round(1).tolist() == [12.6, 19.3, 18.3]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1,2.0,memory,a", r"t\.csv, line 2: status 'memory'"),
        ("1,2.0,read,b", r"t\.csv, line 2: source 'b'; nearest is 'a'"),
    ],
)
def test_a_row_without_a_source_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "sources.csv").write_text("key,title,where\na,A,http://a\n")
    (tmp_path / "t.csv").write_text(f"x,y,status,source\n{line}\n")
    with pytest.raises(InputError, match=says):
        read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"no such table; nearest is 't\.csv'"):
        read_table(tmp_path / "u.csv")
    (tmp_path / "t.csv").write_text("x,y,status\n1,2,read\n")
    with pytest.raises(InputError, match="no column 'source'"):
        read_table(tmp_path / "t.csv")


def test_residuals() -> None:
    frame = residuals([1.0, 2.0, 4.0], [1.0, 1.0, 5.0], [True, False, False])
    assert frame["error"].tolist() == [0.0, -50.0, 25.0]
    assert frame["role"].tolist() == ["fitted", "predicted", "predicted"]
    with pytest.raises(InputError, match="2 of 3 rows fitted; nearest is 1"):
        residuals([1, 1, 1], [1, 1, 1], [True, True, False])
    with pytest.raises(InputError, match="3 rows published, 2 simulated"):
        residuals([1, 1, 1], [1, 1], [False] * 3)


def test_fit_bisects_and_says_where_it_cannot() -> None:
    assert fit(lambda x: x * x, 2.0, 0.0, 4.0, steps=30) == pytest.approx(2**0.5, abs=1e-8)
    for target, near in ((-1.0, 0), (17.0, 4)):
        with pytest.raises(InputError, match=rf"not met from 0 to 4; nearest is {near}"):
            fit(lambda x: x * x, target, 0.0, 4.0)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    import numpy as np
    import pandas as pd

    values = np.random.Generator(np.random.PCG64(1)).poisson(20, 40)
    frame = pd.DataFrame({"hits": values, "trials": 1, "same": 3})
    row = ratios(frame, ["hits", "same"], "trials")
    error = values.std(ddof=1) / len(values) ** 0.5
    assert row.loc["hits", "mean"] == values.mean()
    assert row.loc["hits", "high"] - values.mean() == pytest.approx(1.959964 * error)
    assert row.loc["same"].tolist() == [3.0, 3.0, 3.0]
    alone = ratios(frame.assign(trials=[5] + 39 * [0]), ["same"], "trials")
    assert alone.loc["same"].tolist() == [24.0, 0.0, float("inf")]
