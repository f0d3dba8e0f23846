"""Run the fast tests with the oldest releases that pyproject.toml allows, in a venv of their own.

    make test-lower-bounds
    KEEP="torch" make test-lower-bounds

`KEEP` names packages that are installed as constraints.txt pins them instead. The lower bound of
torch is worth keeping out where only its build for GPUs can be had, which takes gigabytes. What
follows the script's name goes to pytest; the default is the whole fast suite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-lower-bounds"
GROUPS = ("datasci", "dev")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "tensorboard")
"""What tests need of `dev`."""


def lower_bounds() -> dict[str, str]:
    """The oldest release allowed of each package that poad, the sandbox or the tests import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["datasci"]]
    wanted += [line for line in extras["dev"] if re.split(r"[\[>]", line)[0] in TOOLS]
    bounds = {}
    for line in wanted:
        found = re.match(r"([\w-]+)>=([\d.]+)", line)
        if found is None:
            sys.exit(f"pyproject.toml names no lower bound in {line!r}.")
        bounds[found[1]] = found[2]
    return bounds


def pinned(name: str) -> str:
    """The release that constraints.txt names."""
    text = (ROOT / "constraints.txt").read_text()
    found = re.search(rf"^{re.escape(name)}==(\S+)$", text, re.MULTILINE)
    if found is None:
        sys.exit(f"KEEP names {name!r}, which constraints.txt does not pin.")
    return found[1]


def main() -> int:
    """Make the venv, install into it, and run pytest; its status."""
    kept = os.environ.get("KEEP", "").split()
    chosen = lower_bounds() | {name: pinned(name) for name in kept}
    exact = [f"{name}=={version}" for name, version in chosen.items()]
    print(f"Python {sys.version.split()[0]}:", *exact)
    if kept:
        print("Not at the lower bound:", *kept)
    if not (VENV / "bin" / "python").exists():
        venv.create(VENV, with_pip=True)
    python = VENV / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", *os.environ.get("PIP_ARGS", "").split()]
    subprocess.run([*pip, *exact], check=True)
    subprocess.run([*pip, "--no-deps", "-e", ROOT], check=True)
    # Old releases may warn of each other, which is no failure of poad's.
    arguments = ["-o", "filterwarnings=default", *(sys.argv[1:] or ("-n", "2", "-m", "not slow"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [python, "-m", "pytest", *arguments], cwd=ROOT, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
