"""`musev demo`."""

import argparse
from pathlib import Path
from typing import Any

from .terminal import add_command, say

FPS = 8


def add_demo(commands: Any) -> None:
    """Adds the command `demo`."""
    parser = add_command(commands, "demo", _demo, "Make three short films with the model inside the package.")
    parser.add_argument("--output_dir", type=Path, default=Path("musev-results"), help="where the results go")
    parser.add_argument("--prompt", default=None, help="another caption for the first film, in the toy world's words")
    parser.add_argument("--image", type=Path, default=None, help="another picture for the first film to start from")
    parser.add_argument("--frames", type=int, default=120, help="frames of the long film; any number")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other films")


def _demo(options: argparse.Namespace) -> int:
    """Makes the films, writes each as a video and as a contact sheet, and says what was measured."""
    from ..config import MAX_FRAMES
    from ..demo.model import load_networks
    from ..demo.settings import SAMPLING
    from ..demo.showcase import changed, described, enlarged, make_film, standard_films
    from ..errors import MuseVError
    from ..file_names import made_folder
    from ..frames.image_files import save_image
    from ..frames.images import contact_sheet
    from ..frames.video import VideoWriter, unique_path
    from ..values import SEEDS, check_seed
    from .progress import TerminalProgress

    if not 1 <= options.frames <= MAX_FRAMES:
        raise MuseVError(f"--frames must be at least 1 and at most {MAX_FRAMES:,}, got {options.frames}")
    check_seed("--seed", options.seed)
    films = standard_films(options.frames)
    if options.image is not None or options.prompt is not None:
        films[0] = changed(films[0], options.image, options.prompt)
    progress = TerminalProgress()
    progress.loading("the demo model")
    networks = load_networks()
    pipeline = networks.pipeline()
    made_folder(options.output_dir)
    for number, film in enumerate(films):
        run = f"{film.name}: {film.caption}"
        observer = progress.observer({"video": SAMPLING.num_steps})
        seed = (options.seed + number) % SEEDS
        frames = make_film(
            pipeline,
            film,
            controlnet=networks.controlnet,
            seed=seed,
            observer=observer,
            run=run,
        )
        path = unique_path(options.output_dir / f"demo-{film.name}.mp4")
        with VideoWriter(path, fps=FPS) as writer:
            writer.write(enlarged(frames))
        sheet = unique_path(path.with_name(f"{path.stem}-frames.png"))
        save_image(sheet, contact_sheet(enlarged(frames, 2), columns=7, max_frames=28))
        say(f"{film.name}: {film.caption!r}\n  video: {path}\n  frames at a glance: {sheet}")
        for line in described(film, frames).splitlines():
            say(f"  {line}")
    return 0
