"""Settings of evaluation during training; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation during the training."""

    source: str = operational("")
    """Data source of the evaluation; empty: the training's."""
    path: str = operational("")
    """As data.path; where no source is named, empty is the training's."""
    columns: tuple[str, ...] = operational(())
    """As data.columns; where no source is named, empty are the training's."""
    split: str = operational("test")
    """Split of the evaluation source."""
    training_rows: bool = operational(False)
    """Evaluate on problems that are trained on, too; otherwise they are an error."""
    languages: tuple[str, ...] = operational(())
    """Languages evaluated; empty: those of data.languages."""
    limit: int = operational(0, at_least=0)
    """Rows per language; 0: all."""
    batch_size: int = operational(256, at_least=1)
    """Prompts decoded at a time."""
    max_prompt_length: int = operational(0, at_least=0)
    """Longest evaluation prompt; 0: rollout.max_prompt_length."""
    contamination: tuple[str, ...] = operational(())
    """Benchmarks whose problems are looked for in the training prompts and references before the first step; `all`
    stands for every one that can be loaded. The result is W/contamination.json."""
    overlap_ngram: int = operational(13, at_least=1, only_with=("contamination",))
    """Words in a row (characters in Chinese, Japanese and Thai) that count as the same text."""
    max_overlap: float = operational(1.0, at_least=0, at_most=1, only_with=("contamination",))
    """Share of a benchmark's problems that may be in the training text; more refuses to train."""
