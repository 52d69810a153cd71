"""torch files read without torch: every kind of tensor, and files that want something else than to be read."""

import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.weights.pickle_data import MAX_DEPTH, Foreign, Name, PickleDataError, read_pickle
from pbrl_jax.weights.torch_file import read_torch, state_dict

FIXTURES = Path(__file__).parents[1] / "fixtures" / "torch"
CHECKPOINT = FIXTURES / "lightning.ckpt"
EXPECTED = np.load(FIXTURES / "expected.npz")
KINDS = {
    "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64, "float8": ml_dtypes.float8_e4m3fn,
    "int64": np.int64, "int32": np.int32, "uint8": np.uint8, "uint16": np.uint16, "bool": np.bool_,
    "flipped_axes": np.int64,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED.files)
def test_tensors_are_those_that_torch_saved(name):
    tensor = state_dict(CHECKPOINT)[name]
    assert tensor.dtype == KINDS.get(name, np.float32)
    assert tensor.shape == EXPECTED[name].shape
    np.testing.assert_array_equal(tensor.astype(np.float64), EXPECTED[name])


def test_every_kind_was_saved():
    assert set(state_dict(CHECKPOINT)) == set(EXPECTED.files) >= {*KINDS, "transposed", "scalar", "empty", "parameter"}


def test_tensors_lie_in_the_file():
    """Views: several tensors of one storage, nothing copied, nothing writable, any slice alone."""
    tensors = state_dict(CHECKPOINT)
    assert np.shares_memory(tensors["base"], tensors["transposed"])
    assert np.shares_memory(tensors["base"], tensors["strided"])
    assert not tensors["base"].flags.owndata
    np.testing.assert_array_equal(tensors["transposed"][1:3, ::2], EXPECTED["base"].T[1:3, ::2].astype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        tensors["transposed"][0, 0] = 1


def test_the_rest_of_a_checkpoint_is_plain_data():
    tree = read_torch(CHECKPOINT)
    assert tree["epoch"] == 3
    assert tree["hyper_parameters"] == {
        "learning_rate": 1e-3, "sizes": [3072, 1024], "pool": "avg", "dtype": Name("torch", "float32"),
    }  # fmt: skip
    assert tree["callbacks"]["languages"] == ["sw"]
    assert tree["callbacks"]["raw"] == b"\x00\xff"
    assert tree["callbacks"]["shape"] == (2, 3)
    assert tree["counts"] == {"a": [1]}
    assert isinstance(tree["callbacks"]["early"], Foreign)
    assert repr(tree["callbacks"]["early"]) == "<unread fixture_makers.translation.Callback>"
    assert tree["optimizer_states"][0]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert tree["optimizer_states"][0]["state"][0]["exp_avg"].shape == (2, 3)


def test_a_bare_state_dict():
    tensors = state_dict(FIXTURES / "module.bin")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"weight": (2, 3), "bias": (2,)}


# Files that are something else


def test_a_file_from_before_the_zip_format():
    with pytest.raises(CheckpointError, match="before torch 1.6.*torch.save"):
        read_torch(FIXTURES / "legacy.bin")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no torch file"),
        (b"hello", "no torch file: expected a zip archive, found b'hello'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04 and nothing more", "damaged"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_torch(path)


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_torch(tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="Copy it here first"):
        read_torch("gs://bucket/model.bin")


def test_every_truncation_is_one_clear_error(tmp_path):
    whole = CHECKPOINT.read_bytes()
    path = tmp_path / "cut.ckpt"
    for length in range(40, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut.ckpt"):
            read_torch(path)


def test_damage_never_escapes_as_another_error(tmp_path):
    """Any byte of the file changed: the same tree, other numbers, or a CheckpointError."""
    whole = bytearray(CHECKPOINT.read_bytes())
    path, refused = tmp_path / "damaged.ckpt", 0
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), 250, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read_torch(path)
        except CheckpointError:
            refused += 1
    assert refused > 60


def test_something_that_is_no_state_dict(tmp_path):
    path = archive(tmp_path, pickle.dumps({"weight": 3, "bias": [1]}, protocol=2))
    with pytest.raises(CheckpointError, match="weight is a int; bias is a list"):
        state_dict(path)
    with pytest.raises(CheckpointError, match="holds a list"):
        state_dict(archive(tmp_path, pickle.dumps([1], protocol=2)))
    with pytest.raises(CheckpointError, match="found nothing"):
        state_dict(archive(tmp_path, pickle.dumps({}, protocol=2)))


# Hostile files


def archive(folder: Path, program: bytes, storages: dict[str, bytes] | None = None, **options) -> Path:
    """A torch zip file around a pickle program."""
    path = folder / "hostile.ckpt"
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", program)
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor_program(size, stride, offset=0, count=4, storage="FloatStorage", key="0") -> bytes:
    """{"w": a tensor with these numbers}, as torch writes it."""
    place = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    arguments = b"(" + place + number(offset) + numbers(*size) + numbers(*stride) + b"\x89N" + b"t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}


def test_a_tensor_written_by_hand(tmp_path):
    tensor = state_dict(archive(tmp_path, tensor_program((2, 2), (1, 2)), FOUR))["w"]
    assert tensor.tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": (5,), "stride": (1,)}, "in 4 elements"),
        ({"size": (2, 2), "stride": (4, 1)}, "in 4 elements"),
        ({"size": (1,), "stride": (1,), "offset": 4}, "in 4 elements"),
        ({"size": (2,), "stride": (1,), "offset": -1}, "whole number"),
        ({"size": (2,), "stride": (-1,), "offset": 3}, "whole number"),
        ({"size": (-2,), "stride": (1,)}, "whole number"),
        ({"size": (1 << 60,), "stride": (0,)}, "in 4 elements"),
        ({"size": (1 << 70, 1 << 70), "stride": (1 << 70, 1)}, "in 4 elements"),
        ({"size": (0, 1 << 70), "stride": (1, 1)}, "hostile.ckpt"),
        ({"size": (2,), "stride": (1, 1)}, "1 sizes and 2 strides"),
        ({"size": (1,) * 40, "stride": (1,) * 40}, "40 sizes"),
        ({"size": (4,), "stride": (1,), "count": 5}, "its 5 elements need more"),
        ({"size": (4,), "stride": (1,), "storage": "DoubleStorage"}, "need more"),
        ({"size": (4,), "stride": (1,), "storage": "QInt8Storage"}, "unknown type torch.QInt8Storage"),
        ({"size": (4,), "stride": (1,), "key": "../../secret"}, "not in the archive"),
    ],
)
def test_tensors_that_reach_outside_their_storage(tmp_path, settings, message):
    with pytest.raises(CheckpointError, match=message):
        read_torch(archive(tmp_path, tensor_program(**settings), FOUR))


@pytest.mark.parametrize("size", [(0, 1 << 62), (1 << 40, 1 << 40, 0), (0,) * 33, (1,) * 101])
def test_shapes_that_no_array_has(tmp_path, size):
    with pytest.raises(CheckpointError, match="an empty tensor of shape|sizes and"):
        read_torch(archive(tmp_path, tensor_program(size, (1,) * len(size)), FOUR))


@pytest.mark.parametrize("name", [3, None, "w\x1b[2J", "\ud800", (1, 2)])
def test_names_that_no_tensor_has(tmp_path, name):
    tensor = tensor_program((4,), (1,))
    program = b"\x80\x02}" + pickle.dumps(name, protocol=2)[2:-1] + tensor[3 + len(text("w")) :]
    with pytest.raises(CheckpointError, match="is no name of a tensor"):
        state_dict(archive(tmp_path, program, FOUR))


class Bomb:
    """What a hostile file contains: a call, made when Python's own reader meets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_not_made(tmp_path, protocol):
    proof = tmp_path / "ran"
    program = pickle.dumps({"state_dict": {}, "bomb": Bomb(proof)}, protocol=protocol)
    tree = read_torch(archive(tmp_path, program))
    assert "system" in repr(tree["bomb"])
    assert not proof.exists()
    pickle.loads(program)
    assert proof.exists(), "the same bytes do run in Python's reader"


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch proof'\ntR.",
        b"(S'touch proof'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch proof'\no.",
        b"cbuiltins\neval\n(S'1/0'\ntR.",
        b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'touch proof'\ntR.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n\x89NtR.",
    ],
)
def test_no_name_is_ever_imported(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    assert isinstance(read_torch(archive(tmp_path, program)), Foreign | Name)
    assert not (tmp_path / "proof").exists()


def test_attributes_of_foreign_objects_are_not_set(tmp_path):
    program = b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items") + text("owned") + b"sb."
    tree = read_torch(archive(tmp_path, program))
    assert tree == {} and callable(tree.items)


def deep(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1) + b"."


def laughs(levels: int) -> bytes:
    """A list of two lists, each the same list of two, and so on: 2 ** levels items in a few bytes."""
    program = b"]q\x010"
    for i in range(1, levels + 1):
        program += b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) + b"0"
    return program + b"h" + bytes([levels + 1]) + b"."


@pytest.mark.parametrize(
    "program, message",
    [
        (deep(100_000), f"at most {MAX_DEPTH}"),
        (laughs(40), "items; at most"),
        (b"]q\x01h\x01a.", "contains itself"),
        (b"}q\x01" + text("a") + b"h\x01s.", "contains itself"),
        (b"r\xff\xff\xff\x7f.", "not a valid pickle"),
        (b"j\xff\xff\xff\x7f.", "not a valid pickle"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a valid pickle"),
        (b"X\xff\xff\xff\xffabc.", "not a valid pickle"),
        (b"\x8b\xff\xff\xff\x7f\x01.", "not a valid pickle"),
        (b"}](K\x01e" + b"K\x01s.", "dict key of type list"),
        (b"K\x01K\x02a.", "items appended to a int"),
        (b"K\x01K\x02K\x03s.", "entries put into a int"),
        (b"(K\x01d.", "a key and no value"),
        (b"\x82\x01.", "EXT1 has no place"),
        (b"K\x01K\x02.", "not a valid pickle"),
        (b"0.", "not a valid pickle"),
        (b"K\x01", "not a valid pickle"),
        (b"\x80\x63.", "protocol 99"),
        (b"I" + b"9" * 100_000 + b"\n.", "not a valid pickle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_programs_that_exhaust_or_confuse(tmp_path, program, message):
    with pytest.raises(CheckpointError, match=message):
        read_torch(archive(tmp_path, program))


def test_a_deep_tuple_is_no_key(tmp_path):
    """Hashing it would recurse in C until the stack ends."""
    program = b"}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    with pytest.raises(CheckpointError, match="dict key of type tuple"):
        read_torch(archive(tmp_path, program))


def test_compressed_entries_are_refused(tmp_path):
    """They could unpack to anything: a zip bomb is nothing but a storage of zeros."""
    program = tensor_program((4,), (1,))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(archive(tmp_path, program, FOUR, compression=zipfile.ZIP_DEFLATED))


def test_archives_of_something_else(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="0 data.pkl"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"N.")
        file.writestr("a/byteorder", "big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch(path)


def test_ordinary_pickles_read_as_by_python():
    """Every protocol, against Python's own reader."""
    value = {
        "text": "naïve ☃", "long": "x" * 300, "bytes": b"\x00\x01" * 200, "numbers": [0, 255, 65536, -1, 1 << 80, 0.5],
        "nothing": None, "flags": (True, False), "nested": {"a": [{}, [], ()], 3: (1, (2, (3, 4, 5, 6)))},
    }  # fmt: skip
    value["again"] = value["numbers"]
    codecs = {Name("_codecs", "encode"): lambda written, codec: written.encode(codec)}
    for protocol in range(6):
        found = read_pickle(pickle.dumps(value, protocol=protocol), codecs, lambda key: key)
        assert found == value == pickle.loads(pickle.dumps(value, protocol=protocol))
        assert found["again"] is found["numbers"]


def test_every_opcode_is_read_or_refused():
    """No opcode falls through as if it had been understood."""
    from pbrl_jax.weights.pickle_data import _GET, _HANDLERS, _NO_EFFECT, _PUSH_ARGUMENT, _PUSH_CONSTANT, _PUT

    known = {*_GET, *_HANDLERS, *_NO_EFFECT, *_PUSH_ARGUMENT, *_PUSH_CONSTANT, *_PUT, "STOP"}
    names = {opcode.name for opcode in pickletools.opcodes}
    assert known <= names
    assert names - known == {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    for program in (b"\x97.", b"\x82\x01.", b"K\x01\x98."):
        with pytest.raises(PickleDataError, match="no place in a checkpoint"):
            read_pickle(program, {}, lambda key: key)
