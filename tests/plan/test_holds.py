"""What a compiled update must not hold is found, and a good one has none of it."""

import functools

import jax
import jax.numpy as jnp
import pytest
from tiny_policy import quick_compiles, tiny_batch, tiny_config, tiny_params, tiny_spec  # noqa: F401

from pbrl_jax import with_values
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.models.specs import tiny_decoder
from pbrl_jax.plan.holds import update_faults

#: 8 layers of [512, 1024]: 4 M scalars stacked; the embedding has 2 M.
SPEC = tiny_decoder(vocab_size=4000, width=512, layers=8, ffn=1024, tied_embeddings=True)
CONFIG = with_values(tiny_config(2, 64), train={"prompts_per_step": 8, "microbatch_prompts": 8, "logprob_chunk": 128})
MESH = {"data": 1, "fsdp": 4, "tensor": 2}

PROGRAM = """HloModule m

%inner (p: f32[8,512,1024]) -> f32[8,512,1024] {{
  %p = f32[8,512,1024]{{2,1,0}} parameter(0)
  ROOT %n = f32[8,512,1024]{{2,1,0}} negate(%p)
}}

ENTRY %main (a: {argument}) -> f32[] {{
  %a = {argument}{{1,0}} parameter(0)
  %t = {temporary}{{1,0}} broadcast(%a)
  %f = f32[8] fusion(%t), kind=kLoop, calls=%inner
  ROOT %r = f32[] constant(0)
}}
"""


@pytest.mark.parametrize(
    "argument, temporary, fault",
    [
        ("f32[8,128,512]", "bf16[512,1024]", None),
        ("f32[8,128,512]", "f32[1,4000,512]", None),
        ("f32[8,512,1024]", "f32[4]", "a whole parameter: f32[8, 512, 1024] (parameter a)"),
        ("f32[4]", "bf16[8,1024,512]", "a whole parameter: bf16[8, 1024, 512] (broadcast t)"),
        ("f32[4000,512]", "f32[4]", "a whole parameter: f32[4000, 512] (parameter a)"),
        ("f32[4]", "f32[4,63,2000]", "logits: f32[4, 63, 2000] (broadcast t)"),
        ("f32[4]", "f32[63,4000]", "logits: f32[63, 4000] (broadcast t)"),
        ("f32[4]", "f32[63,2000]", None),
    ],
    ids=str,
)
def test_faults_of_a_program(argument, temporary, fault):
    """Four rows of 64 tokens and 2000 words of the vocabulary on a chip: a quarter of their logits is the bound."""
    text = PROGRAM.format(argument=argument, temporary=temporary)
    assert update_faults(text, CONFIG, SPEC, MESH) == ([fault] if fault else [])


def test_logits_of_all_positions_are_seen_and_ours_have_none():
    spec = tiny_spec(vocab_size=4096, layers=1)
    batch, params = tiny_batch(spec, (4, 3), 4, (24, 12, 24, 20), 24), tiny_params(spec)
    config = with_values(tiny_config(2, 24), train={"prompts_per_step": 2, "logprob_chunk": 8})
    tokens = jnp.concatenate([jnp.repeat(batch.prompts.tokens_PT, 2, axis=0), batch.rollout.tokens_BR], axis=1)

    def plain(params):
        return jax.nn.log_softmax(causal_logits(params, spec, tokens, tokens >= 0)).max()

    def ours(params):
        streams = unpacked_streams(batch.rollout.tokens_BR, batch.rollout.lengths_B, 2)
        return response_logprobs(params, batch.prompts, streams, 1.0, spec=spec, chunk=8)[0].sum()

    faults = functools.partial(update_faults, config=config, spec=spec, mesh_shape=dict.fromkeys(MESH, 1))
    found = faults(jax.jit(jax.grad(plain)).lower(params).compile().as_text())
    assert any("logits: f32[4, 28, 4096]" in fault for fault in found)
    assert faults(jax.jit(jax.grad(ours)).lower(params).compile().as_text()) == []
