"""A toy world: captioned clips of a shape or a jointed figure, 64 x 64 pixels, with everything about them known.

Every clip is a function of (split, number): scene, caption, frames, pose video and positions. There are four kinds of
motion, because every context window of MuseV believes that it follows the condition frame directly:

* `directed`: the subject moves as the caption says; its position is a function of caption, condition frame and frame
  index times motion speed.
* `enter`: the condition frame is an empty stage and the subject comes in, as high as it stands in its portrait: only
  the reference shows what it looks like.
* `ambient`: it sways, bobs or waves round its home with a random phase, so every window of a long video may show the
  same motion; the condition frame shows it at home.
* `wander`: it follows a random smooth path, which only the pose video tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import MuseVError
from .toy_drawing import Stroke, draw_shape, draw_stage, draw_strokes

SIZE = 64  # pixels, height and width
SPLITS = ("train", "validation", "test")
KINDS = ("directed", "enter", "ambient", "wander")

COLORS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.18, 0.66, 0.25),
    "blue": (0.16, 0.35, 0.85),
    "yellow": (0.95, 0.82, 0.20),
    "purple": (0.58, 0.25, 0.72),
    "orange": (0.95, 0.52, 0.12),
}
SHAPES = ("ball", "box", "star")
TEXTURES = ("plain", "striped", "ringed")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}

STAGES = np.array(  # upper sky, lower sky, hill, ground
    [
        [[0.55, 0.75, 0.97], [0.86, 0.93, 0.99], [0.45, 0.62, 0.42], [0.40, 0.56, 0.30]],
        [[0.98, 0.80, 0.62], [0.99, 0.92, 0.76], [0.62, 0.44, 0.36], [0.52, 0.36, 0.28]],
        [[0.80, 0.74, 0.92], [0.96, 0.86, 0.92], [0.48, 0.42, 0.60], [0.38, 0.34, 0.46]],
        [[0.74, 0.92, 0.86], [0.94, 0.98, 0.92], [0.42, 0.56, 0.58], [0.30, 0.42, 0.46]],
    ]
)
HORIZON, HILL = 48.0, 14.0

# lengths in pixels; rates per unit of (frame number x motion speed), so that 8 units are a frame at the usual speed
DIRECTED_RATE = 0.15
ENTER_RATE = 0.4
AMBIENT_REACH = 5.0
AMBIENT_PERIOD = 128.0  # 16 frames at motion speed 8
WANDER_REACH = 12.0
STEPS_PERIOD = 64.0  # of a walking figure's legs

_SKIN, _WHITE, _DARK = (0.93, 0.76, 0.62), (0.97, 0.97, 0.94), (0.13, 0.12, 0.16)


@dataclass(frozen=True)
class Scene:
    """One clip: who, where, and how it moves.

    Args:
        kind: of `KINDS`; motion: a direction, `sway`, `bob`, `wave` or `wander`.
        subject: `ball`, `box`, `star` or `figure`; color: its own or its shirt's; second: of the texture or trousers.
        texture: of a shape; radius: pixels.
        home: (x, y) of the subject's centre in the condition frame; of the figure it is the hip.
        phase: of an ambient motion; path: `(2, 2, 2)`, axis x wave x (amplitude, cycles per 100 units) of a wander.
        described: whether the caption tells color and texture.
        stage: number in `STAGES`; hill: x of the hill.
    """

    kind: str
    motion: str
    subject: str
    color: str
    second: tuple[float, float, float]
    texture: str
    radius: float
    home: tuple[float, float]
    phase: float
    path: np.ndarray
    described: bool
    stage: int
    hill: float

    @property
    def caption(self) -> str:
        """What happens, in words; the same scene may be told with or without its looks."""
        article = "an" if self.color == "orange" else "a"
        if self.subject == "figure":
            who = f"a figure in {article} {self.color} shirt" if self.described else "a figure"
        else:
            texture = "" if self.texture == "plain" else f"{self.texture} "
            who = f"{article} {self.color} {texture}{self.subject}" if self.described else f"a {self.subject}"
        return f"{who} {self.verb}"

    @property
    def verb(self) -> str:
        """The caption's part about the motion."""
        if self.kind == "directed":
            verb = "walks" if self.subject == "figure" else "moves"
            return f"{verb} {'to the ' if self.motion in ('left', 'right') else ''}{self.motion}"
        if self.kind == "enter":
            return f"enters from the {'right' if self.motion == 'left' else 'left'}"
        if self.kind == "wander":
            return "dances" if self.subject == "figure" else "wanders"
        return f"{self.motion}s"


@dataclass(frozen=True)
class Clips:
    """Rendered clips, `b` of `t` frames, all pictures uint8.

    Args:
        captions: `b` texts; frames, pose: `(b, t, 64, 64, 3)`, the first is the condition frame.
        reference: `(b, 64, 64, 3)`, the subject in the middle of another stage.
        background: `(b, 64, 64, 3)`, the stage without the subject.
        positions: `(b, t, 2)`, (x, y) of the subject's centre in pixels; may lie outside the picture.
    """

    captions: list[str]
    frames: Tensor
    pose: Tensor
    reference: Tensor
    background: Tensor
    positions: Tensor


def scene(split: str, number: int, kind: str | None = None) -> Scene:
    """Scene `number` of a split; the same for the same arguments, anywhere.

    Args:
        kind: one of `KINDS`; default: drawn, mostly directed and ambient.
    """
    if split not in SPLITS:
        raise MuseVError(f"unknown split {split!r} of the toy world, expected one of {', '.join(SPLITS)}")
    if kind is not None and kind not in KINDS:
        raise MuseVError(f"unknown kind of motion {kind!r}, expected one of {', '.join(KINDS)}")
    rng = np.random.default_rng((SPLITS.index(split), number))
    drawn = str(rng.choice(KINDS, p=(0.40, 0.15, 0.30, 0.15)))
    kind = kind or drawn
    figure = bool(rng.random() < 0.4)
    subject = "figure" if figure else str(rng.choice(SHAPES))
    motions = {
        "directed": ("left", "right") if figure else tuple(DIRECTIONS),
        "enter": ("left", "right"),
        "ambient": ("sway", "bob", "wave") if figure else ("sway", "bob"),
        "wander": ("wander",),
    }[kind]
    motion = str(rng.choice(motions))
    home = (rng.uniform(24, 40), HORIZON - rng.uniform(8, 14) if figure else rng.uniform(23, 41))
    amplitude = rng.uniform(0.4, 1.0, (2, 2, 1)) * rng.choice((-1, 1), (2, 2, 1)) * WANDER_REACH / 2
    made = Scene(
        kind=kind,
        motion=motion,
        subject=subject,
        color=str(rng.choice(list(COLORS))),
        second=(_WHITE, _DARK)[rng.integers(2)],
        texture=str(rng.choice(TEXTURES)),
        radius=rng.uniform(9.5, 12.0),
        home=home,
        phase=rng.uniform(0, 2 * math.pi),
        path=np.concatenate([amplitude, rng.uniform(0.4, 1.3, (2, 2, 1))], axis=-1),
        described=bool(rng.random() < 0.5),
        stage=int(rng.integers(len(STAGES))),
        hill=rng.uniform(0, SIZE),
    )
    if kind != "enter":
        return made
    edge = -made.radius - 2 if motion == "right" else SIZE + made.radius + 2
    return replace(made, home=(edge, _portrait_height(subject)))


def render(scenes: Sequence[Scene], num_frames: int = 13, motion_speed: float | Sequence[float] = 8.0) -> Clips:
    """Pictures of scenes: the condition frame and `num_frames - 1` more, at a motion speed for all or for each."""
    speeds = np.broadcast_to(np.asarray(motion_speed, dtype=float), (len(scenes),))
    # the network sees whole numbers (musev.md 8.7), so the world moves by them too
    units = np.trunc(np.arange(num_frames) * speeds[:, None])  # (b, t)
    states = [_states(s, u) for s, u in zip(scenes, units, strict=True)]
    stage = _stages(scenes)  # (b, 3, h, w)
    portraits = [replace(s, kind="wander", home=(SIZE / 2, _portrait_height(s.subject))) for s in scenes]
    other = [replace(s, stage=(s.stage + 1) % len(STAGES), hill=s.hill + SIZE / 2) for s in scenes]
    empty = stage.new_zeros(stage.shape)
    return Clips(
        captions=[s.caption for s in scenes],
        frames=_picture(scenes, states, stage, pose=False),
        pose=_picture(scenes, states, empty, pose=True),
        reference=_picture(portraits, [_states(s, np.zeros(1)) for s in portraits], _stages(other), pose=False)[:, 0],
        background=_uint8(stage),
        positions=torch.from_numpy(np.stack([state[:, :2] for state in states])).float(),
    )


def _portrait_height(subject: str) -> float:
    """y of the subject's centre in the reference picture, pixels."""
    return 40.0 if subject == "figure" else 32.0


def draw_pose(one: Scene, num_frames: int = 13, motion_speed: float = 8.0) -> Tensor:
    """The pose video of a scene alone, uint8 `(t, 64, 64, 3)`."""
    states = _states(one, np.trunc(np.arange(num_frames) * motion_speed))
    return _picture([one], [states], torch.zeros(1, 3, SIZE, SIZE), pose=True)[0]


def clips(split: str, numbers: Sequence[int], kind: str | None = None, **options: float) -> Clips:
    """Clips of a split by number, rendered; options as for `render`."""
    return render([scene(split, number, kind) for number in numbers], **options)  # type: ignore[arg-type]


def words() -> list[str]:
    """Every word a caption can have, sorted."""
    verbs = ("moves", "walks", "enters", "from", "to", "the", "sways", "bobs", "waves", "wanders", "dances")
    nouns = ("figure", *SHAPES, "shirt", "a", "an", "in")
    return sorted({*verbs, *nouns, *COLORS, *TEXTURES[1:], *DIRECTIONS})


# ------------------------------------------------------------------------------------------ motion

# columns of a state: x, y, lean, and of a figure the angles of the upper and lower limbs, radians from hanging down
_LIMBS = ("left arm", "left forearm", "right arm", "right forearm", "left leg", "left shin", "right leg", "right shin")
_REST = np.array([0.35, 0.5, -0.35, -0.5, 0.16, 0.08, -0.16, -0.08])


def _states(s: Scene, units: np.ndarray) -> np.ndarray:
    """`(t, 11)` states of the subject after so many units of time."""
    state = np.zeros((len(units), 3 + len(_LIMBS)))
    state[:, :2] = s.home
    state[:, 3:] = _REST
    if s.kind in ("directed", "enter"):
        rate = DIRECTED_RATE if s.kind == "directed" else ENTER_RATE
        state[:, :2] += rate * units[:, None] * np.array(DIRECTIONS[s.motion])
        state[:, 3:] = _walk(state[:, 3:], units)
    elif s.kind == "wander":
        cycles = units[:, None, None] / 100 * s.path[..., 1]
        state[:, :2] += (s.path[..., 0] * np.sin(2 * math.pi * cycles)).sum(-1)
        swing = np.sin(2 * math.pi * cycles).reshape(len(units), 4)
        state[:, 3:7] += 1.2 * np.abs(swing) * np.sign(_REST[:4])
        state[:, 7:] += 0.3 * swing
    else:
        wave = np.where(units == 0, 0.0, np.sin(2 * math.pi * units / AMBIENT_PERIOD + s.phase))
        if s.motion == "wave":
            state[:, 3] = 2.4
            state[:, 4] = 3.0 + 0.8 * wave
        elif s.motion == "bob":
            state[:, 1] += AMBIENT_REACH * wave
        elif s.subject == "figure":
            state[:, 2] = 0.4 * wave
        else:
            state[:, 0] += AMBIENT_REACH * wave
    return state


def _walk(limbs: np.ndarray, units: np.ndarray) -> np.ndarray:
    swing = 0.55 * np.sin(2 * math.pi * units / STEPS_PERIOD)[:, None]
    return limbs + swing * np.array([-0.6, -0.6, 0.6, 0.6, 1, 0.7, -1, -0.7])


def _joints(state: np.ndarray) -> dict[str, np.ndarray]:
    """Joints `(t, 2)` of a figure whose hip is its centre."""
    hip, lean = state[:, :2], state[:, 2]

    def along(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
        return start + length * np.stack([np.sin(angle), np.cos(angle)], axis=-1)

    up = lean + math.pi
    neck = along(hip, -up, 13.0)
    side = np.stack([np.cos(lean), np.sin(lean)], axis=-1)
    joints = {"hip": hip, "neck": neck, "head": along(neck, -up, 6.0)}
    angles: dict[str, np.ndarray] = dict(zip(_LIMBS, state[:, 3:].T, strict=True))
    for name, sign in (("left", 1.0), ("right", -1.0)):
        joints[f"{name} shoulder"] = neck + sign * 3.5 * side + np.array([0, 1.5])
        joints[f"{name} elbow"] = along(joints[f"{name} shoulder"], angles[f"{name} arm"], 7.0)
        joints[f"{name} hand"] = along(joints[f"{name} elbow"], angles[f"{name} forearm"], 7.0)
        joints[f"{name} hip"] = hip + sign * 2.0 * side
        joints[f"{name} knee"] = along(joints[f"{name} hip"], angles[f"{name} leg"], 8.0)
        joints[f"{name} foot"] = along(joints[f"{name} knee"], angles[f"{name} shin"], 8.0)
    return joints


# ------------------------------------------------------------------------------------------ pictures


def _stages(scenes: Sequence[Scene]) -> Tensor:
    return draw_stage(
        torch.from_numpy(STAGES[[s.stage for s in scenes]]).float(),
        torch.tensor([[s.hill, HILL, HORIZON] for s in scenes]),
        SIZE,
    )


def _picture(scenes: Sequence[Scene], states: list[np.ndarray], stage: Tensor, *, pose: bool) -> Tensor:
    """uint8 `(b, t, h, w, 3)`: the subjects, or their poses, on stages `(b, 3, h, w)`."""
    t = len(states[0])
    out = torch.empty(len(scenes), t, SIZE, SIZE, 3, dtype=torch.uint8)
    for figures in (True, False):
        rows = [i for i, s in enumerate(scenes) if (s.subject == "figure") is figures]
        if not rows:
            continue
        canvas = stage[rows].repeat_interleave(t, 0)
        some = [scenes[i] for i in rows]
        state = np.stack([states[i] for i in rows])  # (b, t, 11)
        if figures:
            strokes = _bones(state) if pose else _limbs(some, state)
            draw_strokes(canvas, strokes)
        elif pose:
            draw_strokes(canvas, _cross(some, state))
        else:
            shape = [[SHAPES.index(s.subject), TEXTURES.index(s.texture), s.radius] for s in some]
            colors = torch.tensor([[COLORS[s.color], s.second] for s in some])
            draw_shape(
                canvas,
                torch.from_numpy(state[..., :2]).float().flatten(0, 1),
                torch.tensor(shape).repeat_interleave(t, 0),
                colors.repeat_interleave(t, 0),
            )
        out[rows] = _uint8(canvas).unflatten(0, (len(rows), t))
    return out


def _uint8(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _points(joints: dict[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(joints[name]).float()


def _limbs(scenes: Sequence[Scene], state: np.ndarray) -> list[Stroke]:
    t = state.shape[1]
    joints = _joints(state.reshape(-1, state.shape[-1]))
    shirt = torch.tensor([COLORS[s.color] for s in scenes]).repeat_interleave(t, 0)
    trousers = torch.tensor([s.second for s in scenes]).repeat_interleave(t, 0) * 0.6 + 0.15
    skin = torch.tensor(_SKIN).expand_as(shirt)
    hair = torch.tensor(_DARK).expand_as(shirt)
    parts = []
    for side in ("right", "left"):
        parts += [
            (f"{side} hip", f"{side} knee", 2.3, trousers),
            (f"{side} knee", f"{side} foot", 2.1, trousers),
        ]
    parts += [("hip", "neck", 4.2, shirt), ("head", "head", 5.2, hair)]
    for side in ("right", "left"):
        parts += [
            (f"{side} shoulder", f"{side} elbow", 2.0, shirt),
            (f"{side} elbow", f"{side} hand", 1.8, skin),
        ]
    strokes = [Stroke(_points(joints, a), _points(joints, b), width, color) for a, b, width, color in parts]
    face = _points(joints, "head") + torch.tensor([0.0, 1.2])
    strokes.insert(6, Stroke(face, face, 4.0, skin))
    return strokes


# OpenPose's colors in their order, dimmed as its pictures are
_BONES = (
    ("neck", "right shoulder", (255, 0, 0)),
    ("neck", "left shoulder", (255, 85, 0)),
    ("right shoulder", "right elbow", (255, 170, 0)),
    ("right elbow", "right hand", (255, 255, 0)),
    ("left shoulder", "left elbow", (170, 255, 0)),
    ("left elbow", "left hand", (85, 255, 0)),
    ("neck", "right hip", (0, 255, 0)),
    ("right hip", "right knee", (0, 255, 85)),
    ("right knee", "right foot", (0, 255, 170)),
    ("neck", "left hip", (0, 255, 255)),
    ("left hip", "left knee", (0, 170, 255)),
    ("left knee", "left foot", (0, 85, 255)),
    ("neck", "head", (0, 0, 255)),
)


def _bones(state: np.ndarray) -> list[Stroke]:
    joints = _joints(state.reshape(-1, state.shape[-1]))
    return [
        Stroke(_points(joints, a), _points(joints, b), 1.0, torch.tensor(color).expand(len(joints["hip"]), 3) / 255)
        for a, b, color in _BONES
    ]


def _cross(scenes: Sequence[Scene], state: np.ndarray) -> list[Stroke]:
    """A shape's pose: a bone to each of its four sides."""
    t = state.shape[1]
    centre = torch.from_numpy(state[..., :2]).float().flatten(0, 1)
    radius = torch.tensor([s.radius for s in scenes]).repeat_interleave(t, 0)[:, None]
    strokes = []
    for (x, y), color in zip(DIRECTIONS.values(), ((0, 0, 255), (255, 255, 0), (255, 0, 0), (0, 255, 0)), strict=True):
        end = centre + radius * torch.tensor([x, y])
        strokes.append(Stroke(centre, end, 1.0, torch.tensor(color).expand(len(centre), 3) / 255))
    return strokes
