"""The tool that puts small mistakes into the code: which ones, and whether tests are seen to notice them."""

import subprocess
import sys
from pathlib import Path

import mutations
import pytest

TOOL = Path(mutations.__file__)


@pytest.mark.parametrize(
    "code, expected",
    [
        ("x = a < b", ["x = a < b -> pass", "a < b -> (a <= b)"]),
        ("return_ = a and not b", ["return_ = a and not b -> pass", "a and not b -> (a or not b)", "not b -> (b)"]),
        ("f(a, b)", ["f(a, b) -> pass", "f(a, b) -> (f(b, a))"]),
        ("f(max(a), n=1)", ["f(max(a), n=1) -> pass", "f(max(a), n=1) -> (f(max(a)))", "max(a) -> (min(a))", "1 -> 2"]),
        ("def f(x: int = 2) -> 'a | b':\n    return x", ["2 -> 3", "return x -> return None"]),
        ("[i for i in x if i]", ["[i for i in x if i] -> pass", "[i for i in x if i] -> ([i for i in x])"]),
        ("if True:\n    raise E(f'{n + 1}')", ["True -> False", "raise E(f'{n + 1}') -> pass"]),
        ("def f():\n    'text'\n    log.info('%d', n + 1)", []),
        ("'Größe', a - b", ["'Größe', a - b -> pass", "a - b -> (a + b)"]),
    ],
)
def test_every_part_that_does_something_is_changed_and_no_text(tmp_path, code, expected):
    file = tmp_path / "code.py"
    file.write_text(code, encoding="utf-8")
    assert [f"{m.before} -> {m.after}" for m in mutations.mutations(file)] == expected


def test_a_mistake_is_killed_where_a_test_looks_and_survives_where_none_does(tmp_path):
    code = "def seen(n):\n    return -n\n\n\ndef unseen(n):\n    return -n\n"
    (tmp_path / "counted.py").write_text(code, encoding="utf-8")
    test = tmp_path / "test_counted.py"
    test.write_text("from counted import seen\n\n\ndef test():\n    assert seen(1) == -1\n", encoding="utf-8")
    command = [sys.executable, str(TOOL), "counted.py", "--tests", str(test), "--logs", "logs", "--warm"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    fates = [line.split()[1] for line in done.stdout.splitlines() if line[:3].isdigit()]
    # what is returned, and the sign
    assert fates == ["killed"] * 2 + ["SURVIVED"] * 2, done.stdout
    assert done.stdout.endswith("2 survived\n")
