"""Values as people write them."""

from pathlib import Path

import pytest

from musev_core.errors import MuseVError, blame, nearest
from musev_core.values import beside, is_none, scalar, user_path


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        (5, str, "5"),
        ("1e-3", float, 1e-3),
        (3, float, 3.0),
        ("12.0", int, 12),
        (str(2**63 + 1), int, 2**63 + 1),
        ("On", bool, True),
        (0, bool, False),
        (" a b.png ", Path, Path("a b.png")),
    ],
)
def test_scalar(given, kind, expected):
    value = scalar("x", given, kind)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "kind", "wanted"),
    [
        (True, int, "a whole number"),
        ("2.5", int, "a whole number"),
        ("1e400", float, "a number"),
        (10**400, float, "a number"),
        (None, str, "text"),
        (True, str, "text"),
        ("maybe", bool, "true or false"),
        (5, Path, "a file name"),
        ("a\0.png", Path, "a file name"),
        ("1_000", int, "a whole number"),
        ("\u0661\u0662", int, "a whole number"),
        ("\u0661\u0662", float, "a number"),
        ("nan", float, "a number"),
        ("inf", float, "a number"),
        (float("nan"), float, "a number"),
        ("0x10", int, "a whole number"),
        pytest.param(10**5000, int, "a whole number", id="digits"),
        pytest.param(10**5000, bool, "true or false", id="many"),
        ([1], float, "a number"),
    ],
)
def test_scalar_of_another_kind(given, kind, wanted):
    with pytest.raises(MuseVError, match=f"x: expected {wanted}, got "):
        scalar("x", given, kind)


def test_a_value_of_any_size_is_shown_shortly():
    with pytest.raises(MuseVError) as caught:
        scalar("x", ["a" * 10**6] * 10**5, float)
    assert len(str(caught.value)) < 2000


def test_words_for_nothing():
    assert all(map(is_none, (None, "", " None ", "null")))
    assert not any(map(is_none, (0, False, "no", [])))


def test_home_folder_and_names_of_nobody(monkeypatch, tmp_path):
    assert user_path("~/a.png") == Path.home() / "a.png"
    assert user_path("~nobody-of-this-name/a.png") == Path("~nobody-of-this-name/a.png")


def test_beside_a_file_or_left_to_the_working_directory(tmp_path):
    (tmp_path / "a.png").touch()
    assert beside(tmp_path, "a.png") == tmp_path / "a.png"
    assert beside(tmp_path, "b.png") == Path("b.png")
    assert beside(tmp_path, "b" * 1000) == Path("b" * 1000)


def test_the_owner_of_an_error_is_named_once():
    with pytest.raises(MuseVError, match="^Task 'a': fps: too low$"), blame("Task 'a'"), blame("Task 'a'"):
        raise MuseVError("fps: too low")


def test_nearest_word():
    assert nearest("hight", ["width", "height"]) == " Did you mean 'height'?"
    assert nearest("colour", ["width", "height"]) == ""
