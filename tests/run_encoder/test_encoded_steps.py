"""The contrastive steps' arrays are those of encoding every text alone, and have one shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, SPACE, encoder, problem_prompts, tokenizer

from pbrl_jax import Config, with_values
from pbrl_jax.core.paths import work_dir
from pbrl_jax.data.contrastive import Pair, quickstart_pairs
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.run.encoder import EncodedSteps, all_pairs, train_encoder
from pbrl_jax.train.contrastive import info_nce
from pbrl_jax.weights.encoders import embed_tokens, load_encoder, save_encoder, with_compute


def rows(tokens, mask) -> list[list[int]]:
    """The real tokens of each row, which must lie at its beginning."""
    tokens, mask = np.asarray(tokens), np.asarray(mask)
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]


def expect_arrays(batch, pairs, model):
    def ids(texts):
        return [model.tokenizer.encode(model.prefix + text)[: model.max_length] for text in texts]

    assert rows(batch.source_BS, batch.source_mask_BS) == ids(p.text for p in pairs)
    assert rows(batch.target_BS, batch.target_mask_BS) == ids(p.target for p in pairs)
    negatives = ids(n for p in pairs for n in p.negatives)
    found = rows(batch.negative_MS, batch.negative_mask_MS)
    assert found == negatives + [[]] * (len(found) - len(negatives))


@pytest.mark.parametrize("max_length, prefix", [(64, ""), (10, "Ali: ")])
def test_arrays_equal_each_text_encoded_alone(max_length, prefix, capsys):
    model = encoder(max_length=max_length, prefix=prefix)
    steps = [quickstart_pairs(LANGUAGES, step, 6, 0, negatives=2, space=SPACE) for step in range(4)]
    encoded = EncodedSteps(steps, model)
    batches = [encoded.batch(step) for step in range(4)]
    for pairs, batch in zip(steps, batches, strict=True):
        expect_arrays(batch, pairs, model)
    assert len({jax.tree.map(jnp.shape, tuple(vars(b).values())) for b in batches}) == 1
    assert encoded.width <= max_length
    assert (f"texts are longer than encoder.max_length={max_length} tokens" in capsys.readouterr().out) == bool(prefix)


STEPS = [
    [Pair("sw", "Jibu ni 20.", "en", "The answer is 20.", ("The answer is 21.", "The answer is 2.")),
     Pair("sw", "Jibu ni 7.", "en", "The answer is 7.", ())],
    [Pair("sw", "Jibu ni 3.", "en", "The answer is 3.", ()), Pair("zh", "答案是 4。", "en", "The answer is 4.", ())],
    [Pair("sw", "Jibu ni 9.", "en", "The answer is 9.", ()),
     Pair("zh", "答案是 4。", "en", "The answer is 4.", ("The answer is 5.",))],
]  # fmt: skip


@pytest.mark.parametrize("step, missing", [(0, 0), (1, 2), (2, 1)])
def test_missing_negatives_leave_the_loss_as_it_is(step, missing):
    """Steps with 2, 0 and 1 negatives have arrays of 2, and the loss of their own negatives alone."""
    model = encoder()
    batch = EncodedSteps(STEPS, model).batch(step)
    assert batch.negative_MS.shape[0] == 2 and int((~batch.negative_mask_MS.any(axis=1)).sum()) == missing
    expect_arrays(batch, STEPS[step], model)

    def loss(negative, mask):
        vectors = [
            embed_tokens(model.spec)(model.params, tokens, kept)
            for tokens, kept in (
                (batch.source_BS, batch.source_mask_BS), (batch.target_BS, batch.target_mask_BS), (negative, mask)
            )
        ]  # fmt: skip
        return info_nce(*vectors, 0.05, mask.any(axis=1))

    found = loss(batch.negative_MS, batch.negative_mask_MS)
    real = batch.negative_mask_MS.any(axis=1)
    expected = loss(batch.negative_MS[real], batch.negative_mask_MS[real])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_steps_without_any_negative():
    batch = EncodedSteps([STEPS[1]], encoder()).batch(0)
    assert batch.negative_MS.shape[0] == 0
    expect_arrays(batch, STEPS[1], encoder())


def test_all_pairs_follow_the_configuration():
    config = with_values(
        Config(), data={"path": SPACE, "languages": LANGUAGES},
        contrastive={"steps": 3, "batch_size": 5, "hard_negatives": 2}, train={"seed": 4},
    )  # fmt: skip
    found = all_pairs(config, [])
    assert found == [quickstart_pairs(LANGUAGES, step, 5, 4, negatives=2, space=SPACE) for step in range(3)]
    other = all_pairs(with_values(config, data={"source": "table"}), problem_prompts(8))
    assert [len(pairs) for pairs in other] == [5, 5, 5]
    assert all(pair.target_language == "en" and pair.language in ("sw", "zh") for pairs in other for pair in pairs)
    assert tokenizer().encode(other[0][0].text)


def test_weights_in_bfloat16_are_trained_in_float32(tmp_path):
    """An update of a thousandth of a weight, which bfloat16 would round away, arrives; the compute type stays."""
    model = encoder(max_length=64)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    model = model._replace(spec=with_compute(model.spec, "bfloat16"), params=rounded)
    config = with_values(
        Config(), data={"languages": LANGUAGES, "path": SPACE}, mesh={"data": 1},
        contrastive={"steps": 1, "batch_size": 4, "learning_rate": 1e-4},
    )  # fmt: skip
    trained = train_encoder(config, work_dir(tmp_path / "w"), model, [], make_mesh(config.mesh))
    pairs = list(zip(jax.tree.leaves(rounded), jax.tree.leaves(trained.params), strict=True))
    moved = np.concatenate([(np.asarray(old, np.float32) != np.asarray(new)).reshape(-1) for old, new in pairs])
    assert all(new.dtype == jnp.float32 for _, new in pairs) and moved.mean() > 0.5
    save_encoder(trained, str(tmp_path / "encoder"))
    assert load_encoder(str(tmp_path / "encoder")).spec.dtype == "bfloat16"
