"""Settings of evaluation during training; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    source: str = operational("")
    """Data source of the evaluation; empty: the training's."""
    path: str = operational("")
    """As data.path; where no source is named, empty is the training's."""
    columns: tuple[str, ...] = operational(())
    """As data.columns; where no source is named, empty are the training's."""
    split: str = operational("test")
    """Split of the evaluation source."""
    training_rows: bool = operational(False)
    """Allow evaluation problems that are trained on; otherwise they are an error."""
    languages: tuple[str, ...] = operational(())
    """Languages of the evaluation; empty: data.languages."""
    limit: int = operational(0, at_least=0)
    """Rows per language; 0: all."""
    batch_size: int = operational(256, at_least=1)
    """Prompts decoded at a time."""
    max_prompt_length: int = operational(0, at_least=0)
    """Longest evaluation prompt; 0: rollout.max_prompt_length."""
    contamination: tuple[str, ...] = operational(())
    """Benchmarks whose problems are searched for in the training prompts and references before the first step; `all`:
    every benchmark that can be loaded. The result is W/contamination.json."""
    overlap_ngram: int = operational(13, at_least=1, only_with=("contamination",))
    """Consecutive words (characters in Chinese, Japanese and Thai) that count as an overlap."""
    max_overlap: float = operational(1.0, at_least=0, at_most=1, only_with=("contamination",))
    """Largest share of a benchmark's problems that may overlap with the training text; more is refused."""
