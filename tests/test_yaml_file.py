"""YAML files: what words stand for, and what is refused before it grows."""

import os
import time
from pathlib import Path

import pytest

from musev_core.errors import MuseVError
from musev_core.yaml_file import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_yaml


def read(folder: Path, text: str | bytes):
    file = folder / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file, what="task file", example="- name: a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("-5", -5),
        ("5.0", 5.0),
        ("1e-3", 0.001),
        ("-.inf", float("-inf")),
        ("'5'", "5"),
        ("off", False),
        ("Yes", True),
        ("~", None),
        ("", None),
        # YAML 1.1 makes numbers and dates of these
        ("1:30", "1:30"),
        ("0123", "0123"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2024-02-31", "2024-02-31"),
        ("1e400", "1e400"),
        ("9" * 5000, "9" * 5000),
        ("=", "="),
        ("!!str 5", "5"),
        ("!!seq [1]", [1]),
        ("{1: a, on: b, ~: c, 2.0: d}", {"1": "a", "on": "b", "~": "c", "2.0": "d"}),
        ("\ufeffname: \u821e\u8e48", {"name": "\u821e\u8e48"}),
        ("[&a [1], *a]", [[1], [1]]),
        ("{&k name: 1, b: {*k : 2}}", {"name": 1, "b": {"name": 2}}),
        ("--- 5\n...\n", 5),
        ("%YAML 1.1\n--- 5", 5),
    ],
)
def test_words(tmp_path, text, expected):
    value = read(tmp_path, text)
    assert value == expected and type(value) is type(expected)


def test_merged_mappings(tmp_path):
    base = "base: &b {x: 1, y: 1}\nother: &o {y: 2, z: 2}\n"
    assert read(tmp_path, base + "m: {<<: *b, x: 3}")["m"] == {"x": 3, "y": 1}
    assert read(tmp_path, base + "m: {x: 3, <<: [*b, *o]}")["m"] == {"x": 3, "y": 1, "z": 2}
    assert read(tmp_path, base + "m: {<<: *b, x: 3}")["base"] == {"x": 1, "y": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("{1: x, '1': y}", "the key '1' stands twice"),
        ("{<<: {a: 1}, <<: {a: 2}}", "the key '<<' stands twice"),
        ("{<<: 5}", "<< takes a mapping or a list of them, got 5"),
        ("{<<: [{a: 1}, 5]}", "<< takes a mapping"),
        ("? [a]\n: 1", r"expected a key .* got \['a'\]"),
        ("? {a: 1}\n: 1", "expected a key"),
        ("- &a 5\n- {*a : x}", "expected a key .* got 5"),
        ("? " + "k" * 5000 + "\n: 1", "expected a key"),
        ("!!python/object/apply:os.getcwd []", "line 1: the tag '.*os.getcwd' is not known"),
        ("- !!python/name:os.getcwd", "the tag"),
        ("!!binary aGk=", "the tag"),
        ("!!set {a, b}", "the tag"),
        ("!!timestamp 2024-01-01", "the tag"),
        ("!!omap [a: 1]", "the tag"),
        ("!mine 5", "the tag '!mine'"),
        ("!!int x", "the tag"),
        ("!!str [5]", "the tag"),
        ("!!map [5]", "the tag"),
        ("{!!int a: 1}", "the tag"),
        ("*a", r"\*a stands for nothing before it"),
        ("&a [*a]", r"\*a stands for nothing before it, or for what it is itself a part of"),
        ("&a {x: *a}", r"\*a stands for nothing"),
        ("[" * 100 + "]" * 100, f"more than {MAX_DEPTH} lists or mappings"),
        ("[" * 400_000, "more than|nesting"),
        ("{a: " * 100_000, "more than|nesting"),
        ("- " * 100_000, "more than|nesting"),
        ("? " * 100_000, "more than|nesting"),
        ("[" + "1," * (MAX_VALUES + 1) + "]", "at most 50,000 values"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("'a", r"is not valid YAML: line \d+: .*"),
        ("a: [", "is not valid YAML"),
        ("%YAML 9.9\n---\n5", "is not valid YAML"),
        ("a: \0", "is not valid YAML"),
        ('a: "\\0"', "holds a character that is none"),
        ('a: "\\ud800"', "is not valid YAML|holds a character that is none"),
        ('a: "\\Uffffffff"', "is not valid YAML"),
        (b"a: 1\nname: \xff", "is not valid YAML: line 2 is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(MuseVError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith("The task file ") and len(str(caught.value)) < 1000


def laughs(levels: int, times: int, leaf: str = "[lol]", form: str = "[{}]") -> str:
    """Every level is `times` times the one before."""
    lines = [f"a0: &a0 {leaf}"]
    lines += [f"a{i}: &a{i} {form.format(', '.join([f'*a{i - 1}'] * times))}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        laughs(12, 9),
        laughs(1000, 1),
        laughs(20, 2, "{x: 1}", "{{<<: [{}]}}"),
        laughs(3, 1000, "l" * 5000),
        laughs(40, 2, "''"),
    ],
    ids=["nine times", "deep", "merged", "long text", "empty text"],
)
def test_aliases_are_counted_before_they_are_expanded(tmp_path, text):
    start = time.process_time()
    with pytest.raises(MuseVError, match="with every alias"):
        read(tmp_path, text)
    assert time.process_time() - start < 2


def test_the_largest_file_takes_no_longer_than_two_seconds(tmp_path):
    line = "- {a: 1, b: 2, c: 3}\n"
    text = line * (MAX_VALUES // 7) + "#" * 500_000
    start = time.process_time()
    assert len(read(tmp_path, text)) == MAX_VALUES // 7
    assert time.process_time() - start < 2


def test_files_that_are_none(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path, message in (
        (tmp_path / "gone.yaml", "does not exist"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "is a device or a pipe"),
        (pipe, "is a device or a pipe"),
        (Path("x" * 300 + ".yaml"), "cannot be opened"),
        (Path("a\0b"), "cannot be the name of a file"),
    ):
        with pytest.raises(MuseVError, match=message):
            read_yaml(path, what="task file", example="")


def test_python_is_not_read(tmp_path):
    with pytest.raises(MuseVError, match="never executed. Write the task file as YAML:\n- name: a"):
        read_yaml(tmp_path / "x.py", what="task file", example="- name: a")
