"""A real ComfyUI server in a process of its own, with the pack installed as the registry would, and a client for it."""

import asyncio
import atexit
import contextlib
import fnmatch
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from . import comfyui
from .tiny_models import write_models

FOLDER = "007 MuseV-nodes v0.1 (copy)"  # whoever unpacks an archive by hand has names like this
START_SECONDS, RUN_SECONDS = 300, 300

# Runs inside the server, beside the pack: what only that process can count, and what only insightface can make.
_HELPERS = """
import gc
from types import SimpleNamespace

import numpy
import psutil
import torch
from aiohttp import web
from server import PromptServer


@PromptServer.instance.routes.get("/test/memory")
async def memory(request):
    gc.collect()
    tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    return web.json_response({"tensors": tensors, "rss": psutil.Process().memory_info().rss})


class FaceAnalysis:
    def prepare(self, ctx_id, det_size):
        pass

    def get(self, image):
        embedding = numpy.arange(512, dtype=numpy.float32) - image.mean() / 255
        embedding /= numpy.linalg.norm(embedding)
        box = numpy.array([8.0, 8.0, 40.0, 40.0], dtype=numpy.float32)
        return [SimpleNamespace(bbox=box, det_score=0.9, normed_embedding=embedding, embedding=embedding)]


class Faces:
    RETURN_TYPES, FUNCTION, CATEGORY = ("INSIGHTFACE",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (FaceAnalysis(),)


class Broken:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def make(self, model):
        def patch(q, k, v, options):
            raise RuntimeError("an error of another pack")

        broken = model.clone()
        broken.set_model_attn2_patch(patch)
        return (broken,)


NODE_CLASS_MAPPINGS = {"Test_Faces": Faces, "Test_Broken": Broken}
"""


# of the front end: no greeting, no workflow of an earlier session, nothing over the graph
_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.UseNewMenu": "Top",
}


class ServerError(Exception):
    """The server does not start, or refuses a workflow; the message has the end of its log."""


class Rejected(ServerError):
    """The server answered 400 to a workflow: `node_errors` says which value of which node."""

    def __init__(self, answer: dict):
        super().__init__(json.dumps(answer, indent=1))
        self.node_errors = answer.get("node_errors", {})


@dataclass
class Run:
    """What the websocket said about one workflow."""

    messages: list[tuple[str, dict]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)  # JPEG or PNG
    texts: list[tuple[str, str]] = field(default_factory=list)  # node, and what it shows
    seconds: float = 0.0

    @property
    def end(self) -> str:
        """`execution_success`, `execution_error` or `execution_interrupted`."""
        return self.messages[-1][0]

    @property
    def error(self) -> str:
        """The sentence that an artist reads; empty after a good run."""
        return self.messages[-1][1].get("exception_message", "").strip()

    @property
    def executed(self) -> list[str]:
        """Ids of the nodes that ran, in order; results kept from an earlier run are not among them."""
        return [data["node"] for kind, data in self.messages if kind == "executing" and data["node"]]

    def outputs(self) -> dict[str, dict]:
        """Node id -> what it shows: `images` and the like."""
        return {data["node"]: data["output"] for kind, data in self.messages if kind == "executed" and data["output"]}

    def progress(self) -> dict[str, list[float]]:
        """Node id -> the parts done, in the order in which they were reported."""
        found: dict[str, list[float]] = {}
        for kind, data in self.messages:
            if kind == "progress":
                found.setdefault(data["node"], []).append(data["value"] / data["max"])
        return found


class Server:
    """One ComfyUI on the CPU with a folder of its own for models, input, output and the pack.

    Args:
        version: of ComfyUI, as `comfyui.tree` takes it.
    """

    def __init__(self, version: str):
        self.tree = comfyui.tree(version)
        self.base = Path(tempfile.mkdtemp(prefix="musev-comfyui-"))
        self.log = self.base / "server.log"
        self.process: subprocess.Popen | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def start(self) -> "Server":
        """Installs pack and models, starts the process and waits until it answers.

        Raises:
            ServerError: it ends or stays silent, or a pack could not be imported.
        """
        for name in ("custom_nodes", "models", "input", "output", "user", "temp"):
            (self.base / name).mkdir()
        install(self.base / "custom_nodes" / FOLDER)
        (self.base / "custom_nodes" / "test_helpers.py").write_text(_HELPERS, encoding="utf-8")
        write_inputs(self.base / "input")
        settings = self.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir()
        settings.write_text(json.dumps(_SETTINGS), encoding="utf-8")
        write_models(self.base / "models")
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.url.rpartition(":")[2]]
        command += ["--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base}/user/comfyui.db"]
        command += ["--disable-api-nodes", "--preview-method", "latent2rgb"]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env["OMP_WAIT_POLICY"] = "passive"  # threads which spin are forty times slower on a busy machine
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=self.tree, env=env, stdout=log, stderr=subprocess.STDOUT)
        atexit.register(self.stop)
        self._wait()
        return self

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI ended with {self.process.returncode}:\n{self.log_end()}")
            if time.monotonic() > until:
                raise ServerError(f"ComfyUI was silent for {START_SECONDS} s:\n{self.log_end()}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/system_stats")
                break
            time.sleep(0.2)
        told = self.log.read_text(encoding="utf-8", errors="replace")
        if "(IMPORT FAILED)" in told:  # without brackets it is a file of ComfyUI's own
            raise ServerError(f"a node pack could not be imported:\n{self.log_end(20_000)}")

    def stop(self) -> None:
        """Ends the process and deletes its folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def video_frames(self, output: dict) -> np.ndarray:
        """The frames of what SaveVideo shows, uint8 `(frames, height, width, 3)`."""
        (file,) = output["images"]
        with av.open(str(self.base / file["type"] / file["subfolder"] / file["filename"])) as video:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])

    def log_end(self, count: int = 4000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-count:]

    def get(self, path: str):
        """JSON of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: dict) -> dict:
        """JSON of a POST request; an empty answer is an empty dict.

        Raises:
            Rejected: the workflow is not valid.
        """
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise Rejected(json.loads(error.read())) from None

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def memory(self) -> dict[str, int]:
        """`rss` in bytes and `tensors`, the number of tensors alive in the server."""
        return self.get("/test/memory")

    def run(self, workflow: dict, *, interrupt: Callable[[Run], bool] | None = None) -> Run:
        """Queues a workflow in API format and follows it to its end.

        Args:
            interrupt: looked at after every message; the run is interrupted when it first answers yes.

        Raises:
            Rejected: the server does not take the workflow.
            ServerError: no end within `RUN_SECONDS`.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._run(workflow, interrupt), RUN_SECONDS))
        except (asyncio.TimeoutError, TimeoutError) as error:
            self.interrupt()
            raise ServerError(f"a workflow ran for more than {RUN_SECONDS} s:\n{self.log_end()}") from error
        except OSError as error:
            raise ServerError(f"ComfyUI is gone ({self.process.poll()}):\n{self.log_end()}") from error

    async def _run(self, workflow: dict, interrupt: Callable[[Run], bool] | None) -> Run:
        import aiohttp

        run, started = Run(), time.monotonic()
        address = self.url.replace("http", "ws", 1) + "/ws?clientId=tests"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            body = {"prompt": workflow, "client_id": "tests"}
            prompt = (await asyncio.to_thread(self.post, "/prompt", body))["prompt_id"]
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    self._binary(run, message.data)
                elif message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    if content["data"].get("prompt_id") != prompt:
                        continue
                    run.messages.append((content["type"], content["data"]))
                    if content["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        run.seconds = time.monotonic() - started
                        return run
                if interrupt and interrupt(run):
                    interrupt = None
                    await asyncio.to_thread(self.interrupt)
        raise ServerError(f"the connection ended before the workflow did:\n{self.log_end()}")

    @staticmethod
    def _binary(run: Run, data: bytes) -> None:
        kind = int.from_bytes(data[:4], "big")
        if kind == 3:  # text of a node, whose name comes first, with its length
            end = 8 + int.from_bytes(data[4:8], "big")
            run.texts.append((data[8:end].decode(), data[end:].decode()))
        if kind == 1:  # JPEG or PNG after one more number
            run.previews.append(data[8:])
        elif kind == 4:  # metadata first, with its length
            run.previews.append(data[8 + int.from_bytes(data[4:8], "big") :])


def write_inputs(folder: Path) -> None:
    """What the workflows name: a picture and a video of 8 frames, 64 pixels wide; and one more picture."""
    with Image.open(comfyui.ROOT / "tests" / "support" / "photograph.jpg") as picture:
        picture = picture.convert("RGB").resize((64, 64))
    picture.save(folder / "example.png")
    picture.transpose(Image.Transpose.ROTATE_180).save(folder / "upside_down.png")
    still = np.asarray(picture)
    with av.open(str(folder / "video.mp4"), "w") as video:
        stream = video.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shift in range(8):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(still, shift, axis=1)), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def install(folder: Path) -> None:
    """Copies the pack without what `.comfyignore` and `.gitignore` name, as a download from the registry is."""
    ignored = [".git"]
    for name in (".comfyignore", ".gitignore"):
        file = comfyui.ROOT / name
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        ignored += [line.strip("/") for line in lines if line.strip() and not line.startswith("#")]

    def skip(directory: str, names: list[str]) -> set[str]:
        inside = Path(directory).relative_to(comfyui.ROOT)
        return {n for n in names for i in ignored if fnmatch.fnmatch(str(inside / n) if "/" in i else n, i)}

    shutil.copytree(comfyui.ROOT, folder, ignore=skip)


@cache
def running(version: str) -> Server:
    """The server which all tests share; it is stopped at the end of the process.

    Raises:
        comfyui.NoComfyUI: there is none of this version.
    """
    server = Server(version)
    try:
        return server.start()
    except BaseException:
        server.stop()
        raise
