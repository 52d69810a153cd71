"""Records that are passed between packages of pbrl_jax, and the letters of array axes.

Names of local arrays end in these letters; public signatures have them as jaxtyping strings:

  P prompts            G samples per prompt      B = P * G rows
  R response tokens    T prompt + response       V vocabulary
  S encoder tokens     E embedding width         L tokens of a packed row
  D width              H query heads             K key/value heads
  C head channels      F feed-forward width      N layers
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

#: An array on the devices or on the host.
AnyArray = Array | np.ndarray


class Reference(NamedTuple):
    """An English reference response, in the two parts that rewards compare."""

    reasoning: str
    answer: str

    @property
    def text(self) -> str:
        """The whole response."""
        return f"{self.reasoning} {self.answer}".strip()


Question = str | tuple[tuple[str, str], ...]
"""What a policy is asked: a text, or the turns (role, content) of a conversation that ends with the user's."""


class Prompt(NamedTuple):
    """One row of a data set: plain strings, not tokenised.

    `id` is a stable 32-bit integer (the row's index in its source), so that sampling keys and cached references do
    not depend on batch layout. `answer` is the gold answer if known; only rewards whose documentation says so read it.
    """

    id: int
    language: str
    question: str
    question_en: str
    answer: str | None = None
    reference: Reference | None = None
    #: Further references, if an expert wrote several.
    more_references: tuple[Reference, ...] = ()
    #: Further (name, value) columns of the data, for reward functions that have a parameter of that name.
    columns: tuple[tuple[str, Any], ...] = ()
    #: The turns (role, content) of a row that is a conversation; `question` is the text of the last one, the user's.
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def asked(self) -> Question:
        """The conversation where the row is one, else the question."""
        return self.turns or self.question

    @property
    def references(self) -> tuple[Reference, ...]:
        """All references, the first one first."""
        return () if self.reference is None else (self.reference, *self.more_references)


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are all arrays or trees of arrays."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


def on_host(record: type[T], *fields: Any) -> T:
    """A record of NumPy arrays that is later copied to the devices; for type checkers."""
    return record(*fields)


@pytree
class PromptBatch:
    """P prompts, right-padded. `row_ids_P` are the stable prompt ids from which sampling keys derive."""

    tokens_PT: Int[Array, "P T"]
    lengths_P: Int[Array, "P"]
    row_ids_P: Int[Array, "P"]


@pytree
class SamplingParams:
    """Sampling settings as arrays, so that changing a value does not recompile.

    `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 are off; `eos_ids` is padded with -1.
    """

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    top_k: Int[Array, ""]
    eos_ids: Int[Array, "eos"]


@pytree
class Rollout:
    """G samples of each of P prompts, row b = p * G + g.

    `lengths_B` counts the sampled tokens, the end-of-sequence token included; `logp_BR` holds the log-probs of the
    sampled tokens under the tempered, untruncated distribution (0 past the length); `truncated_B` marks rows that
    reached the limit without an end of sequence.
    """

    tokens_BR: Int[Array, "B R"]
    lengths_B: Int[Array, "B"]
    logp_BR: Float[Array, "B R"]
    truncated_B: Bool[Array, "B"]


@pytree
class Scores:
    """Rewards of B responses.

    A row with `valid_B` false has no score and is excluded from every statistic and from the loss. It counts as failed
    if `applies_B` is true; otherwise the reward does not apply to it. `applies_B` None: the reward applies to every
    row. `parts` are named components for the logs.
    """

    value_B: Float[Array, "B"]
    valid_B: Bool[Array, "B"]
    parts: dict[str, Float[Array, "B"]]
    applies_B: Bool[Array, "B"] | None = None

    @property
    def failed_B(self) -> AnyArray:
        """Rows that the reward should have scored but could not."""
        return ~self.valid_B if self.applies_B is None else ~self.valid_B & self.applies_B


@pytree
class TrainBatch:
    """One rollout batch, ready for the update.

    `rewards_BF` are the rewards of F functions, NaN where a function could not score a row; given only if they are
    scaled before they are summed. `value_BR` are a critic's values at sampling time, if there is a critic.
    `old_logp_BR` are the trainer's log-probs under the parameters that sampled, where `programs.keeps_logp` says so;
    None: the log-probs of the update's own forward pass are used.
    """

    prompts: PromptBatch
    rollout: Rollout
    reward_B: Float[Array, "B"]
    valid_B: Bool[Array, "B"]
    rewards_BF: Float[Array, "B F"] | None = None
    value_BR: Float[Array, "B R"] | None = None
    old_logp_BR: Float[Array, "B R"] | None = None

    @property
    def sampled_BR(self) -> Bool[Array, "B R"]:
        """Sampled tokens of valid rows."""
        R = self.rollout.tokens_BR.shape[1]
        return (jnp.arange(R)[None] < self.rollout.lengths_B[:, None]) & self.valid_B[:, None]


#: Metric of an update: whether parameters and moments are finite after it. It is not logged.
STATE_FINITE = "state_finite"


@pytree
class TrainState:
    """Everything that an update changes.

    `step` counts attempted optimizer steps, `skipped` those skipped because a gradient was not finite, `empty` those
    without a token in the loss. `beta` is the KL weight of the next step if it adapts, None if it is constant. `critic`
    holds parameters and moments of a value head, None for algorithms without one.
    """

    params: Any
    opt_state: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    beta: Float[Array, ""] | None = None
    critic: Any = None
    empty: Int[Array, ""] = field(default_factory=lambda: jnp.int32(0))
