"""Type checkers see a decorated function's real parameters and results."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent / "typed"


@pytest.mark.parametrize("name", ["sample.py", "methods.py"])
def test_the_types_of_decorated_functions_are_those_of_the_functions(tmp_path, name):
    shutil.copy(SAMPLES / name, tmp_path)
    done = subprocess.run(
        # Strict checking also finds a "type: ignore" on a line that has no error.
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.startswith("Success"), done.stdout + done.stderr
