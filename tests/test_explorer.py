"""The explorer, without a browser."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvmpfn.units import InputError
from kvmpfn.widgets.explorer import Explorer
from kvmpfn.widgets.model import FAULTS, PARTS, RETRIES, ExplorerModel, Setting

SMALL = Setting(vcpus=4, rate=50_000)


@pytest.fixture(scope="module")
def model() -> ExplorerModel:
    return ExplorerModel()


def test_runs_are_small_and_kept(model: ExplorerModel) -> None:
    run = model.run(SMALL)
    assert 0 < run.counters["pf_taken"] <= FAULTS + SMALL.vcpus
    assert model.run(Setting(vcpus=4, rate=50_000)) is run
    assert ExplorerModel().run(SMALL).digest == run.digest


def test_no_more_runs_than_it_may_keep() -> None:
    small = ExplorerModel(memory="2MiB", kept=2)
    runs = [small.run(Setting(vcpus=1, rate=rate)) for rate in (0, 1_000, 2_000)]
    assert small.run(Setting(vcpus=1, rate=2_000)) is runs[2]
    assert small.run(Setting(vcpus=1, rate=0)) is not runs[0]


def test_nothing_is_left_out_of_the_sums(model: ExplorerModel) -> None:
    run = model.run(SMALL)
    assert sum(model.parts(SMALL).values()) * run.latency.count * 1000 == pytest.approx(run.parts.sum())
    assert sum(model.retries(SMALL).values()) == pytest.approx(100 * run.retry_share)
    assert list(model.parts(SMALL)) == list(PARTS)
    assert list(model.retries(SMALL)) == list(RETRIES)


def test_the_tail_falls_from_all_to_none(model: ExplorerModel) -> None:
    times, shares = model.tail(SMALL)
    assert times == sorted(times) and shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("backing", ExplorerModel.backings)
def test_every_backing_has_a_run(model: ExplorerModel, backing: str) -> None:
    setting = replace(SMALL, backing=backing)
    if model.run(setting).died:
        assert backing == "tail_pages" and "refuses" in model.headline(setting)
    else:
        assert "retried" in model.headline(setting)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"backing": "anonn"}, "'anon'"), ({"preset": "v6.2"}, "'v6.8"), ({"rate": -1}, "nearest is 0")],
)
def test_a_wrong_setting_is_told_in_one_line(
    model: ExplorerModel, change: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model.run(replace(SMALL, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_controls_move_the_artists_of_one_figure(model: ExplorerModel) -> None:
    explorer = Explorer(model, SMALL)
    figure, before = explorer.plot.figure, bytes(explorer.image.value)
    artists = [id(artist) for ax in figure.axes for artist in ax.get_children()]
    explorer.controls["preset"].value = "v6.16"
    explorer.controls["rate"].value = 200_000
    assert explorer.setting == replace(SMALL, preset="v6.16", rate=200_000)
    assert explorer.plot.figure is figure
    assert [id(artist) for ax in figure.axes for artist in ax.get_children()] == artists
    after = bytes(explorer.image.value)
    assert after != before and after.startswith(b"\x89PNG")
    assert explorer.static.data == after
