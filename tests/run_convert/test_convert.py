"""`pbrl convert`: in, out, and into another type; nothing is lost on the way."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_hf import FIXTURES, hf_policy
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import cli
from pbrl_jax.weights.comets import load_comet
from pbrl_jax.weights.encoders import load_encoder
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import load_policy, save_policy


@pytest.fixture
def convert(capsys):
    def run(*arguments):
        capsys.readouterr()  # what making the folders said
        status = cli.main(["convert", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def same_bits(left, right) -> bool:
    def same(a, b) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.all(jax.tree.map(same, left, right))


def test_there_and_back_again(convert, tmp_path):
    """Theirs -> ours -> theirs in bfloat16 -> theirs in float32."""
    original, own, half, whole = (tmp_path / name for name in ("original", "own", "half", "whole"))
    export_policy(hf_policy(), str(original))
    status, output, errors = convert(original, own, "--to", "pbrl")
    assert (status, errors) == (0, "") and "a policy of this package" in output and "in float32" in output
    assert same_bits(load_policy(str(own)).params, hf_policy().params)
    assert convert(own, half, "--dtype", "bfloat16")[0] == 0
    assert convert(half, whole, "--dtype", "float32")[0] == 0
    config = json.loads((half / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    first, last = (load_file(folder / "model.safetensors") for folder in (original, whole))
    assert first.keys() == last.keys()
    for name, array in first.items():
        rounded = np.asarray(jax.numpy.asarray(array).astype("bfloat16").astype("float32"))
        assert last[name].tobytes() == rounded.tobytes(), name
    assert convert(whole, tmp_path / "kept")[1].count("in float32") == 1, "without --dtype, as it is stored"
    assert convert(half, tmp_path / "kept2", "--to", "pbrl")[1].count("in bfloat16") == 1
    for folder in (own, half, whole):
        assert load_policy(str(folder)).tokenizer.fingerprint == hf_policy().tokenizer.fingerprint


def test_a_tokenizer_is_not_needed_for_theirs(convert, tmp_path):
    status, output, _ = convert(FIXTURES / "gemma3", tmp_path / "out")
    assert status == 0 and "parameters in float32, read back and compared" in output


def test_comet_becomes_safetensors(convert, tmp_path):
    """The checkpoint's kind is seen; naming it first is allowed. Its scores stay what they were."""
    source = FIXTURES / "comet_regression"
    outputs = [convert(source, tmp_path / "a"), convert("comet", source, tmp_path / "b", "--dtype", "float32")]
    assert [(status, errors) for status, _, errors in outputs] == [(0, ""), (0, "")]
    assert all("a COMET model" in output and "in float32, read back" in output for _, output, _ in outputs)
    assert not list(tmp_path.rglob("*.ckpt")) and (tmp_path / "a" / "model.safetensors").exists()
    original = load_comet(str(source))
    for folder in ("a", "b"):
        assert same_bits(load_comet(str(tmp_path / folder)).params, original.params)


def test_encoders_there_and_back(convert, tmp_path):
    """sentence-transformers -> ours -> sentence-transformers in bfloat16; a policy beside an encoder goes first."""
    own, half = tmp_path / "own", tmp_path / "half"
    status, output, errors = convert(FIXTURES / "labse", own, "--to", "pbrl")
    assert (status, errors) == (0, "") and "an encoder of this package" in output and "in float32" in output
    original, ours = load_encoder(str(FIXTURES / "labse")), load_encoder(str(own))
    assert same_bits(original.params, ours.params) and original.max_length == ours.max_length
    status, output, errors = convert(own, half, "--dtype", "bfloat16")
    assert (status, errors) == (0, "") and "a sentence-transformers encoder" in output and "in bfloat16" in output
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), original.params)
    assert same_bits(load_encoder(str(half), dtype="bfloat16").params, rounded)
    save_policy(hf_policy(), str(tmp_path / "run" / "policy"))
    own.rename(tmp_path / "run" / "encoder")
    assert "a Hugging Face model" in convert(tmp_path / "run", tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "{in}"], "IN and OUT are both"),
        (["{in}", "{in}/"], "IN and OUT are both"),
        (["{in}", "out", "--to", "gguf"], "--to is 'gguf'; expected hf or pbrl"),
        (["{in}", "out", "--dtype", "int8"], "--dtype is 'int8'; expected float32 or bfloat16"),
        (["{in}", "{hf}", "--to", "pbrl"], "holds a config.json, of a model or a run"),
        (["{hf}", "{in}"], "holds a policy of this package"),
        (["nothing", "out"], "No policy in 'nothing'"),
    ],
)
def test_what_is_refused(convert, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_policy(hf_policy(), "in")
    (tmp_path / "hf").symlink_to(FIXTURES / "qwen3")
    places = {"in": tmp_path / "in", "hf": tmp_path / "hf"}
    status, output, errors = convert(*(argument.format(**places) for argument in arguments))
    assert status == 1 and not output
    assert errors.startswith("Error: ") and message in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["link", "run/policy", "run", "other"])
def test_what_is_read_and_other_runs_are_not_written_over(convert, tmp_path, target):
    """By a link to IN, the policy within the work directory IN, or the settings of a run."""
    save_policy(hf_policy(), str(tmp_path / "run" / "policy"))
    (tmp_path / "run" / "config.json").write_text('{"version": "0.2.0", "policy": {}}')
    (tmp_path / "link").symlink_to(tmp_path / "run" / "policy")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"version": "0.2.0", "policy": {}}')
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for more in ((), ("--to", "pbrl", "--dtype", "bfloat16")):
        status, _, errors = convert(tmp_path / "run", tmp_path / target, *more)
        assert status == 1 and ("IN and OUT are both" in errors or "holds a config.json" in errors), errors
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_adapters_and_their_base_stay_apart(convert, tmp_path):
    """OUT is neither the base of an adapter that is merged, nor, for adapters, a complete model."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    export_policy(hf_policy(), str(base))
    adapter.mkdir()
    named = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    save_file({"x": np.zeros(1, np.float32)}, adapter / "adapter_model.safetensors")
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    assert "IN and OUT are both" in convert(adapter, base)[2]
    assert "beside which adapters are not read" in convert(tmp_path / "run", base, "--to", "adapter")[2]
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before


def test_a_translator_goes_out_as_it_came(convert, tmp_path):
    """From torch's format to safetensors, the same tensors by the same names; then in another type."""
    from pbrl_jax.weights.torch_file import state_dict

    out, half = tmp_path / "out", tmp_path / "half"
    status, output, errors = convert(FIXTURES / "m2m100", out)
    assert (status, errors) == (0, "") and "m2m_100 translator" in output and "in float32, read back" in output
    wanted, found = state_dict(FIXTURES / "m2m100" / "pytorch_model.bin"), load_file(out / "model.safetensors")
    assert found.keys() <= wanted.keys()
    for name, array in found.items():
        assert np.array_equal(array, wanted[name]), name
    left_out = {name for name in wanted.keys() - found.keys() if "embed_positions" not in name}
    assert all(np.array_equal(wanted[name], found["model.shared.weight"]) for name in left_out), "copies of one matrix"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (FIXTURES / "m2m100", out))
    assert after == {**before, "torch_dtype": "float32"}
    assert convert(out, half, "--dtype", "bfloat16")[1].count("in bfloat16") == 1
    assert convert(out, tmp_path / "own", "--to", "pbrl")[2].startswith("Error: --to pbrl: translators have no form")


def test_a_comet_model_in_another_type(convert, tmp_path):
    own, half = tmp_path / "own", tmp_path / "half"
    assert convert(FIXTURES / "comet_regression", own)[1].count("in float32, read back and compared") == 1
    assert convert(own, half, "--dtype", "bfloat16")[1].count("in bfloat16") == 1
    texts = ["Jibu ni 12.", "The answer is 12."]
    scores = [load_comet(str(folder)).score(texts, texts, texts) for folder in (own, half)]
    np.testing.assert_allclose(*scores, atol=0.05)
