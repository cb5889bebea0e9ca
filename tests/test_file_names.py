"""Names of files on all systems, by rules that run on every one of them."""

import os
import re
from pathlib import PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musev_core.errors import MuseVError
from musev_core.file_names import (
    existing_file,
    extended_windows_path,
    is_portable,
    made_folder,
    portable_name,
    portable_path,
    shown,
)

TEXTS = st.text(st.characters(codec=None), max_size=400)  # surrogates and control characters too


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("girl dances", "girl_dances"),
        ("../a b:c?", "a_b_c"),
        ("v1.5", "v1_5"),
        ("\u821e\u8e48", "\u821e\u8e48"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),  # one spelling of accents: macOS takes them apart, others do not
        ("CON", "CON_"),
        ("com1", "com1_"),
        ("Aux.txt", "Aux_txt"),
        ("LPT\u00b9", "LPT\u00b9_"),
        ("a\x00b\x1fc", "a_b_c"),
        ("ends. ", "ends"),
        ("half \ud83d", "half"),
        ("", "unnamed"),
        ("...", "unnamed"),
    ],
)
def test_names_made_of_texts(text, name):
    assert portable_name(text) == name


@given(TEXTS, st.integers(12, 80))
def test_names_made_of_any_text_are_taken_by_every_system(text, length):
    name = portable_name(text, length)
    assert is_portable(name) and is_portable(f"{name}.mp4") and "." not in name
    assert len(name) <= length and len(name.encode()) <= 2 * length


@given(TEXTS)
def test_paths_of_tables_stay_in_their_folder(text):
    path = portable_path(text)
    assert path and all(is_portable(part) for part in path.split("/"))
    assert not PureWindowsPath(path).drive and not path.startswith("/") and ".." not in path.split("/")


def test_paths_of_tables_keep_what_is_fine():
    assert portable_path("000001_000050/17 b.x") == "000001_000050/17 b.x"
    assert portable_path(r"..\..\etc/con.txt") == "unnamed/unnamed/etc/con_txt"


@pytest.mark.parametrize(
    "name", ["a.", "a ", "a:b", "a?", "NUL", "nul.txt", "com9 .x", "a\x07", "", "x" * 256, "a\\b", "\ud800"]
)
def test_names_that_some_system_does_not_take(name):
    assert not is_portable(name)


@pytest.mark.parametrize(
    "name", ["a", "a.mp4", "console.txt", "com10", ".hidden", "\u821e\u8e48.png", "a b", "x" * 255]
)
def test_names_that_all_systems_take(name):
    assert is_portable(name)


@pytest.mark.parametrize(
    ("path", "long"),
    [
        ("C:\\a\\" + "b" * 243, "\\\\?\\C:\\a\\" + "b" * 243),
        ("\\\\server\\share\\" + "b" * 240, "\\\\?\\UNC\\server\\share\\" + "b" * 240),
        ("C:\\a\\" + "b" * 240, None),
        ("\\\\?\\C:\\" + "b" * 300, None),
        ("a\\" + "b" * 300, None),  # relative: it has no such form
    ],
)
def test_long_paths_of_windows(path, long):
    assert str(extended_windows_path(PureWindowsPath(path))) == (long or path)


# ---- files that people name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "The image file 'gone.png' does not exist. Look again."),
        ("file.png/b.png", "does not exist"),
        ("folder", "'folder' is a folder; the name of one image file was expected"),
        ("", "is a folder"),
        ("a\x00b", r"'a\\x00b' cannot be the name of a file here"),
        ("x" * 300, "cannot be opened: .*long"),
        ("https://example.org/a.png", "is an address, not a file. Download it"),
        ("data:image/png;base64," + "A" * 5000, "is an address, not a file"),
        ("pipe", "is a device or a pipe"),
    ],
)
def test_what_is_no_file_is_said(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.png").touch()
    if name == "pipe":
        os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MuseVError, match=message) as caught:
        existing_file(name, "image file", hint="Look again.")
    assert len(str(caught.value)) < 500


@given(TEXTS)
def test_any_name_is_found_or_told(text):
    try:
        existing_file(text, "image file")
    except MuseVError as error:
        str(error).encode("ascii", "backslashreplace")


def test_a_folder_is_taken_where_it_may_be(tmp_path):
    assert existing_file(tmp_path, "video file", folders=True) == tmp_path


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    assert made_folder(tmp_path / "a" / "b").is_dir()
    for name in ("file", "file/a", "a\0", "x" * 300):
        with pytest.raises(MuseVError, match="The folder .* cannot be made"):
            made_folder(tmp_path / name)


def test_shown_names_are_short_and_harmless():
    assert shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert re.fullmatch(r"'x{150}\.\.\.x{150}'", shown("x" * 5000))
