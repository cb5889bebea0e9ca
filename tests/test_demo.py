"""The demo model inside the package: what it makes of toy clips it never saw; see also `test_demo_quality`."""

import pytest
import torch

from musev_core.cli import main
from musev_core.demo.files import FILES, WEIGHTS
from musev_core.demo.model import load_networks
from musev_core.demo.showcase import make_film, standard_films
from musev_core.errors import CheckpointError
from musev_core.frames.video import read_video
from musev_core.training import demo_vae


@pytest.fixture(scope="module")
def networks():
    return load_networks()


def test_the_weights_are_small():
    assert sum((WEIGHTS / file).stat().st_size for file in FILES.values()) <= 20e6


def test_pictures_survive_the_vae(networks):
    assert demo_vae.round_trip_psnr(networks.vae, demo_vae.test_pictures(32, "test")) >= 34


def test_a_film_depends_on_its_seed_only(networks):
    film = standard_films(4)[1]
    first, again, other = (make_film(networks.pipeline(), film, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_demo_writes_films_and_contact_sheets_and_says_what_they_measure(tmp_path, capsys):
    assert main(["demo", "--output_dir", str(tmp_path), "--frames", "14"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"demo-{name}{end}" for name in ("dance", "sway", "walk") for end in ("-frames.png", ".mp4")
    ]
    assert len(read_video(tmp_path / "demo-sway.mp4").frames) == 15
    assert "Seam jerk" in capsys.readouterr().out
    assert main(["demo", "--output_dir", str(tmp_path), "--frames", "1"]) == 0  # overwrites nothing
    assert len(read_video(tmp_path / "demo-sway.mp4").frames) == 15
    assert len(read_video(tmp_path / "demo-sway-2.mp4").frames) == 2


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model"):
        load_networks(tmp_path)
