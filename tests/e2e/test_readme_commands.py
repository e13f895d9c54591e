"""What the README tells people to type works: each section by itself, after the first.

The first block makes the demonstration's data and a product, which the others begin with.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands_of(text: str) -> list[str]:
    """Return the commands in the shell blocks of a README that begin with ``calibdask``.

    A line that ends in a backslash goes on in the next. A block with a comment
    ``<!-- not run: reason -->`` on the line before is left out, as is one with
    ``<!-- needs SLURM -->`` where there is none, and the output in a ``console`` block, where
    commands begin with ``$``.
    """
    commands = []
    pattern = r"(?P<before>[^\n]*)\n```(?P<kind>sh|console)\n(?P<block>.*?)\n```"
    for match in re.finditer(pattern, f"\n{text}", re.DOTALL):
        before = match["before"].strip()
        no_slurm = os.environ.get("CALIBDASK_TEST_SLURM") != "1"
        if before.startswith("<!-- not run:") or (before == "<!-- needs SLURM -->" and no_slurm):
            continue
        for line in match["block"].replace("\\\n", " ").splitlines():
            command = line.strip()
            if match["kind"] == "console":
                if not command.startswith("$"):
                    continue
                command = command[1:].strip()
            if shlex.split(command, comments=True)[:1] == ["calibdask"]:
                commands.append(command)
    return commands


def test_commands_are_found():
    text = """\
Try

```sh
make demo            # not a command of ours
calibdask demo
calibdask plan x \\
  -i y   # why
```
<!-- not run: takes a cluster -->
```sh
calibdask connect
```
```console
$ calibdask digest out.h5
calibdask output
```
```python
calibdask.run()
```
"""
    assert commands_of(text) == [
        "calibdask demo",
        "calibdask plan x    -i y   # why",
        "calibdask digest out.h5",
    ]


def sections_of(text: str) -> dict[str, list[str]]:
    """Return the commands of each section by its title: they share a directory."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    found = {title: commands_of(body) for title, body in zip(parts[::2], parts[1::2], strict=True)}
    return {title: commands for title, commands in found.items() if commands}


SECTIONS = sections_of((ROOT / "README.md").read_text(encoding="utf-8"))
FIRST, *OTHERS = SECTIONS


def run_in(directory: Path, commands: list[str]) -> None:
    """Run commands as a shell would, with those of this environment first, and no cluster."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Where the first section was run: read only, the others copy it."""
    directory = tmp_path_factory.mktemp("readme")
    for name in ("configs", "jobs", "slurm"):
        (directory / name).symlink_to(ROOT / name)
    run_in(directory, SECTIONS[FIRST])
    return directory


@pytest.mark.slow
@pytest.mark.cluster
def test_the_first_section_of_the_readme(begun):
    names = {path.name for path in begun.iterdir()}
    assert {"demo", "my.yaml", "coefficients.h5", "asymmetries"} <= names


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("section", OTHERS)
def test_a_section_of_the_readme(section, begun, tmp_path):
    shutil.copytree(begun, tmp_path / "here", symlinks=True)
    run_in(tmp_path / "here", SECTIONS[section])
