"""Half precision: every golden prediction of the UNet stays near its float32 value; `--goldens DIR` for another set."""

import json
from pathlib import Path

import pytest
import torch
from support import golden_replay
from support.golden_replay import GoldenSet

# relative L2 error; the two precisions keep 11 and 8 bits of every intermediate value
LIMITS = {torch.float16: 1e-2, torch.bfloat16: 6e-2}
DTYPES = [
    pytest.param(torch.float16, id="float16"),
    pytest.param(torch.bfloat16, id="bfloat16", marks=pytest.mark.slow),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens = GoldenSet(Path(metafunc.config.getoption("goldens")).resolve())
    cases, seen = [], set()
    for case in goldens.cases:
        if case["kind"] == "unet":
            kind = json.dumps({name: case["model"][name] for name in ("arch", "size")})
            # a CPU computes these precisions slowly: of every network one case here, the others where there is time
            marks = [pytest.mark.slow] if kind in seen else []
            cases.append(pytest.param(goldens, case, id=case["id"], marks=marks))
            seen.add(kind)
    metafunc.parametrize("goldens, case", cases)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unet_case_in_half_precision(goldens: GoldenSet, case: dict, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        output = golden_replay.unet(goldens, case, dtype=dtype)["output"]
    assert output.dtype == dtype
    expected = torch.from_numpy(goldens.arrays(case)["output"]).double()
    assert (output.double() - expected).norm() <= LIMITS[dtype] * expected.norm()
