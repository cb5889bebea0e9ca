"""`musev models download`, against a small hub served over real HTTP."""

import logging
import shutil
import time
from pathlib import Path

import pytest
from support import fake_hub, published
from support.fake_hub import FakeHub

from musev_core.cli import main
from musev_core.locks import alone_with
from musev_core.pose.detectors import DETECTORS, find_weights
from musev_core.weights import hub as hub_module
from musev_core.weights.download import models_folder, size_text
from musev_core.weights.layout import find_musev_files
from musev_core.weights.published import MUSEV_REPO, PUBLISHED, sources_of

LCM = "latent-consistency/lcm-lora-sdv1-5"
LORA = "pytorch_lora_weights.safetensors"
UNET = "motion/musev/unet/diffusion_pytorch_model.bin"
CONFIG = "motion/musev/unet/config.json"
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before it tries again
    monkeypatch.setattr(hub_module, "_BLOCK", 50_000)  # what it writes at once
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere")
    with fake_hub.serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add(LCM, LORA, WEIGHTS)
        hub.add(LCM, "README.md", b"not asked for")
        yield hub
    logging.getLogger().handlers.clear()


@pytest.fixture
def musev(hub):
    hub.add(MUSEV_REPO, UNET, WEIGHTS)
    hub.add(MUSEV_REPO, CONFIG, b'{"x": 1}')
    hub.add(MUSEV_REPO, "motion/musev/unet/config.json.bk", b"{}")
    hub.add(MUSEV_REPO, "motion/musev_referencenet/unet/config.json", b"{}")
    return hub


def download(root: Path, *arguments: str) -> int:
    return main(["models", "download", *arguments, "--to", str(root)])


def files(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.suffix != ".lock"
    }


def parts(root: Path) -> list[Path]:
    return list(root.rglob("*.part"))


def comfyui(root: Path) -> Path:
    for name in ("models/checkpoints", "custom_nodes"):
        (root / name).mkdir(parents=True)
    return root


# Where things go


def test_a_downloaded_model_is_found_and_complete(hub, tmp_path, capsys):
    made = published.write_musev(tmp_path / "made")
    hub.add_folder(MUSEV_REPO, made, "motion/musev_referencenet/")
    root = tmp_path / "checkpoints"
    assert download(root, "musev_referencenet") == 0
    assert files(root / "motion" / "musev_referencenet") == files(made)
    found = find_musev_files(root)
    assert found.referencenet is not None and found.image_proj is not None
    assert main(["models", "check", str(root)]) == 0
    assert "non-commercial" in capsys.readouterr().out


def test_the_pose_model_brings_the_referencenet_it_needs(hub, tmp_path):
    made = published.write_musev(tmp_path / "made")
    hub.add_folder(MUSEV_REPO, made, "motion/musev_referencenet/")
    hub.add_folder(MUSEV_REPO, made / "unet", "motion/musev_referencenet_pose/unet/")
    assert download(tmp_path / "checkpoints", "musev_referencenet_pose") == 0
    found = find_musev_files(tmp_path / "checkpoints", "musev_referencenet_pose")
    assert found.referencenet is not None
    assert not (tmp_path / "checkpoints/motion/musev_referencenet/unet").exists()


def test_only_what_was_asked_for_is_fetched(musev, tmp_path):
    assert download(tmp_path, "musev") == 0
    assert files(tmp_path) == {CONFIG: b'{"x": 1}', UNET: WEIGHTS}


def test_a_comfyui_folder_is_recognised_and_gets_its_own_layout(musev, tmp_path):
    root = comfyui(tmp_path / "anything")
    assert download(root, "musev", "lcm") == 0
    tree = f"models/diffusers/{MUSEV_REPO}/"
    assert files(root) == {
        tree + CONFIG: b'{"x": 1}',
        tree + UNET: WEIGHTS,
        "models/loras/lcm-lora-sdv1-5.safetensors": WEIGHTS,
    }


def test_layouts(tmp_path):
    root = comfyui(tmp_path / "comfy")
    assert models_folder(root) == models_folder(root / "models") == root / "models"
    assert models_folder(root, "original") is None and models_folder(tmp_path) is None
    assert models_folder(tmp_path / "new", "comfyui") == tmp_path / "new" / "models"
    for name in ("checkpoints", "loras"):  # ComfyUI's --models-directory
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    assert models_folder(tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_configurations_that_comfyui_has_no_use_for_are_left_out(hub, tmp_path):
    repo = "stabilityai/sd-vae-ft-mse"
    hub.add(repo, "config.json", b"{}")
    hub.add(repo, "diffusion_pytorch_model.safetensors", WEIGHTS)
    assert download(tmp_path / "a", "vae", "--layout", "comfyui") == 0
    assert list(files(tmp_path / "a")) == ["models/vae/sd-vae-ft-mse.safetensors"]
    assert download(tmp_path / "b", "vae", "--layout", "original") == 0
    assert len(files(tmp_path / "b/vae/sd-vae-ft-mse")) == 2


@pytest.mark.parametrize("name", [name for name, detector in DETECTORS.items() if detector.files])
def test_weights_of_preprocessors_go_where_these_look_for_them(hub, tmp_path, name):
    detector = DETECTORS[name]
    for file in detector.files.values():
        hub.add(detector.repository, file, b"weights")
    assert download(tmp_path, f"preprocessor_{name}", "--layout", "comfyui") == 0
    found = find_weights(detector, [tmp_path / "models" / "controlnet_aux"], purpose=name)
    assert found.keys() == detector.files.keys()


@pytest.mark.parametrize("layout", ["original", "comfyui"])
def test_no_two_published_files_have_one_place(layout):
    places = [place for source in sources_of(list(PUBLISHED)) if (place := getattr(source, layout)) is not None]
    assert len(set(places)) == len(places)


def test_folders_stay_folders_and_files_files():
    for source in sources_of(list(PUBLISHED)):
        for place in (source.original, source.comfyui):
            assert place is None or place.endswith("/") == source.path.endswith("/"), source


# What is there already


def test_what_is_there_is_verified_and_not_fetched_again(musev, tmp_path, capsys):
    assert download(tmp_path, "musev") == 0
    musev.requests.clear()
    assert download(tmp_path, "musev") == 0
    assert musev.fetched() == []
    assert "already there" in capsys.readouterr().out


def test_a_dry_run_shows_sizes_and_writes_nothing(musev, tmp_path, capsys):
    assert download(tmp_path / "new", "musev", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "1.02 MB" in out and "to fetch: 1.02 MB" in out and "free" in out
    assert not (tmp_path / "new").exists() and musev.fetched() == []


@pytest.mark.parametrize("name, mine", [(UNET, bytes(len(WEIGHTS))), (CONFIG, b'{"x": 2}'), (UNET, b"short")])
def test_a_file_of_the_users_own_is_kept_and_replaced_only_on_request(musev, tmp_path, capsys, name, mine):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(mine)
    assert download(tmp_path, "musev") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error and "--overwrite" in error
    other = CONFIG if name == UNET else UNET
    assert files(tmp_path) == {name: mine, other: musev.repos[MUSEV_REPO][other]}  # the rest was fetched
    assert download(tmp_path, "musev", "--overwrite") == 0
    assert files(tmp_path) == {CONFIG: b'{"x": 1}', UNET: WEIGHTS}


def test_a_file_to_be_overwritten_stays_until_the_new_one_is_verified(musev, tmp_path):
    (tmp_path / UNET).parent.mkdir(parents=True)
    (tmp_path / UNET).write_bytes(b"mine")
    musev.altered.add(UNET)
    assert download(tmp_path, "musev", "--overwrite") == 1
    assert (tmp_path / UNET).read_bytes() == b"mine"


def test_pointers_left_by_git_are_replaced_by_the_files(musev, tmp_path):
    (tmp_path / UNET).parent.mkdir(parents=True)
    (tmp_path / UNET).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", encoding="utf-8"
    )
    assert download(tmp_path, "musev") == 0
    assert (tmp_path / UNET).read_bytes() == WEIGHTS


# What goes wrong on the way


def test_a_broken_connection_is_continued_where_it_broke(hub, tmp_path):
    hub.cut_after[LORA] = 300_000
    assert download(tmp_path, "lcm") == 0
    assert files(tmp_path) == {f"lcm/lcm-lora-sdv1-5/{LORA}": WEIGHTS}
    assert [r.range for r in hub.requests if "/cdn/" in r.path] == [None, "bytes=300000-"]


def interrupted(hub: FakeHub, root: Path) -> None:
    """A download that breaks off after 300 000 bytes and cannot go on; then the hub is well again."""
    hub.cut_after[LORA] = 300_000
    hub.down_after_cut = True
    assert download(root, "lcm") == 1
    hub.refusals.clear()
    hub.requests.clear()


def test_the_next_run_goes_on_where_an_interrupted_one_stopped(hub, tmp_path, capsys):
    interrupted(hub, tmp_path)
    assert "503" in capsys.readouterr().err
    (part,) = parts(tmp_path)
    assert part.read_bytes() == WEIGHTS[:300_000]
    assert download(tmp_path, "lcm") == 0
    assert "724 kB of it missing" in capsys.readouterr().out
    assert [r.range for r in hub.requests if "/cdn/" in r.path] == ["bytes=300000-"]
    assert files(tmp_path) == {f"lcm/lcm-lora-sdv1-5/{LORA}": WEIGHTS}


def test_two_runs_do_not_write_one_file(hub, tmp_path, capsys):
    interrupted(hub, tmp_path)
    capsys.readouterr()
    with alone_with(tmp_path / "lcm/lcm-lora-sdv1-5" / LORA, "downloading"):
        assert download(tmp_path, "lcm") == 1
    error = capsys.readouterr().err
    assert "Another run is downloading" in error and parts(tmp_path)[0].read_bytes() == WEIGHTS[:300_000]
    assert download(tmp_path, "lcm") == 0


def test_ctrl_c_keeps_what_came(hub, tmp_path, capsys, monkeypatch):
    def pressed(seconds):
        raise KeyboardInterrupt

    hub.cut_after[LORA] = 300_000
    monkeypatch.setattr(time, "sleep", pressed)
    assert download(tmp_path, "lcm") == 130
    assert "goes on from here" in capsys.readouterr().err
    assert [part.stat().st_size for part in parts(tmp_path)] == [300_000]


def test_a_partial_file_is_not_continued_with_other_content(hub, tmp_path):
    interrupted(hub, tmp_path)
    newer = hub.add(LCM, LORA, WEIGHTS[::-1])
    assert download(tmp_path, "lcm") == 0
    assert (tmp_path / "lcm/lcm-lora-sdv1-5" / LORA).read_bytes() == newer


def test_a_server_that_cannot_continue_sends_everything_again(hub, tmp_path):
    interrupted(hub, tmp_path)
    hub.knows_ranges = False
    assert download(tmp_path, "lcm") == 0
    assert files(tmp_path) == {f"lcm/lcm-lora-sdv1-5/{LORA}": WEIGHTS}


@pytest.mark.parametrize("name", [UNET, CONFIG])
def test_what_arrives_damaged_is_deleted_and_fetched_anew_by_the_next_run(musev, tmp_path, capsys, name):
    musev.altered.add(name)
    assert download(tmp_path, "musev") == 1
    error = capsys.readouterr().err
    assert "damaged" in error and Path(name).name in error
    assert name not in files(tmp_path) and parts(tmp_path) == []
    musev.altered.clear()
    assert download(tmp_path, "musev") == 0
    assert files(tmp_path) == {CONFIG: b'{"x": 1}', UNET: WEIGHTS}


def test_the_disk_must_have_room_before_anything_is_fetched(musev, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert download(tmp_path, "musev") == 1
    error = capsys.readouterr().err
    assert "1.02 MB" in error and "1.00 kB are free" in error
    assert musev.fetched() == [] and files(tmp_path) == {}


def test_a_place_that_cannot_be_written_is_named(hub, tmp_path, capsys):
    (tmp_path / "lcm").write_bytes(b"a file where a folder should be")
    assert download(tmp_path, "lcm") == 1
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "where, refusal, message",
    [
        (LCM, (503, ""), "the hub answered 503"),
        (LCM, (404, "RepoNotFound"), "not on the hub"),
        (LCM, (401, "RepoNotFound"), "private"),
        (LORA, (403, "GatedRepo"), "accept its terms"),
        (LORA, (404, "EntryNotFound"), "the hub answered 404"),
    ],
)
def test_refusals_of_the_hub_are_one_sentence(hub, tmp_path, capsys, where, refusal, message):
    hub.refusals[where] = refusal
    assert download(tmp_path, "lcm") == 1
    error = capsys.readouterr().err
    assert message in error and LCM in error and error.count("\n") == 1


def test_without_a_network_one_sentence_says_so(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert download(tmp_path, "lcm") == 1
    error = capsys.readouterr().err
    assert "cannot be reached" in error and "HTTPS_PROXY" in error and error.count("\n") == 1


def test_files_that_are_gone_from_the_hub_are_named(hub, tmp_path, capsys):
    hub.repos[LCM] = {"README.md": b""}
    assert download(tmp_path, "lcm") == 1
    assert f"{LORA} is no longer in {LCM}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["../../outside.bin", "/outside.bin", "..\\outside.bin", "C:outside.bin", "a\0b", "a\nb", "x/./y", "nul", "a."],
)
def test_names_that_leave_their_folder_are_refused(musev, tmp_path, capsys, name):
    musev.add(MUSEV_REPO, f"motion/musev/{name}", WEIGHTS)
    assert download(tmp_path / "a", "musev") == 1
    assert "not fetched" in capsys.readouterr().err
    assert files(tmp_path) == {}


@pytest.fixture
def secure_hub(hub, monkeypatch):
    with fake_hub.serve(secure=True) as secure:
        monkeypatch.setenv("HF_ENDPOINT", secure.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(fake_hub.CERTIFICATE))
        secure.add(LCM, LORA, WEIGHTS)
        yield secure


def logins(hub: FakeHub) -> dict[str, str | None]:
    """What was shown to whom."""
    return {r.path.split("/")[1]: r.headers.get("authorization") for r in hub.requests}


@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_login_is_shown_to_the_hub_and_not_to_other_hosts(secure_hub, tmp_path, monkeypatch, place):
    (tmp_path / "token").write_text("hf_secret\n", encoding="utf-8")
    monkeypatch.setenv(
        *{"variable": ("HF_TOKEN", "hf_secret"), "file": ("HF_TOKEN_PATH", str(tmp_path / "token"))}[place]
    )
    assert download(tmp_path / "a", "lcm") == 0
    assert logins(secure_hub) == {"api": "Bearer hf_secret", "latent-consistency": "Bearer hf_secret", "cdn": None}


def test_a_login_is_not_sent_without_https(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download(tmp_path, "lcm") == 0
    assert logins(hub) == {"api": None, "latent-consistency": None, "cdn": None}


@pytest.mark.parametrize("token", ["hf_\nX-Header: 1", "hf_\u00e9"])
def test_a_login_that_is_none_is_not_sent(secure_hub, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert download(tmp_path, "lcm") == 0
    assert set(logins(secure_hub).values()) == {None}


def test_a_hub_that_is_not_who_it_says_is_not_asked(secure_hub, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    assert download(tmp_path, "lcm") == 1
    assert "certificate" in capsys.readouterr().err and secure_hub.requests == []


# What a hub, or a network that answers for it, may say


@pytest.mark.parametrize(
    "listing",
    [
        b"<!DOCTYPE html><title>Log in</title>",
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"sha": 1' + b"0" * 5000 + b', "siblings": []}',
        b"\xff\xfe",
        b'{"sha": null, "siblings": []}',
        b'{"sha": "../../x", "siblings": []}',
        b'{"sha": "%s", "siblings": null}' % fake_hub.COMMIT.encode(),
        b'{"sha": "%s", "siblings": [null]}' % fake_hub.COMMIT.encode(),
        b'{"sha": "%s", "siblings": [{}]}' % fake_hub.COMMIT.encode(),
        b'{"sha": "%s", "siblings": [{"rfilename": 5}]}' % fake_hub.COMMIT.encode(),
        fake_hub.ENDLESS,
    ],
    ids=lambda listing: repr(listing[:40]),
)
def test_what_is_no_listing_is_one_sentence(hub, tmp_path, capsys, listing):
    hub.listings[LCM] = listing
    assert download(tmp_path, "lcm") == 1
    error = capsys.readouterr().err
    assert "no listing" in error and LCM in error and error.count("\n") == 1 and len(error) < 1000
    assert hub.poured < 200_000_000


@pytest.mark.parametrize(
    "entry",
    [
        {"lfs": {"size": None}},
        {"lfs": {"size": -1}},
        {"lfs": {"size": True}},
        {"lfs": {"size": "1024000"}},
        {"lfs": {"size": 1e6}},
        {"lfs": {"size": 10**30}},
        {"lfs": {"size": float("nan")}},
        {"lfs": {"size": 10, "sha256": None}},
        {"lfs": {"size": 10, "sha256": "../x"}},
        {"lfs": {"size": 10}},
        {"lfs": [1]},
        {"lfs": None, "size": None},
        {"blobId": None},
        {"blobId": 5},
    ],
    ids=str,
)
def test_entries_that_cannot_be_are_one_sentence(hub, tmp_path, capsys, entry):
    hub.entries[LORA] = entry
    assert download(tmp_path, "lcm") == 1
    error = capsys.readouterr().err
    assert LCM in error and error.count("\n") == 1 and "Traceback" not in error
    assert hub.fetched() == [] and files(tmp_path) == {}


def test_what_is_said_of_other_files_is_not_looked_at(hub, tmp_path):
    hub.entries["README.md"] = {"size": None, "blobId": None}
    assert download(tmp_path, "lcm") == 0


HTML = b"<html>" + bytes(len(WEIGHTS) - 6)


@pytest.mark.parametrize(
    "answer, message",
    [
        ((200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Log in</html>"), "a web page came"),
        ((200, {"Content-Type": "text/html"}, HTML), "a web page came"),
        ((200, {}, b"<html>Log in</html>"), "another file"),
        ((200, {}, HTML), "damaged"),
        ((200, {}, b""), "another file"),
        ((200, {}, fake_hub.ENDLESS), "damaged"),
        ((200, {"Content-Length": "10" + "0" * 40}, WEIGHTS), ""),
        ((200, {"Content-Encoding": "gzip"}, bytes(len(WEIGHTS))), "damaged"),
        ((206, {}, WEIGHTS[:10]), "another file"),
        ((204, {}, b""), "another file"),
        ((302, {"Location": "http://127.0.0.1:9/x"}, b""), "cannot be reached"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "not safe to follow"),
        ((302, {"Location": "ftp://127.0.0.1/x"}, b""), "not safe to follow"),
        ((302, {"Location": "?again"}, b""), "without an end"),
        ((302, {"Location": "http://[::1"}, b""), "cannot be reached"),
        ((302, {}, b""), "the hub answered 302"),
        ((416, {}, b""), "the hub answered 416"),
        ((500, {}, b""), "the hub answered 500"),
        ((429, {}, b""), "the hub answered 429"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_comes_instead_of_a_file_is_one_sentence(hub, tmp_path, capsys, answer, message):
    hub.answers[LORA] = answer
    status = download(tmp_path, "lcm")
    error = capsys.readouterr().err
    if not message:  # it is the file nevertheless
        assert status == 0
        return
    assert status == 1 and message in error and error.count("\n") == 1
    assert files(tmp_path) == {} or parts(tmp_path), "something else than a part was left"
    assert hub.poured < 50_000_000
    hub.answers.clear()
    assert download(tmp_path, "lcm") == 0
    assert files(tmp_path) == {f"lcm/lcm-lora-sdv1-5/{LORA}": WEIGHTS}


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Range": "bytes 0-9/10"}, {"Content-Range": "items 300000-9/10"}, {"Content-Range": "bytes"}],
    ids=str,
)
def test_another_part_than_was_asked_for_is_not_put_behind_the_first(hub, tmp_path, headers):
    interrupted(hub, tmp_path)
    hub.answers[LORA] = (206, headers, bytes(len(WEIGHTS) - 300_000))
    assert download(tmp_path, "lcm") == 1
    hub.answers.clear()
    assert download(tmp_path, "lcm") == 0
    assert files(tmp_path) == {f"lcm/lcm-lora-sdv1-5/{LORA}": WEIGHTS}


def test_a_way_from_https_to_http_is_not_followed(secure_hub, tmp_path, capsys):
    secure_hub.answers[LORA] = (302, {"Location": "http://localhost/x"}, b"")
    assert download(tmp_path, "lcm") == 1
    assert "not safe to follow" in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1", "http://", "http://[", "http://\u00e9\u0000.x:9"])
def test_an_endpoint_that_is_none_is_named(hub, tmp_path, capsys, monkeypatch, endpoint):
    if "\0" in endpoint:
        endpoint = endpoint.replace("\0", "\n")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert download(tmp_path, "lcm") == 1
    error = capsys.readouterr().err
    assert error.startswith("musev: ") and error.count("\n") == 1 and "a bug of" not in error


def test_offline_is_respected(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(tmp_path, "lcm") == 1
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err and hub.requests == []


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_600_000, "12.6 MB"), (5_680_000_000, "5.68 GB")]
    + [(999_600, "1.00 MB"), (158_000_000, "158 MB"), (2_000_000_000_000, "2000 GB")],
)
def test_sizes_are_written_for_people(size, text):
    assert size_text(size) == text
