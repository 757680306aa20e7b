"""The face: every name is there, and nothing is loaded before it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

import kvmpfn as kp

SLOW = ("numpy", "numba", "pandas", "pyarrow", "matplotlib", "pydantic", "ipywidgets", "dask")


def loaded(code: str) -> set[str]:
    """The packages that a fresh process has loaded after some code."""
    code += "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


def test_every_name_is_there() -> None:
    for name in kp.__all__:
        assert getattr(kp, name) is not None, name
    assert set(kp.__all__) <= set(dir(kp))
    assert isinstance(kp.workloads, types.ModuleType) and isinstance(kp.storms, types.ModuleType)
    assert issubclass(kp.InputError, ValueError)


def test_the_import_loads_nothing() -> None:
    assert loaded("import kvmpfn").isdisjoint(SLOW)


def test_a_run_needs_no_plotting_and_no_files() -> None:
    code = "import kvmpfn as kp; kp.simulate(kp.Scenario(memory='1MiB')).faults"
    assert loaded(code).isdisjoint({"pandas", "pyarrow", "matplotlib", "ipywidgets", "dask", "IPython"})


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = kp.simulat


def test_versions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    kp.show_versions()
    text = capsys.readouterr().out
    assert f"kvmpfn      {kp.__version__}\n" in text and "numba" in text
