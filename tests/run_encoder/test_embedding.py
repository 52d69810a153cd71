"""References' vectors in bulk are those that the encoder gives one by one."""

import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import canonical_responses, encoder

from pbrl_jax.data import corpus
from pbrl_jax.run.embedding import bulk_embedder


@pytest.mark.parametrize("bulk", [1, 4096])
def test_long_texts_are_chunked_in_bulk_too(bulk, monkeypatch):
    """Through tensorflow-text (from one text on) and on the host; the prefix heads every chunk."""
    monkeypatch.setattr(corpus, "BULK", bulk)
    model = encoder(max_length=8, prefix="1 + ")
    texts = [*canonical_responses(2), "Jibu ni 7."]
    lengths = [len(model.tokenizer.encode(model.prefix + text)) for text in texts]
    assert min(lengths) <= 8 < max(lengths)
    embed = bulk_embedder(model, texts)
    np.testing.assert_allclose(embed(texts), model.embed(texts), atol=1e-5)
    np.testing.assert_allclose(embed(texts[2:4]), model.embed(texts[2:4]), atol=1e-5)
    assert np.abs(embed(texts)[0] - encoder(max_length=64, prefix="1 + ").embed(texts)[0]).max() > 1e-3
