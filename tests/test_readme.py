"""The documents: examples run as written, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DOCUMENTS = ("README.md", "docs/model.md", "docs/protocol.md", "docs/fault-paths.md")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/fault-paths.md"])
def test_example_runs(repo_root: Path, document: str) -> None:
    """Every python example runs in a process of its own, and says something."""
    examples = blocks((repo_root / document).read_text(encoding="utf-8"), "python")
    assert examples
    for example in examples:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_exist(repo_root: Path, document: str) -> None:
    """Every relative link of a document names a file of the checkout."""
    path = repo_root / document
    links = LINK.findall(path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_commands_exist(repo_root: Path) -> None:
    """Every make target that the README names is in the Makefile."""
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks(text, "sh"))))
    assert targets == {"figures", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
