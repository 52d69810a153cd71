"""Seconds per GRPO step of Tunix (google-tunix 0.1.7) on the shared workload.

    FOLDER/tunix/bin/python benchmarks/peers/tunix_step.py --steps 8 --json tunix.json

Tunix's own GRPOLearner with its built-in rollout engine runs unchanged; this script only wraps the four calls that
are its phases and waits for the device at the end of each, so that asynchronous work is put down to the right one.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
import warnings
from importlib.metadata import version

import bench_workload as workload
from bench_protocol import StepClock, finish, parse_flags, workload_dict

warnings.filterwarnings("ignore")

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params as qwen3_params
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


class NumberTokenizer:
    """Words are token ids in digits; the sampler itself puts BOS in front."""

    def encode(self, text, **_):
        return [int(word) for word in str(text).split()]

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        return workload.BOS

    def eos_id(self):
        return workload.EOS

    def pad_id(self):
        return workload.PAD


def load_model(flags, folder, mesh):
    config = qwen3.ModelConfig(
        num_layers=flags.layers,
        vocab_size=flags.vocab,
        embed_dim=flags.d,
        hidden_dim=flags.ffn,
        num_heads=flags.heads,
        head_dim=flags.head_dim,
        num_kv_heads=flags.kv_heads,
        rope_theta=int(workload.ROPE_THETA),
        norm_eps=workload.NORM_EPS,
        use_tied_embedding=True,
    )
    return qwen3_params.create_model_from_safe_tensors(str(folder), config, mesh, dtype=jax.numpy.float32)


def make_cluster(flags, mesh):
    with tempfile.TemporaryDirectory() as folder:
        workload.write_model_folder(flags, folder)
        actor, reference = load_model(flags, folder, mesh), load_model(flags, folder, mesh)
    # The whole batch is one micro-batch everywhere: the fastest setting where memory allows it.
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(workload.LEARNING_RATE, weight_decay=0.0),
        eval_every_n_steps=10**9,
        max_steps=flags.steps,
        mini_batch_size=flags.prompts,
        train_micro_batch_size=flags.prompts,
        rollout_micro_batch_size=flags.prompts,
        compute_logps_micro_batch_size=flags.prompts,
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=flags.response_len,
        max_prompt_length=flags.prompt_len,
        kv_cache_size=flags.prompt_len + flags.response_len,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
    )
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    return rl_cluster.RLCluster(
        actor=actor,
        reference=reference,
        tokenizer=NumberTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in roles},
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training,
            rollout_config=rollout,
        ),
    )


def sampled_tokens(rollout, response_len: int) -> int:
    """Tunix cuts a response before its EOS; that token was sampled too, so it is counted again here."""
    return sum(min(len(tokens) + 1, response_len) for tokens in rollout.tokens)


def time_phases(cluster, learner, clock: StepClock, flags) -> None:
    """Wrap the phases of cluster and learner in place. A step lasts from one rollout's beginning to the next's."""
    generate, reference = cluster.generate, cluster.get_ref_per_token_logps
    rewards, update = learner._compute_rewards, cluster.update_actor
    # Without a seed Tunix draws the same noise at every step, so every step would have the same response lengths.
    keys = iter(list(jax.random.split(jax.random.key(flags.seed, impl="threefry2x32"), flags.steps)))
    first_key = [True]

    def timed_generate(*args, **kwargs):
        if first_key:
            first_key.clear()
            clock.start()
        else:
            clock.end_step()
        cluster.cluster_config.rollout_config.seed = next(keys)
        result = clock.timed("rollout", generate, *args, **kwargs)  # returns host arrays: nothing left to wait for
        clock.add_response_tokens(sampled_tokens(result, flags.response_len))
        return result

    def update_and_wait(*args, **kwargs):
        update(*args, **kwargs)
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))

    cluster.generate = timed_generate
    cluster.get_ref_per_token_logps = lambda *a, **k: clock.timed(
        "reference", lambda: jax.block_until_ready(reference(*a, **k))
    )
    learner._compute_rewards = lambda *a, **k: clock.timed("reward", rewards, *a, **k)
    cluster.update_actor = lambda *a, **k: clock.timed("update", update_and_wait, *a, **k)


def even_share_reward(prompts, completions, **_):
    return [workload.even_share([int(word) for word in completion.split()]) for completion in completions]


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    clock = StepClock()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: clock.add_compilation() if name.endswith("backend_compile_duration") else None
    )
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    data = [{"prompts": np.array([" ".join(map(str, ids[1:])) for ids in step])} for step in workload.prompt_ids(flags)]
    cluster = make_cluster(flags, mesh)
    algorithm = grpo_learner.GRPOConfig(num_generations=flags.group, num_iterations=1, beta=flags.beta, epsilon=0.2)
    with mesh:
        learner = grpo_learner.GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=even_share_reward)
        time_phases(cluster, learner, clock, flags)
        learner.train(data)
    clock.end_step()
    finish("tunix", version("google-tunix"), workload_dict(flags), clock, True, flags.json)


if __name__ == "__main__":
    main()
