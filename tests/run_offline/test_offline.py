"""Learning from scored responses: files of groups, pairs and best responses, and `pbrl sft` from samples and files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_hf import hf_tokenizer
from tiny_policy import quick_compiles  # noqa: F401  a fixture
from tiny_world import policy

from configs.tiny_cpu import get_config
from pbrl_jax import with_values
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.run import dpo, sft, sft_sources
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check_verb import check_verb
from pbrl_jax.run.dpo import preference_pairs, refuse_other_tokens
from pbrl_jax.run.scored import FILE, ScoredGroup, origin_of, read_groups
from pbrl_jax.run.sft_sources import best_of, read_examples, translated
from pbrl_jax.translate.translator import Translation
from pbrl_jax.weights.policies import load_policy

GROUP = ScoredGroup(7, "sw", "2 + 2?", ["a", "b", "", "d"], [[5], [6, 7], [8], [9]], [0.2, 0.9, 1.5, None])


def offline(**sections):
    """The tiny run, with responses that are scored by their length in the place of its reward."""
    return with_values(
        get_config(), data={"limit": 4}, train={"max_steps": 1}, log={"compilation_cache": ""},
        reward={"functions": (f"{__name__}:length",), "language_gate": "off"},
        sft={"steps": 2, "batch_size": 4, "warmup_steps": 1, "prompts": 4, "min_reward": 0.01, "packed": True},
        dpo={"steps": 3, "batch_size": 4, "warmup_steps": 1, "prompts": 4, "min_margin": 0.0, "learning_rate": 1e-3},
        **sections,
    )  # fmt: skip


def length(prompts, completions, **columns):
    return [len(text) / 64 for text in completions]


def test_best_of_a_group():
    """The highest valid reward; nothing where that is too low, or the response is empty."""
    assert best_of(GROUP._replace(rewards=[0.2, 0.9, 0.1, None]), 0.5) == ("sw", "2 + 2?", "b")
    assert best_of(GROUP._replace(rewards=[0.9, 0.9, 0.1, None]), 0.5).response == "a"
    assert best_of(GROUP, 0.5) is None and best_of(GROUP._replace(rewards=[None] * 4), 0.0) is None
    assert best_of(GROUP._replace(rewards=[0.2, 0.3, 0.1, None]), 0.5) is None
    assert best_of(GROUP._replace(rewards=[float(np.float32(0.7)), 0.3, 0.1, None]), 0.7).response == "a"
    assert best_of(GROUP._replace(completions=[], tokens=[], rewards=[]), 0.5) is None


def test_pairs_as_tokens(capsys):
    """Chosen and rejected keep the tokens that were sampled; pairs that are too long are counted."""
    config = offline()
    (prompt, chosen, rejected), *more = preference_pairs([GROUP], config, policy())
    assert prompt == [policy().tokenizer.bos_id, *policy().tokenizer.encode("2 + 2?\n")]
    assert (chosen, rejected) == ([8], [5]) and [(c, r) for _, c, r in more] == [([6, 7], [5]), ([8], [6, 7])]
    short = with_values(config, rollout={"max_completion_length": 1})
    assert len(preference_pairs([GROUP], short, policy())) == 1
    assert "1 groups give 1 pairs (all); 2 are too long" in capsys.readouterr().out
    with pytest.raises(DataError, match="dpo.min_margin=9"):
        preference_pairs([GROUP], with_values(config, dpo={"min_margin": 9.0}), policy())


def test_files_that_are_none(tmp_path):
    file = tmp_path / "scored.jsonl"
    with pytest.raises(DataError, match="does not exist"):
        read_groups(str(file))
    file.write_text(json.dumps(GROUP._asdict()) + "\n")
    assert read_groups(str(file)) == [GROUP]
    file.write_text(json.dumps({**GROUP._asdict(), "rewards": [1.0]}) + "\n")
    with pytest.raises(DataError, match="line 1: completions, tokens and rewards have different lengths"):
        read_groups(str(file))
    file.write_text('{"language": "sw", "question": "q"}\n')
    with pytest.raises(DataError, match="line 1: lacks prompt_id, completions"):
        read_groups(str(file))
    with pytest.raises(DataError, match="line 1: lacks response"):
        read_examples(str(file))
    with pytest.raises(ConfigError, match="--sft.translator"):
        check_verb("sft", with_values(offline(), sft={"source": "translated"}))


def test_references_are_translated_once_by_each_translator(tmp_path, monkeypatch):
    """A changed sft.translator is not ignored, and what was translated before a kill is kept."""
    asked = []

    def load(name):
        def translations(texts, sources, target):
            asked.extend(texts)
            if name == "killed" and target == "zh":
                raise KeyboardInterrupt
            return [Translation("" if name == "silent" else f"{name} {text}", True, True) for text in texts]

        return SimpleNamespace(fingerprint=name, uses_incomplete=True, translations=translations)

    monkeypatch.setattr(sft_sources, "load_translator", load)
    for name, count in (("killed", 8), ("killed", 4), ("one", 8), ("one", 0), ("two", 8)):
        asked.clear()
        config, work = offline(), work_dir(tmp_path)
        config = with_values(config, sft={"source": "translated", "translator": name})
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                translated(config, work)
        else:
            rows = translated(config, work)[1]
            assert {row.response.split()[0] for row in rows if row.language != "en"} == {name}
            assert read_examples(str(tmp_path / "translated.jsonl")) == rows
        assert len(asked) == count, name
    with pytest.raises(DataError, match="silent translates every reference as nothing"):
        translated(
            with_values(config, data={"languages": ("sw",), "english_share": 0.0}, sft={"translator": "silent"}), work
        )


def test_english_references_alone_are_no_rows_of_another_version(tmp_path, monkeypatch):
    """Nothing is translated, so that translations.jsonl was missing: other rows were then ignored."""
    monkeypatch.setattr(sft_sources, "load_translator", lambda _: SimpleNamespace(fingerprint="", uses_incomplete=True))
    for limit in (2, 3):
        config = with_values(offline(), data={"languages": ("en",), "limit": limit}, sft={"source": "translated"})
        assert len(translated(config, work_dir(tmp_path))[1]) == limit


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Work directory of `pbrl dpo` on sampled responses."""
    workdir = tmp_path_factory.mktemp("offline") / "dpo"
    dpo.main(offline(), str(workdir))
    return workdir


def test_dpo_samples_ranks_and_trains(sampled):
    """Four groups of four; the policy moves; a second start reads the file and is at its end already."""
    groups = read_groups(str(sampled / FILE))
    assert len(groups) == 4 and all(len(group.rewards) == 4 for group in groups)
    rows = read_json_lines(sampled / "metrics.jsonl")
    assert rows[-1]["step"] == 3 and rows[-1]["rewards/margins"] != 0
    written = (sampled / FILE).stat().st_mtime_ns
    dpo.main(offline(), str(sampled))
    assert (sampled / FILE).stat().st_mtime_ns == written
    load_policy(str(sampled))


def test_other_prompts_are_sampled_anew(sampled, capsys):
    """What is drawn, and in which form, belongs to the responses that a work directory keeps; defaults are not named,
    as in older versions."""
    experiment = build_experiment(offline(), work_dir(sampled))
    assert "references (dataset): no reward reads them" in capsys.readouterr().out
    build_experiment(with_values(offline(), reward={"functions": ("cosine",)}), work_dir(sampled))
    assert "references (dataset): 4 of 4 kept" in capsys.readouterr().out, "what the filter dropped is said"
    kept = origin_of(experiment, 4)
    assert kept == (sampled / f"{FILE}.origin").read_text()
    for changes in (
        {"data": {"prompt_style": "base"}}, {"data": {"english_share": 0.5}}, {"train": {"prompts_per_step": 2}},
    ):  # fmt: skip
        assert origin_of(experiment._replace(config=with_values(experiment.config, **changes)), 4) != kept
    usual = with_values(experiment.config, data={"english_share": 0.125}, train={"prompts_per_step": 32})
    assert len(json.loads(origin_of(experiment._replace(config=usual), 4))) == 6


def test_dpo_refuses_the_tokens_of_another_tokenizer(sampled, tmp_path):
    """SFT takes the text alone."""
    groups = read_groups(str(sampled / FILE))
    refuse_other_tokens(groups, build_experiment(offline(), work_dir(sampled)).policy.tokenizer, "x")
    with pytest.raises(DataError, match="x, line 1: the tokens of .* are not those of this policy's tokenizer"):
        refuse_other_tokens(groups, hf_tokenizer(), "x")
    far = groups[0]._replace(tokens=[[2**31], *groups[0].tokens[1:]])
    file = tmp_path / "scored.jsonl"
    file.write_text(json.dumps(far._asdict()) + "\n")
    with pytest.raises(DataError, match="line 1: the tokens of"):
        dpo.main(with_values(offline(), dpo={"path": str(file)}), str(tmp_path / "w"))


def test_sft_learns_the_best_of_another_runs_responses(sampled, tmp_path, capsys):
    """In packed streams, as adapters, from the file that `pbrl dpo` has left."""
    config = offline(lora={"rank": 2})
    config = with_values(
        config, sft={"source": "samples", "path": str(sampled / FILE)}, rollout={"max_completion_length": 24}
    )
    sft.main(config, str(tmp_path / "sft"))
    assert "4 of 4 groups have a response with a reward of 0.01 or more" in capsys.readouterr().out
    assert load_policy(str(tmp_path / "sft")).params["layers"].keys() == policy().params["layers"].keys()
