"""Where PyTorch is not installed, the tests say what they left out."""

import re
import subprocess
import sys
from pathlib import Path

WITHOUT_TORCH = """
import sys
sys.modules |= {"torch": None, "safetensors": None}
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_without_torch(*arguments):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)


def test_what_needs_pytorch_is_left_out_and_counted():
    done = run_without_torch("tests/layers/test_resize.py")
    *_, told, end = done.stdout.splitlines()
    assert done.returncode == 0 and end.startswith("3 passed, 5 skipped")
    assert told == (
        '5 tests left out for lack of PyTorch; to run them too: pip install -e ".[test,convert]"'
    )


def test_no_module_imports_pytorch_while_it_is_collected():
    imports = re.compile(r"^(import|from) (torch|safetensors)\b", re.MULTILINE)
    files = Path(__file__).parent.rglob("*.py")
    assert [file.name for file in files if imports.search(file.read_text())] == []
