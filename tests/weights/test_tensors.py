"""Checkpoint files: what they hold arrives bit for bit, from any class and any file; what they lie about is refused."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.weights import tensors as weights
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.safetensors_file import DTYPES, Planned, SafetensorsFile, read_remote, write_safetensors
from pbrl_jax.weights.tensors import (
    Weights,
    abstract_params,
    copy_blocks,
    fits,
    load_params,
    open_weights,
    plain_name,
    weights_digest,
)

D, H, C, N, E, V = 6, 2, 4, 3, 2, 10
NAMES = {
    "embed": Stored("model.embed_tokens.weight", (V, D)),
    "layers/query/kernel": Stored("model.layers.{layer}.q.weight", (D, H, C), True, N),
    "layers/query/bias": Stored("model.layers.{layer}.q.bias", (H, C), False, N),
    "layers/out/kernel": Stored("model.layers.{layer}.o.weight", (H, C, D), True, N),
    "layers/mlp/up": Stored("model.layers.{layer}.experts.{expert}.up.weight", (D, 5), True, N, E),
    "final_norm/scale": Stored("model.norm.weight", (D,)),
}


def checkpoint(dtype=np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors in a checkpoint's layout, [out, in]."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for layer in range(N):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}q.weight": (H * C, D), f"{at}q.bias": (H * C,), f"{at}o.weight": (D, H * C)}
        shapes |= {f"{at}experts.{expert}.up.weight": (5, D) for expert in range(E)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def by_hand(tensors) -> dict[str, np.ndarray]:
    """The parameters, by plain indexing: kernel[d, h, c] = weight[h * C + c, d]."""
    layers = [f"model.layers.{layer}." for layer in range(N)]
    query, out = np.zeros((N, D, H, C)), np.zeros((N, H, C, D))
    for n, at in enumerate(layers):
        for d in range(D):
            for h in range(H):
                for c in range(C):
                    query[n, d, h, c] = tensors[f"{at}q.weight"][h * C + c, d]
                    out[n, h, c, d] = tensors[f"{at}o.weight"][d, h * C + c]
    return {
        "embed": tensors["model.embed_tokens.weight"],
        "layers/query/kernel": query,
        "layers/query/bias": np.stack([[tensors[f"{at}q.bias"][h * C : h * C + C] for h in range(H)] for at in layers]),
        "layers/out/kernel": out,
        "layers/mlp/up": np.stack([[tensors[f"{at}experts.{e}.up.weight"].T for e in range(E)] for at in layers]),
        "final_norm/scale": tensors["model.norm.weight"],
    }


def flat(params) -> dict[str, np.ndarray]:
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def assert_loaded(params, tensors) -> None:
    found, wanted = flat(params), by_hand(tensors)
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path].astype(np.float64), np.asarray(array, np.float64), err_msg=path)


# Files.


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type_comes_back_and_agrees_with_the_formats_own_library(tmp_path, name):
    dtype = DTYPES[name]
    arrays = {"a.b": (np.arange(24) % 2).reshape(2, 3, 4).astype(dtype), "scalar": np.array(1, dtype)}
    arrays["empty"] = np.zeros((0, 5), dtype)
    planned = [Planned(key, array.shape, array.dtype) for key, array in arrays.items()]
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    digest = write_safetensors(ours, planned, iter(arrays.values()), {"format": "pt"})
    assert len(digest) == 64
    save_file(arrays, theirs)
    for found in (load_file(ours), SafetensorsFile(ours), SafetensorsFile(theirs)):
        assert set(found) == set(arrays)
        for key, array in arrays.items():
            assert found[key].dtype == dtype and found[key].shape == array.shape
            assert found[key].tobytes() == array.tobytes()


def test_a_plan_that_the_arrays_do_not_follow_is_refused(tmp_path):
    plan = [Planned("a", (2,), np.dtype(np.float32))]
    with pytest.raises(ValueError, match="was planned"):
        write_safetensors(tmp_path / "x", plan, [np.zeros(3, np.float32)])
    with pytest.raises(ValueError):
        write_safetensors(tmp_path / "x", plan, [])


def file_of(header: dict | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape=(2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated: 0 bytes"),
        (b"1234567", "fewer than the 8"),
        (file_of(b"{}", b"", 400), "its header alone takes 408"),
        (file_of(b"{}", b"", 2**62), "no safetensors file: its header would have"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (file_of(b"{", b""), "damaged header .JSONDecodeError"),
        (file_of(b"[1]", b""), "damaged header"),
        (file_of(b"\xff\xfe{}", b""), "damaged header"),
        (file_of({"a": 3}, b""), "damaged header .TypeError"),
        (file_of({"a": {"dtype": "F32", "shape": [2]}}, b""), "damaged header .KeyError"),
        (file_of({"a": tensor(0, 8, dtype="F8_E4M3")}, b"0" * 8), "a has the type 'F8_E4M3'; known: BF16.*in bfloat16"),
        (file_of({"a": tensor(0, 8, (3,))}, b"0" * 8), r"shape \[3\] of F32, which is not the 8 bytes"),
        (file_of({"a": tensor(0, 8, (-2, -1))}, b"0" * 8), "whole numbers from 0"),
        (file_of({"a": tensor(0, 8, (2.0,))}, b"0" * 8), "whole numbers from 0"),
        (file_of({"a": tensor(0, 8, (True, 2))}, b"0" * 8), "whole numbers from 0"),
        (file_of({"a": tensor(-8, 0)}, b"0" * 8), "whole numbers from 0"),
        (file_of({"a": tensor(0, 8)}, b"0" * 7), "is truncated: .* but a ends at byte"),
        (file_of({"a": tensor(0, 8)}, b"0" * 9), "its tensors end at byte"),
        (file_of({"a": tensor(0, 8), "b": tensor(4, 12)}, b"0" * 12), "b begins at byte .*, expected"),
        (file_of({"a": tensor(0, 8), "b": tensor(12, 20)}, b"0" * 20), "b begins at byte"),
        (file_of(b'{"a": {"dtype": "F32", "dtype": "F32"}}', b""), "a name occurs twice"),
        (file_of(b"[" * 100_000, b""), "damaged header .RecursionError"),
    ],
)
def test_files_that_are_cut_short_or_lie(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "name, shape, size",
    [
        ("w", [1] * 101, 4), ("w", [1] * 33, 4), ("w", [0, 2**62, 2**62], 0), ("w", [0] * 101, 0), ("w", [2**62, 0], 0),
        ("w", [0, 10**400], 0), ("\ud800", [1], 4), ("w\x1b[2J", [1], 4),
    ],
)  # fmt: skip
def test_shapes_and_names_that_no_array_has(name, shape, size, tmp_path):
    """Refused when the header is read, on a disk and in a store, and not when a tensor is used."""
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    for read in (SafetensorsFile, read_remote):
        with pytest.raises(CheckpointError, match="has a damaged header .* axes"):
            read(epath.Path(path))


def test_every_cut_of_a_file_is_noticed(tmp_path):
    save_file({"a": np.arange(4.0), "b": np.arange(3)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            SafetensorsFile(tmp_path / "cut")


# Folders.


def test_one_file_and_an_index_are_the_same(tmp_path):
    tensors = checkpoint()
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    save_file(tensors, one / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, many / file)
    (many / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    for folder in (one, many):
        assert_loaded(load_params(open_weights(folder), NAMES), tensors)
    assert weights_digest(open_weights(one)) == weights_digest(open_weights(many))
    (many / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of the 2 files in its index: model-00002-of-00002"):
        open_weights(many)
    save_file(tensors, many / "model.safetensors")
    assert_loaded(load_params(open_weights(many), NAMES), tensors)  # the index is left over


def test_torchs_own_files_are_read_where_there_are_no_others(tmp_path):
    source = Path(__file__).parents[1] / "fixtures" / "hf" / "bge_m3" / "pytorch_model.bin"
    (tmp_path / "pytorch_model.bin").write_bytes(source.read_bytes())
    tensors = open_weights(tmp_path)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    found = load_params(tensors, {"embed": Stored(name, tensors[name].shape)}, ignore=".")
    assert tensors[name].ndim == 2 and found["embed"].any()
    np.testing.assert_array_equal(found["embed"], tensors[name])
    save_file(checkpoint(), tmp_path / "model.safetensors")
    assert set(open_weights(tmp_path)) == set(checkpoint())


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "../../secret"}}']
)
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is no index of weights"):
        open_weights(tmp_path)


def test_no_weights_and_one_tensor_in_two_files(tmp_path):
    with pytest.raises(CheckpointError, match="expected model.safetensors.*found nothing"):
        open_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="found config.json"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="a is in two files"):
        Weights([{"a": np.zeros(1)}, {"a": np.zeros(1)}], "x")


def test_the_digest_tells_apart_what_training_changes():
    tensors, before = checkpoint(), weights_digest(checkpoint())
    assert before == weights_digest(dict(reversed(tensors.items())))
    for change in (
        {"model.norm.weight": tensors["model.norm.weight"] * 1.001},
        {"model.norm.weight": tensors["model.norm.weight"].astype(np.float64)},
        {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"].reshape(D, V)},
        {"more": np.zeros(1)},
    ):
        assert weights_digest({**tensors, **change}) != before


# Parameters.


@pytest.mark.parametrize("stored", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16, None])
def test_parameters_by_hand_in_every_type(stored, wanted):
    tensors = checkpoint(stored)
    found = load_params(tensors, NAMES, dtype=wanted)
    kind = np.dtype(wanted or (np.float32 if stored is np.float64 else stored))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {kind}
    assert_loaded(found, {name: array.astype(kind) for name, array in tensors.items()})
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(NAMES))
    assert jax.tree.map(lambda leaf: leaf.shape, found) == shapes


def test_layers_of_different_types_need_a_type():
    tensors = checkpoint()
    tensors["model.layers.1.q.bias"] = tensors["model.layers.1.q.bias"].astype(np.float16)
    load_params(tensors, NAMES)
    with pytest.raises(CheckpointError, match="are stored as float16, float32. Ask for one type"):
        load_params(tensors, NAMES, dtype=None)


PREFIXED = [
    ("model.", "model."), ("model.", ""), ("model.", "language_model.model."), ("model.", "model.language_model."),
    ("model.", "bert."), ("model.", "roberta."), ("model.", "encoder.model."),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), PREFIXED)
def test_the_prefix_of_any_class_is_found(ours, theirs):
    tensors = checkpoint()
    renamed = {theirs + name.removeprefix(ours): array for name, array in tensors.items()}
    assert_loaded(load_params(renamed, NAMES), tensors)


def test_only_prefixes_are_cut():
    assert plain_name("model.layers.0.model.weight") == "layers.0.model.weight"
    assert plain_name("encoder.layer.0.weight") == "encoder.layer.0.weight"
    assert plain_name("language_model.lm_head.weight") == plain_name("lm_head.weight") == "lm_head.weight"


def test_what_other_parts_of_a_model_left_is_no_error():
    extra = [
        "lm_head.weight", "pooler.dense.bias", "bert.pooler.dense.weight", "vision_tower.vision_model.x.weight",
        "model.vision_tower.x.weight", "multi_modal_projector.mm.weight", "embeddings.position_ids",
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
    ]  # fmt: skip
    tensors = checkpoint()
    assert_loaded(load_params({**tensors, **{name: np.zeros(2) for name in extra}}, NAMES), tensors)
    for other in ("model.layers.3.q.weight", "sparse_linear.weight", "model.lm_head_scale"):
        with pytest.raises(CheckpointError, match=f"{other} is unexpected"):
            load_params({**tensors, other: np.zeros(2)}, NAMES)
    load_params({**tensors, "sparse_linear.weight": np.zeros(2)}, NAMES, ignore=r"^sparse_linear\.")


def test_all_that_does_not_fit_is_listed_at_once():
    tensors = checkpoint()
    del tensors["model.layers.1.o.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.q.weight"] = np.zeros((D, H * C), np.float32)
    tensors["model.embed_tokens.weight"] = np.zeros((V, D), np.int64)
    tensors["model.layers.7.q.weight"] = np.zeros(3, np.float32)
    tensors["layers.2.q.bias"] = tensors["model.layers.2.q.bias"]
    with pytest.raises(CheckpointError) as found:
        load_params(Weights([tensors], "/models/x"), NAMES)
    message = str(found.value)
    assert message.startswith("'/models/x' and its configuration describe different models: ")
    for line in (
        "model.layers.1.o.weight is missing",
        "model.norm.weight is missing",
        f"model.layers.0.q.weight has shape ({D}, {H * C}), expected one that read as its transpose is ({D}, {H}, {C})",
        "model.embed_tokens.weight holds int64, expected a floating type",
        "model.layers.7.q.weight is unexpected",
        "layers.2.q.bias and model.layers.2.q.bias name the same tensor",
    ):
        assert line in message, line
    assert message.count(";") == 5


def test_a_long_list_is_cut():
    with pytest.raises(CheckpointError, match="; and 9 more"):
        load_params({}, {f"p{i}": Stored(f"t{i}", (1,)) for i in range(weights.SHOWN_PROBLEMS + 9)})


def test_reshapes_only_split_axes():
    assert fits((6, 8), (6, 2, 4)) and fits((8, 6), (2, 4, 6)) and fits((8,), (2, 4)) and fits((), ())
    assert fits((6, 8), (6, 8)) and fits((6, 8), (6, 8, 1)) and fits((1, 8), (1, 2, 4))
    assert not fits((8, 6), (6, 8)) and not fits((6, 8), (6, 4, 4)) and not fits((6, 8), (48,))
    assert not fits((48,), (6, 4)) and not fits((6, 8), (3, 16)) and not fits((6, 8), (6, 8, 2))


@pytest.mark.parametrize("shape", [(3, 5, 7), (600, 700), (1, 300_000), (40, 8, 900)])
def test_blocks_copy_everything_once(shape, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1000)
    source = np.arange(np.prod(shape), dtype=np.float32).reshape(shape[::-1]).T
    out = np.full(shape, -1, np.float32)
    copy_blocks(out, source)
    np.testing.assert_array_equal(out, source)


def test_pages_are_given_back_and_bytes_are_counted(tmp_path):
    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    opened, counts = open_weights(tmp_path), []
    params = load_params(opened, NAMES, tick=counts.append)
    assert counts == [array.nbytes for array in (flat(params)[path] for path in NAMES)]
    assert_loaded(load_params(opened, NAMES), tensors)


def test_parameters_outlive_their_file(tmp_path):
    """Nothing on the devices may be a view of a file that somebody then overwrites."""
    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    params = load_params(open_weights(tmp_path), NAMES)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(b"\0" * (tmp_path / "model.safetensors").stat().st_size)
    assert_loaded(params, tensors)


@pytest.mark.serial
def test_eight_devices_hold_what_one_does_and_read_only_their_share(tmp_path, monkeypatch):
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as Spec

    from pbrl_jax import MeshConfig
    from pbrl_jax.mesh.sharding import make_mesh

    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    mesh = make_mesh(MeshConfig(2, 2, 2))
    specs = {
        "embed": Spec("tensor", "fsdp"),
        "layers/query/kernel": Spec(None, "fsdp", "tensor"),
        "layers/query/bias": Spec(None, "tensor"),
        "layers/out/kernel": Spec(None, "tensor", None, "fsdp"),
        "final_norm/scale": Spec(),
    }
    specs["layers/mlp/up"] = Spec(None, "data", "fsdp")
    shardings = weights.nested({path: NamedSharding(mesh, spec) for path, spec in specs.items()})
    read = []
    assemble = weights._Leaf._assemble
    monkeypatch.setattr(
        weights._Leaf, "_assemble", lambda leaf, ranges: read.append(out := assemble(leaf, ranges)) or out
    )
    params = load_params(open_weights(tmp_path), NAMES, shardings, jnp.bfloat16)
    assert_loaded(params, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()})
    kernel = params["layers"]["query"]["kernel"]
    assert kernel.sharding == shardings["layers"]["query"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(N, D // 2, H // 2, C)}
    assert len(read) == 4 + 4 + 2 + 4 + 4 + 1, "each distinct slice is read once, not once per device"
    assert sum(array.size for array in read) == sum(leaf.size for leaf in jax.tree.leaves(params))
