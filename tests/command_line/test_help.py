"""Every script answers --help with its examples and the choices, without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [p for folder in ("scripts", "data_prep") for p in sorted((ROOT / folder).glob("*.py"))]
HEAVY = ("torch", "numpy", "pandas", "lightning", "mne", "sklearn")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_help_shows_examples_and_choices_and_imports_nothing_heavy(script):
    code = (f"import runpy, sys; sys.argv = [{str(script)!r}, '--help']\n"
            f"try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            f"finally: sys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))")
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"python {script.parent.name}/{script.name}" in done.stdout
    if not script.stem.startswith("bench_"):  # a benchmark has arguments of its own and no configuration groups
        adapters = sorted(path.stem for path in (ROOT / "configs" / "adapter").glob("*.yaml"))
        assert f"  adapter: {', '.join(adapters)}\n" in done.stdout
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert heavy.stderr.strip() == ""
