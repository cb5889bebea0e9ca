"""Every golden case of a folder: `pytest tests/test_goldens.py --goldens DIR` (format: goldens/FORMAT.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden_replay import KINDS, GoldenSet


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        goldens = GoldenSet(Path(metafunc.config.getoption("goldens")).resolve())
        metafunc.parametrize("goldens, case", [pytest.param(goldens, c, id=c["id"]) for c in goldens.cases])


def check_array(name: str, got: np.ndarray, expected: np.ndarray, spec: dict) -> None:
    """The rule of FORMAT.md 6."""
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    assert not np.isnan(got).any(), f"{name}: NaN"
    difference = np.abs(got - expected)
    wrong = difference > spec["atol"] + spec["rtol"] * np.abs(expected)
    assert wrong.mean() <= spec.get("outliers", 0.0), (
        f"{name}: {wrong.sum()} of {wrong.size} values off, by up to {difference.max():.3g} (atol {spec['atol']})"
    )


def test_case(goldens: GoldenSet, case: dict) -> None:
    with torch.inference_mode():
        got = KINDS[case["kind"]](goldens, case)
    if "expected" in case:
        check_expected(got["expected"], case["expected"])
    expected = goldens.arrays(case)
    assert set(case["arrays"]) <= set(got), f"not computed: {set(case['arrays']) - set(got)}"
    # in the order in which data flows, so that the first failure is where the error is
    for name in case["arrays"]:
        check_array(name, np.asarray(got[name]), expected[name], case["arrays"][name])


def check_expected(got, expected) -> None:
    """Integers and strings are exact, floats within 1e-6."""
    if isinstance(expected, dict):
        assert set(got) == set(expected)
        for key in expected:
            check_expected(got[key], expected[key])
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            check_expected(g, e)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, abs=1e-6)
    else:
        assert got == expected


def test_every_kind_is_replayed(request: pytest.FixtureRequest) -> None:
    goldens = GoldenSet(Path(request.config.getoption("goldens")).resolve())
    assert {case["kind"] for case in goldens.cases} <= set(KINDS)
