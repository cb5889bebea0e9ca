"""Damaged, hostile and wrong weight files: a sentence or a good result, in bounded time and memory (`bounded`)."""

import io
import json
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from functools import cache

import fuzz_weights
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import damage
from support.bounded import bounded
from support.weight_readers import BY_KIND, EVERYTHING

from musev_core.errors import CheckpointError, MuseVError
from musev_core.weights.check import check_path
from musev_core.weights.config_json import read_config
from musev_core.weights.files import read_shapes, read_tensors

kinds = cache(damage.networks)


def everything(path):
    """Every reader keeps its promise; the outcome of `read_shapes`."""
    outcomes = {
        name: bounded(lambda r=reader: r(path), size=path.stat().st_size)
        for name, reader in {**EVERYTHING, **BY_KIND}.items()
    }
    assert isinstance(outcomes["check"], MuseVError) or outcomes["check"].lines
    return outcomes["read_shapes"]


# Headers


def safetensors(path, header, data=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(*shape, dtype="F32", offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "nested lists": b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "infinite size": b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}',
    "a number of 4000 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,4]}}',
    "a number of 9000 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 9000 + b'],"data_offsets":[0,4]}}',
    "negative size": {"a": entry(-1)},
    "sizes whose product is negative twice": {"a": entry(-1, -1)},
    "size as fraction": {"a": entry(1.0)},
    "size as text": {"a": entry("1")},
    "size as truth": {"a": entry(True)},
    "shape as text": {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
    "a million axes": {"a": entry(*[1] * 100_000)},
    "huge sizes and none": {"a": entry(2**62, 2**62, 0, offsets=(0, 0))},
    "more than the file": {"a": entry(2**40, offsets=(0, 2**42))},
    "offsets backwards": {"a": entry(1, offsets=(4, 0))},
    "one offset": {"a": entry(1, offsets=(0,))},
    "negative offsets": {"a": entry(1, offsets=(-4, 0))},
    "a hole": {"a": entry(1), "b": entry(1, offsets=(8, 12))},
    "overlapping": {"a": entry(2, offsets=(0, 8)), "b": entry(2, offsets=(4, 12))},
    "nothing for the rest": {"a": entry(1)},
    "unknown type": {"a": entry(1, dtype="F3")},
    "type as list": {"a": entry(1, dtype=["F32"])},
    "a list": [entry(1)],
    "a number": 7,
    "null": None,
    "half a character": b'{"\\ud800":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "half a character as escape": {"\ud800": entry(16, offsets=(0, 64))},
    "no text at all": bytes(range(128, 256)),
    "a name without end": {"a" * 100_000: entry(16, offsets=(0, 64))},
    "many tensors": b"{" + b",".join(b'"%d":1' % i for i in range(500_000)) + b"}",
    "many empty lists": b'{"a":[' + b"[]," * 2_000_000 + b"1]}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, name):
    path = safetensors(tmp_path / "a.safetensors", HEADERS[name])
    error = everything(path)
    assert isinstance(error, CheckpointError)
    assert str(path) in str(error) and len(str(error)) < 1000 and str(error).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "text_model.embeddings.token_embedding.weight",
        "vision_model.embeddings.class_embedding",
        "decoder.conv_in.weight",
        "lora_unet_x_attn2_to_k.lora_down.weight",
        "down_blocks.0.temp_convs.0.conv1.2.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "x.attn2.to_k.weight",
        "image_proj.norm.weight",
        "image_proj.latents",
        "ip_adapter.1.to_k_ip.weight",
        "model.diffusion_model.x.attn2.to_k.weight",
        "emb_params",
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 0), (1, 1, 1, 1, 1)])
def test_tensors_with_too_few_axes_or_too_many(tmp_path, name, shape):
    companions = (
        "encoder.conv_in.weight",
        "frame_embedding.x",
        "image_proj.proj.weight",
        "proj.weight",
        "conv_in.weight",
    )
    count = int(torch.Size(shape).numel())
    names = [name, *(other for other in companions if other != name)]
    header = {n: entry(*shape, offsets=(4 * count * i, 4 * count * (i + 1))) for i, n in enumerate(names)}
    everything(safetensors(tmp_path / "a.safetensors", header, bytes(4 * count * len(names))))


# Pickles


def zipped(path, pickled, **records):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def state_dict(**values):
    """The pickle of a dictionary, in torch's protocol."""
    return pickle.dumps(values, 2)


def wide(depth):
    """Dictionaries of a hundred entries which are all the same next one."""
    return {} if not depth else dict.fromkeys(map(str, range(100)), wide(depth - 1))


def own_state_dict():
    content = {"x": 1}
    content["state_dict"] = content
    return content


SAME_HASH = [(k * (2**61 - 1)).to_bytes(10, "little") for k in range(1, 9000)]  # multiples of the prime of hashes
PICKLES = {
    "a class of 10,000 letters": b"\x80\x02c" + b"a" * 10_000 + b"\n" + b"b" * 10_000 + b"\n.",
    "another class": b"\x80\x02cposix\nsystem\n(X\x02\x00\x00\x00lstR.",
    "a class by its name on the stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
    "a class whose name is a list": b"\x80\x04]]\x93.",
    "nothing": b"",
    "no end": b"\x80\x02}q\x00",
    "an empty stack": b"\x80\x02u.",
    "a mark too few": b"\x80\x02}Ku.",
    "what is not remembered": b"\x80\x02h\x07.",
    "text longer than the file": b"\x80\x02X\xff\xff\xff\xffabc.",
    "a number of a megabyte": b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + bytes([1]) * 10**6 + b".",
    "a number in 100,000 digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "keys with one hash": b"\x80\x02}(" + b"".join(b"\x8a\x0a" + number + b"N" for number in SAME_HASH) + b"u.",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
    "a tuple as key": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "lists in lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a million steps": b"\x80\x02" + b"N0" * 500_000 + b"N.",
    "a dictionary in itself": pickle.dumps(own_state_dict(), 2),
    "the same dictionary over and over": pickle.dumps(wide(5), 2),
    "long names in long names": pickle.dumps({"a" * 100_000: {"b" * 100_000: wide(2)}}, 2),
    "a set item of a list": b"\x80\x02](NNu.",
    "data that lie nowhere": b"\x80\x02}X\x01\x00\x00\x00aNQs.",
    "an old class": b"\x80\x02(iposix\nsystem\n.",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("form", ["zip", "bare", pytest.param("legacy", marks=pytest.mark.slow)])
def test_a_hostile_pickle_is_refused(tmp_path, name, form):
    path = tmp_path / "a.bin"
    if form == "zip":
        zipped(path, PICKLES[name])
    else:
        head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes((head if form == "legacy" else b"\x80") + PICKLES[name])
    error = everything(path)
    assert isinstance(error, CheckpointError) and str(path) in str(error) and len(str(error)) < 1000


def tensor_call(function, *arguments):
    """What pickles as a call of torch's."""

    class Pickled:
        def __reduce__(self):
            return function, arguments

    return Pickled()


class Stored:
    """What pickles as data of 16 numbers."""


def pickled_tensors(**tensors):
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.persistent_id = lambda x: ("storage", torch.FloatStorage, "0", "cpu", 16) if isinstance(x, Stored) else None
    pickler.dump(tensors)
    return buffer.getvalue()


REBUILD = torch._utils._rebuild_tensor_v2
LATER = (False, OrderedDict())


@pytest.mark.parametrize(
    ("arguments", "good"),
    [
        ((Stored(), 0, (4, 4), (4, 1), *LATER), True),
        ((Stored(), 3, (4, 3), (3, 1), *LATER), True),
        ((Stored(), 0, (4, 4), (0, 1), *LATER), True),  # the same row four times
        ((Stored(), 0, (0,), (1,), *LATER), True),
        ((Stored(), 1, (4, 4), (4, 1), *LATER), False),
        ((Stored(), 0, (17,), (1,), *LATER), False),
        ((Stored(), -1, (1,), (1,), *LATER), False),
        ((Stored(), 0, (2,), (-1,), *LATER), False),
        ((Stored(), 0, (2,), (2**62,), *LATER), False),
        ((Stored(), 0, (10**6, 10**6), (0, 0), *LATER), False),
        ((Stored(), 0, (2, 2), (1,), *LATER), False),
        ((Stored(), 0, (2.0,), (1,), *LATER), False),
        ((Stored(), 0, [[2]], (1,), *LATER), False),
        ((Stored(),), False),
        ((), False),
        ((None, 0, (1,), (1,)), False),
    ],
)
def test_a_tensor_stays_inside_its_data(tmp_path, arguments, good):
    content = pickled_tensors(x=tensor_call(REBUILD, *arguments))
    path = zipped(tmp_path / "a.bin", content, **{"0": torch.arange(16.0).numpy().tobytes()})
    shapes = everything(path)
    assert isinstance(shapes, dict) is good
    if good:
        assert (
            read_tensors(path)["x"].flatten().tolist()
            == REBUILD(torch.arange(16.0).storage(), *arguments[1:]).flatten().tolist()
        )


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
    ],
)
def test_tensors_that_are_not_plain_are_named(tmp_path, tensor, word):
    torch.save({"layer.weight": tensor}, tmp_path / "a.pt")
    assert f"its tensor 'layer.weight' is {word}" in str(everything(tmp_path / "a.pt"))


def test_a_pickle_record_of_gigabytes_is_not_read(tmp_path):
    path = zipped(tmp_path / "a.ckpt", b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    assert "compressed" in str(everything(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(5_000_000))
    assert "its data.pkl takes 5000000 bytes" in str(everything(path))


def test_a_directory_of_many_records_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        for i in range(50_000):
            archive.writestr(f"archive/data/{i}{'x' * 60}", b"")
    assert "more than any model needs" in str(everything(tmp_path / "a.ckpt"))


def test_parameters_in_a_parameter_dictionary_are_found(tmp_path):
    """As textual inversions were saved in 2022."""
    vectors = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    content = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": vectors})}
    for new in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        assert torch.equal(read_tensors(tmp_path / "a.pt")["string_to_param.*"], vectors)


def test_tensors_that_share_their_data_go_on_to_do_so(tmp_path):
    x = torch.arange(8.0)
    torch.save({"a": x, "b": x[2:].view(2, 3).t()}, tmp_path / "a.pt")
    read = read_tensors(tmp_path / "a.pt")
    assert torch.equal(read["b"], x[2:].view(2, 3).t())
    read["a"][2] = 70
    assert read["b"][0, 0] == 70 and read_tensors(tmp_path / "a.pt")["a"][2] == 2  # the file stays as it is


# Whole folders


def test_a_damaged_file_does_not_end_the_look_at_a_folder(tmp_path):
    safetensors(tmp_path / "a.safetensors", HEADERS["nested lists"])
    torch.save({"emb_params": torch.ones(2, 768)}, tmp_path / "b.pt")
    (tmp_path / "c.bin").write_bytes(b"\x80\x02" + PICKLES["no end"])
    report = check_path(tmp_path)
    assert not report.complete
    assert [line for line in report.lines if "textual inversion" in line]
    assert sum("PROBLEM" in line for line in report.lines) == 2


# Drawn


NAMES = st.sampled_from(
    ("a", "down_blocks.0.resnets.0.conv1.weight", "emb_params", "encoder.conv_in.weight", "__metadata__")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)
SIZES = st.lists(st.integers(-1, 5) | st.sampled_from((2**31, 2**63, 2**64)), max_size=5)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(("F32", "F16", "I64", "F8_E4M3", "F4", "BOOL")) | JSON, "shape": SIZES | JSON},
    optional={"data_offsets": st.tuples(st.integers(-1, 70), st.integers(-1, 70)).map(list) | JSON},
)


@given(header=st.dictionaries(NAMES, ENTRIES | JSON, max_size=3) | JSON, data=st.binary(max_size=70))
def test_any_header(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    safetensors(path, header, data)
    outcome = bounded(lambda: read_shapes(path))
    again = bounded(lambda: read_tensors(path))
    if isinstance(outcome, dict):
        assert {name: tuple(x.shape) for name, x in again.items()} == outcome
    else:
        assert str(outcome) == str(again)


@given(
    st.lists(
        st.sampled_from([bytes([c]) for c in b"()]}.NKMXUc\x80\x85\x86\x87\x88\x8a\x93RQhqsutabe0\n\x00\x01a"]),
        max_size=60,
    )
)
def test_any_pickle(tmp_path_factory, steps):
    path = zipped(tmp_path_factory.getbasetemp() / "drawn.bin", b"\x80\x02" + b"".join(steps))
    assert isinstance(bounded(lambda: read_shapes(path)), CheckpointError)


@given(config=st.dictionaries(st.sampled_from(damage.CONFIG_NAMES), JSON, max_size=4) | JSON)
def test_any_config(tmp_path_factory, config):
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    read = bounded(lambda: read_config(folder))
    if isinstance(read, MuseVError):
        assert not isinstance(config, dict) and str(folder / "config.json") in str(read)
        return
    for question, fits in (
        (lambda: read.whole("norm_num_groups", 32, most=100), lambda n: type(n) is int and 1 <= n <= 100),
        (lambda: read.heads(8), lambda n: type(n) is int and 1 <= n <= 1024),
        (lambda: read.positive("scaling_factor", 0.5), lambda x: 0 < x < 1e6),
        (lambda: read.word("hidden_act", "gelu", ("gelu", "x")), lambda word: word in ("gelu", "x")),
    ):
        answer = bounded(question)
        assert isinstance(answer, MuseVError) or fits(answer)


@given(seed=st.integers(0, 2**32))
def test_any_damage_to_any_file(tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp()
    kind, path = damage.damaged_file(kinds(), folder, random.Random(seed))
    for reader in {**EVERYTHING, kind: BY_KIND[kind]}.values():
        bounded(lambda r=reader: r(path), size=path.stat().st_size)
    path.unlink()


def test_the_count_of_outcomes(tmp_path):
    """`tests/fuzz_weights.py` counts thousands."""
    outcomes = [outcome for _, _, outcome in fuzz_weights.outcomes(5, 7, tmp_path)]
    assert len(outcomes) >= 25 and set(outcomes) <= {"good", "sentence"}
