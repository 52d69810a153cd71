"""Plans: topologies, agreement of compiled and hand-made numbers, verdicts, sweep, and the verb."""

import dataclasses
import json
import math
import shutil

import jax
import pytest
from source_tree import ROOT
from tiny_hf import hf_tokenizer
from tiny_policy import quick_compiles, tiny_params, tiny_spec  # noqa: F401

from pbrl_jax import Config, MeshConfig, cli, load_comet, load_encoder, load_policy, load_translator, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.plan.analytic import (
    Sizes,
    adapter_count,
    estimate_step,
    generate_estimate,
    generate_flops,
    parameter_count,
    reward_flops,
    state_bytes,
    update_flops,
)
from pbrl_jax.plan.chips import CHIPS, LINK_SHARE, Topology, known_chip, parse_topology
from pbrl_jax.plan.hlo import Cost
from pbrl_jax.plan.programs import PROGRAMS, Need, compile_step
from pbrl_jax.plan.roofline import (
    USABLE,
    chosen_decoding,
    estimate_plan,
    local_chip,
    make_plan,
    meshes,
    nearest_change,
    sweep,
)
from pbrl_jax.plan.shapes import adapters, policy_shapes, reward_bytes, run_models
from pbrl_jax.run.plan import main as plan_config
from pbrl_jax.weights.comets import convert_comet
from pbrl_jax.weights.encoders import save_encoder
from pbrl_jax.weights.folders import save_model
from pbrl_jax.weights.policies import Policy

HF = ROOT / "tests" / "fixtures" / "hf"

TINY = with_values(
    Config(), encoder={"max_length": 16}, rollout={"max_prompt_length": 16, "max_completion_length": 24},
    algo={"num_generations": 2, "beta": 0.1}, train={"prompts_per_step": 4, "microbatch_prompts": 2},
    data={"vocab_size": 512}, policy={"remat": "full"}, mesh={"data": 1},
)  # fmt: skip
LARGE = with_values(
    Config(), policy={"source": "meta-llama/Llama-3.1-8B", "dtype": "bfloat16", "remat": "full"},
    encoder={"source": "BAAI/bge-m3", "max_length": 512}, algo={"num_generations": 8, "beta": 0.001},
    rollout={"max_prompt_length": 512, "max_completion_length": 2048}, mesh={"data": 1, "fsdp": -1},
    train={"prompts_per_step": 64, "microbatch_prompts": 16, "logprob_chunk": 1024},
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    models = run_models(TINY)
    return compile_step(TINY, models, mesh, estimate_step(TINY, models, Sizes(1, 1, 1)), lambda text: None)


def test_products_agree_with_those_worked_by_hand(compiled):
    models = run_models(TINY)
    by_hand = {
        "generate": generate_flops(TINY, models.policy),
        "reward": reward_flops(TINY, models.encoder),
        "update": update_flops(TINY, models.policy),
    }
    for name, flops in by_hand.items():
        assert compiled[name].cost.flops == pytest.approx(flops, rel=0.1), name


def test_memory_holds_what_lies_there(compiled):
    """State and reference in float32, and, behind the update, nothing of the size [B, T, V]."""
    state = parameter_count(run_models(TINY).policy) * 16
    for need in compiled.values():
        assert state < need.hbm_bytes and 0 < need.temp_bytes < need.hbm_bytes and need.cost.bytes > 0


def test_parameters_are_counted_as_they_are():
    for config in (TINY, LARGE):
        spec = run_models(config).policy
        counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(policy_shapes(spec)))
        assert parameter_count(spec) == pytest.approx(counted, rel=0.01)


def test_models_that_rewards_load_are_counted_and_unknown_ones_refused():
    """In float32: wmt22-comet-da has 581 M parameters, NLLB-200 distilled 615 M."""
    models = {"comet": "Unbabel/wmt22-comet-da", "translator": "facebook/nllb-200-distilled-600M"}
    config = with_values(TINY, reward={"functions": ("comet",), **models})
    assert run_models(config).reward_bytes == pytest.approx(4 * (581e6 + 615e6), rel=0.001)
    assert run_models(with_values(config, reward={"translator": "policy"})).reward_bytes < 4 * 582e6
    twice = with_values(config, reward={"comet_more": ("Unbabel/wmt22-cometkiwi-da",)})
    assert run_models(twice).reward_bytes > run_models(config).reward_bytes + 4 * 560e6
    assert run_models(TINY).reward_bytes == 0
    topology = parse_topology("h100:1")
    more, plain = (estimate_plan(c, run_models(c), topology).rows["update"].need.hbm_bytes for c in (config, TINY))
    assert more - plain == run_models(config).reward_bytes
    with pytest.raises(ConfigError, match="reward.comet 'mine': its sizes are not known"):
        run_models(with_values(config, reward={"comet": "mine"}))


def test_models_in_local_folders_are_counted_as_they_load(tmp_path):
    """Released folders and those of this package: encoders and policies by their specs, what rewards load by its bytes,
    but for headers of files; an adapter by its base. An encoder of this package keeps the type of its file."""
    loaded = load_encoder(str(HF / "bge_m3"))
    save_encoder(loaded, str(tmp_path / "own"))
    for folder in (HF / "bge_m3", tmp_path / "own"):
        found = run_models(with_values(TINY, encoder={"source": str(folder), "dtype": "bfloat16"}))
        unmarked = {"begin_ids": (), "end_ids": (), "dtype": "bfloat16"}
        assert dataclasses.replace(found.encoder, **unmarked) == dataclasses.replace(loaded.spec, **unmarked)
        wide = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params)) / 2
        assert found.reward_bytes == pytest.approx(wide if folder.name == "own" else 0, rel=0.2)
    convert_comet(str(HF / "comet_regression"), str(tmp_path / "comet"))
    policy = Policy(tiny_spec(), tiny_params(tiny_spec()), hf_tokenizer(), "tiny")
    save_model(tmp_path / "policy", "policy", policy.spec, policy.params, policy.tokenizer)
    comet, translator = load_comet(str(HF / "comet_regression")), load_translator(str(HF / "m2m100"))
    for name, folder, held in (
        ("comet", tmp_path / "comet", comet),
        ("translator", HF / "m2m100", translator), ("translator", HF / "llama", load_policy(str(HF / "llama"))),
    ):  # fmt: skip
        size = float(sum(leaf.nbytes for leaf in jax.tree.leaves(held.params)))
        assert reward_bytes(with_values(TINY, reward={name: str(folder)})) == pytest.approx(size, rel=0.2), folder
    file = HF / "comet_regression" / "checkpoints" / "model.ckpt"
    released = reward_bytes(with_values(TINY, reward={"comet": str(HF / "comet_regression")}))
    assert released == file.stat().st_size, "most of which are weights, but for so small a model"
    assert run_models(with_values(TINY, policy={"source": str(tmp_path / "policy")})).policy.width == policy.spec.width
    adapter = json.loads((HF / "peft_lora" / "adapter_config.json").read_text())
    (tmp_path / "adapter").mkdir()
    changed = adapter | {"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(changed))
    shutil.copy(HF / "peft_lora" / "adapter_model.safetensors", tmp_path / "adapter")
    assert run_models(with_values(TINY, policy={"source": str(tmp_path / "adapter")})).policy.width == 4096


def test_quantised_bases_hold_their_bits():
    """Llama-3.1-8B beside adapters on one device: 7 G values of the layers in 8 or 4 bits, and a scale for every 64."""
    models, at = run_models(with_values(LARGE, algo={"beta": 0.0})), Sizes(1, 1, 1)
    held = {}
    for kind in ("none", "int8", "int4", "nf4"):
        config = with_values(LARGE, lora={"rank": 16, "quantization": kind}, algo={"beta": 0.0})
        held[kind] = sum(state_bytes(config, models, at)) / 1e9
    adapters = 12 * 41_943_040 / 1e9
    assert held["none"] - adapters == pytest.approx(16.06, rel=0.01)
    assert held["int8"] - adapters == pytest.approx(2.1 + 6.98 * (1 + 2 / 64), rel=0.02)
    assert held["nf4"] == held["int4"] == pytest.approx(adapters + 2.1 + 6.98 * (0.5 + 2 / 64), rel=0.02)


def test_topologies():
    assert parse_topology("v5p:2x2x4").chips == 16 and parse_topology("h100:8").chips == 8
    assert parse_topology("v5litepod-16") == parse_topology("v5e-16") == Topology("v5e", "4x4")
    assert parse_topology("v5p-32") == Topology("v5p", "2x2x4"), "v5p is counted in cores, two of them on a chip"
    for wrong, said in (("v5p:3x3x3", "2x2x4"), ("v9:2x2", "v5e"), ("v5p-31", "2x2x4"), ("h100:3", "8"), ("", "v5p")):
        with pytest.raises(ConfigError, match=said):
            parse_topology(wrong)


def test_several_slices_and_boxes():
    two = parse_topology("2xv5p-32")
    assert two == Topology("v5p", "2x2x4", 2) and (two.name, two.chips, two.box) == ("2xv5p:2x2x4", 32, 16)
    boxes = parse_topology("2xh100:8")
    assert boxes == parse_topology("h100:16") and (boxes.chips, boxes.box, boxes.chips_per_host) == (16, 8, 8)
    halves = parse_topology("v7x:2x2x1")
    assert (halves.chips, halves.box, halves.chips_per_host) == (8, 8, 8), "two devices a chip"
    assert halves == parse_topology("tpu7x:2x2x1") and halves.compiler_name == "tpu7x:2x2x1"
    with pytest.raises(ConfigError, match="mesh.data=1 does not divide over 2 slices of 16 chips"):
        plan_config(with_values(LARGE, train={"microbatch_prompts": 32}), topology="2xv5p-32")


def test_devices_are_known_by_the_names_that_they_give_themselves():
    kinds = {
        "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU7x": "v7x", "TPU v4": "v4",
        "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA B200": "b200",
        "NVIDIA A10G": "a10", "NVIDIA L4": "l4", "NVIDIA GeForce RTX 4090": "rtx4090",
    }  # fmt: skip
    assert {kind: known_chip(kind) for kind in kinds} == {kind: CHIPS[name] for kind, name in kinds.items()}
    assert [known_chip(kind) for kind in ("cpu", "NVIDIA L40S", "TPU v4 lite", "NVIDIA A1000")] == [None] * 4


def test_gradients_cross_the_network_once_a_step():
    """Llama-3.1-8B over two slices or boxes: each chip sends its share of the float32 gradients, and nothing else
    passes there; with tensor, too, at each of the microbatches (mesh.microbatches.data_sums)."""
    config = with_values(LARGE, mesh={"data": 2, "fsdp": -1}, train={"microbatch_prompts": 32})
    models = run_models(config)
    for name in ("2xv5p:2x2x1", "h100:16"):
        topology = parse_topology(name)
        rows = estimate_plan(config, models, topology).rows
        assert rows["update"].need.cost.network_bytes == 4.0 * parameter_count(models.policy) * 2 / topology.chips
        assert rows["generate"].need.cost.network_bytes == 0
        one = estimate_step(config, models, Sizes(2, topology.chips // 2, 1))["update"].cost
        assert one.network_bytes == 0 and one.collective_bytes > 0
    both = estimate_step(config, models, Sizes(2, 4, 2, 8))["update"].cost.network_bytes
    assert both == pytest.approx(2 * 4.0 * parameter_count(models.policy) / 8)
    across = estimate_step(config, models, Sizes(1, 16, 1, 8))["update"].cost
    gathered = across.collectives["all-gather"] + across.collectives["reduce-scatter"]
    assert across.network_bytes == pytest.approx(gathered / 8), "eight chips of a box share what leaves it"


def test_seconds_to_expect():
    """At the shares of the peaks that measured programs reach, beside the bound."""
    chip = CHIPS["h100"]
    need = Need(1.0, 1.0, Cost(chip.flops, chip.bandwidth / 2))
    plan = make_plan(TINY, {"update": need, "generate": Need(1.0, 1.0, Cost(0.0, chip.bandwidth))}, chip)
    assert plan.step_seconds == pytest.approx(2) and plan.rows["update"].expected == pytest.approx(1 / 0.497)
    assert plan.expected_seconds == pytest.approx(1 / 0.497 + 1 / 0.77)
    away = make_plan(TINY, {"update": Need(1.0, 1.0, Cost(network_bytes=chip.network))}, chip).rows["update"]
    assert (away.binds, away.seconds, away.expected) == ("network", 1.0, pytest.approx(1 / LINK_SHARE))
    assert Cost(collectives={"all-gather": 5.0, "all-reduce": 2.0}, network_bytes=3.0).link_bytes == 4.0
    assert all(0 < share < 1 for chip in CHIPS.values() for share in (chip.compute_share, chip.memory_share))
    assert known_chip("cpu") is None and local_chip(1, 1.0).compute_share == 1


def test_what_binds():
    chip = CHIPS["v5p"]
    for binds, cost in (
        ("compute", Cost(2 * chip.flops, chip.bandwidth)),
        ("memory", Cost(chip.flops, 2 * chip.bandwidth)),
        ("links", Cost(chip.flops, chip.bandwidth, {"all-gather": 2 * chip.link})),
    ):
        plan = make_plan(TINY, {"update": Need(1.0, 1.0, cost)}, chip)
        assert plan.rows["update"].binds == binds and plan.step_seconds == pytest.approx(2)
        assert plan.tokens_per_second == pytest.approx(4 * 2 * 24 / 2) and plan.fits
    assert not make_plan(TINY, {"update": Need(USABLE * chip.memory + 1, 1.0, Cost())}, chip).fits


def test_a_mesh_that_training_refuses_is_refused():
    """8 kv heads over 16 chips; also where nothing is compiled."""
    config = with_values(LARGE, mesh={"data": 1, "fsdp": 1, "tensor": 16})
    with pytest.raises(ConfigError, match="'kv_heads' of size 8 does not divide over mesh axis 'tensor' of 16"):
        plan_config(config, topology="h100:16")
    stage = with_values(LARGE, sft={"batch_size": 6})
    with pytest.raises(ConfigError, match="sft.batch_size is 6; expected a multiple of mesh data . fsdp = 8"):
        plan_config(stage, topology="h100:8", verb="sft")
    assert all(sizes.tensor <= 8 for sizes in meshes(LARGE, run_models(LARGE), parse_topology("h100:16")))


def test_the_nearest_change_fits():
    """Llama-3.1-8B, all of it on every chip: 16 bytes a parameter are 128 GB."""
    models, topology = run_models(LARGE), Topology("v5p", "2x2x4")
    whole = with_values(LARGE, mesh={"data": 16, "fsdp": 1})
    assert not estimate_plan(whole, models, topology).fits and estimate_plan(LARGE, models, topology).fits
    words = nearest_change(whole, models, topology, {}).split()
    mesh = {flag.removeprefix("--mesh."): int(size) for flag, size in zip(words[::2], words[1::2], strict=True)}
    assert estimate_plan(with_values(whole, mesh=mesh), models, topology).fits
    assert "larger machine" in nearest_change(LARGE, models, Topology("v5e", "2x2"), {})


def test_a_program_that_the_compiler_refuses_counts_as_too_large(monkeypatch):
    said = []
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (131.10G) ex"

    def refuse(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setitem(PROGRAMS, "update", refuse)
    monkeypatch.delitem(PROGRAMS, "generate")
    monkeypatch.delitem(PROGRAMS, "reward")
    models, mesh = run_models(TINY), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    by_hand = estimate_step(TINY, models, Sizes(1, 1, 1))
    need = compile_step(TINY, models, mesh, by_hand, said.append)["update"]
    assert need.temp_bytes == 131.10 * 2**30 and need.cost == by_hand["update"].cost
    assert "refused update" in said[-1]
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_step(TINY, models, mesh, by_hand, said.append)


def test_sweep_is_ordered_and_fits():
    said = []
    offers = sweep(LARGE, run_models(LARGE), ("v5p", "v5e"), said.append)
    assert [offer.dollars for offer in offers] == sorted(offer.dollars for offer in offers)
    assert offers and all(offer.plan.fits and offer.sizes.chips == offer.topology.chips for offer in offers)
    assert "v5e:1x1: no mesh fits" in said


def test_adapters_and_offload_need_less():
    """Adapters: no moments of the weights, two thirds of the products; offloaded moments: 8 bytes a parameter less."""
    models, mesh = run_models(LARGE), Sizes(1, 16, 1)
    usual = estimate_step(LARGE, models, mesh)
    beside = estimate_step(with_values(LARGE, lora={"rank": 16}), models, mesh)
    assert beside["update"].cost.flops < 0.85 * usual["update"].cost.flops
    assert beside["update"].hbm_bytes < usual["update"].hbm_bytes - 8 * parameter_count(models.policy) / 16
    away = estimate_step(with_values(LARGE, train={"offload": ("optimizer",)}), models, mesh)
    moments = 8 * parameter_count(models.policy) / 16
    assert usual["generate"].hbm_bytes - away["generate"].hbm_bytes == pytest.approx(moments)
    assert away["update"].hbm_bytes == pytest.approx(usual["update"].hbm_bytes), "there they are needed"
    assert away["update"].cost.host_bytes == pytest.approx(2 * moments) and not usual["update"].cost.host_bytes


def test_sampling_in_eight_bits_reads_half():
    """Llama-3.1-8B: 7 G weights of the layers in a byte each; a key or value of a head in 128 + 4 bytes, not 256."""
    models, mesh = run_models(LARGE), Sizes(1, 1, 1)
    tables = 2 * 2.0 * 128_256 * 4096
    plain, weights, caches = (
        generate_estimate(with_values(LARGE, rollout={"weights": "whole"} | eight), models, mesh)
        for eight in ({}, {"weight_dtype": "int8"}, {"kv_dtype": "int8"})
    )
    kernels = 2.0 * parameter_count(models.policy) - tables
    assert plain.cost.bytes - weights.cost.bytes == pytest.approx(2048.5 * kernels / 2, rel=0.001)
    assert plain.hbm_bytes - weights.hbm_bytes == pytest.approx(kernels / 2)
    cache = 1.1 * 2 * 32 * 8 * (512 * 2560 + 64 * 512)
    assert plain.temp_bytes - caches.temp_bytes == pytest.approx(cache * (256 - 132))


def test_shapes_of_adapters_are_counted_as_they_are():
    config = with_values(LARGE, lora={"rank": 16})
    spec = run_models(config).policy
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapters(config, spec)))
    assert adapter_count(config, spec) == counted == 41_943_040, "as peft counts rank 16 on all projections"


def test_more_chips_take_their_share():
    models = run_models(LARGE)
    few, many = (estimate_step(LARGE, models, Sizes(1, size, 1)) for size in (4, 16))
    for name in ("generate", "update"):
        assert many[name].cost.flops == few[name].cost.flops / 4 and many[name].hbm_bytes < few[name].hbm_bytes


def test_the_verb(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    file = tmp_path / "plan.json"
    large = ["--policy.source", "Qwen/Qwen3-8B", "--encoder.source", "BAAI/bge-m3", "--mesh.fsdp", "4"]
    command = ["plan", "configs/tiny_cpu.py", *large, "--train.prompts-per-step", "8"]
    assert cli.main([*command, "--topology", "h100:8", "--json", str(file)]) == 0
    shown = capsys.readouterr()
    assert "by hand" in shown.out and "no such GPU is here" in shown.err and "It fits" in shown.out
    assert "A run may fill 72.0 GB with XLA_CLIENT_MEM_FRACTION=0.9" in shown.out and "60.0 GB" in shown.out
    assert "Expected: " in shown.out and "with 50% of the peak FLOPs and 77% of the memory's bandwidth" in shown.out
    copied = 12 * 8_190_735_360 / 1e9  # four chips hold all parameters and moments
    assert f"a host of 8 chips holds a copy in its memory: {copied:.2f} GB" in shown.out
    stored = json.loads(file.read_text())
    assert set(stored) == {
        "programs", "hbm_capacity", "fits", "tokens_per_second", "step_seconds", "expected_seconds"
    }  # fmt: skip
    wanted = {
        "hbm_bytes", "temp_bytes", "flops", "bytes", "collective_bytes", "network_bytes", "seconds", "expected_seconds"
    }  # fmt: skip
    assert set(stored["programs"]) == {"generate", "reward", "update"}
    assert all(wanted == set(program) for program in stored["programs"].values())
    served = ["--rollout.engine", "vllm", "--topology", "h100:8", "--json", str(file)]
    assert cli.main([*command, *served]) == 0
    assert "The vLLM server holds 32.76 GB of weights" in capsys.readouterr().out
    assert set(json.loads(file.read_text())["programs"]) == {"reward", "update"}, "its chips are not the run's"
    assert cli.main([*command, "--topology", "a100:1", "--mesh.fsdp", "1"]) == 0
    assert "It does not fit" in (shown := capsys.readouterr().out) and "nearest change" in shown
    assert cli.main([*command, "--sweep", "--topology", "h200"]) == 0
    assert "The cheapest that fits: --topology h200:" in capsys.readouterr().out
    assert cli.main([*command, "--sweep", "--topology", "v5litepod-16"]) == 0
    assert "v5e:" in capsys.readouterr().out
    for wrong, said in (
        (["--topology", "v5p:9x9x9"], "2x2x4"),
        (["--topology", "h100:8", "--mesh.fsdp", "3"], "does not fit 8 devices"),
        (["--topology", "h100:8", "--policy.source", "who/knows"], "sizes are not known"),
        (["--topology", "h100:8", "--encoder.source", "who/knows"], "sizes are not known"),
        (["--sweep", "--topology", "h200", "--json", str(file)], "Leave --json out"),
        (
            [
                "--topology",
                "h100:8",
                "--policy.source",
                str(HF / "llama"),
                "--mesh.fsdp",
                "1",
                "--rollout.max-prompt-length",
                "9999999",
            ],
            "positions",
        ),
    ):
        assert cli.main([*command, *wrong]) == 1
        assert said in capsys.readouterr().err


def test_the_faster_sharding_of_weights_is_chosen():
    """Few rows read a quarter of the weights at each token; many rows of a small model exchange more than they save;
    without fsdp there is no choice, and what is configured stays."""
    models, chip = run_models(LARGE), CHIPS["v5p"]
    config, notes = chosen_decoding(LARGE, models, Sizes(1, 4, 1), chip)
    assert config.rollout.weights == "tensor" and "whole" in notes[0] and "tensor" in notes[0]
    read = {name: generate_estimate(with_values(LARGE, rollout={"weights": name}), models, Sizes(1, 4, 1)).cost.bytes
            for name in ("whole", "tensor")}  # fmt: skip
    matrices = 2.0 * parameter_count(models.policy)
    saved = 2048 * matrices * 3 / 4
    assert read["whole"] - read["tensor"] == pytest.approx(saved, rel=0.01)
    assert chosen_decoding(LARGE, models, Sizes(4, 1, 1), chip)[0].rollout.weights == "whole"
    many = with_values(LARGE, policy={"source": "random", "preset": "small"}, train={"prompts_per_step": 4096})
    assert chosen_decoding(many, run_models(many), Sizes(1, 4, 1), chip)[0].rollout.weights == "whole"
    given = with_values(LARGE, rollout={"weights": "as_trained"})
    assert chosen_decoding(given, models, Sizes(1, 4, 1), chip)[0].rollout.weights == "as_trained"
