"""The script that times `Encoder.embed` computes with direct calls what `embed` computes."""

import json
from pathlib import Path

import numpy as np

from benchmarks.embed_speed import direct, main
from pbrl_jax import load_encoder

LABSE = Path(__file__).parents[1] / "fixtures" / "hf" / "labse"


def test_direct_calls_are_what_embed_computes():
    encoder = load_encoder(str(LABSE))
    texts = ["Nine.", "Nine eggs.", "Two dollars each."]
    assert [len(encoder.chunks(ids)) for ids in encoder.tokenizer.encode_batch(texts)] == [1, 1, 1]
    np.testing.assert_allclose(direct(encoder, texts), encoder.embed(texts), atol=1e-5)


def test_every_case_is_timed(tmp_path):
    (tmp_path / "texts.txt").write_text("Nine eggs.\nTwo dollars each.\n")
    main(["--encoder", str(LABSE), "--texts", str(tmp_path / "texts.txt"), "--rounds", "1",
          "--json", str(tmp_path / "out.json")])  # fmt: skip
    rows = json.loads((tmp_path / "out.json").read_text())
    assert len(rows) == 3 and all(row["ratio"] > 0 for row in rows)
