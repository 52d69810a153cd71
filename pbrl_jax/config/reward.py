"""Settings of the reward; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class RewardConfig:
    functions: tuple[str, ...] = identity(("cosine",))
    """Names in pbrl_jax.rewards.REWARDS, or import paths `package.module:function` with TRL's signature."""
    reward_weights: tuple[float, ...] = identity((1.0,))
    """One weight per function; 0 only logs it."""
    answer_weight: float = identity(0.5)
    """Alpha of the hybrid: alpha * answer part + (1 - alpha) * reasoning part."""  # ASSUMED: not stated
    parts: str = identity("split")
    """What is scored: split (answer and reasoning apart), whole (the whole response), or only one part, reasoning or
    answer. With split, `comet` scores the answer, `alignment` the reasoning, and `hybrid` gives each of its two
    functions its own part."""
    language_gate: str = identity("hard")
    """What finds a response in another language: hard (identification, reasoning and answer apart; such a response
    gets `rejected_value`), tokens (the same, but every token must belong to the language; for closed vocabularies),
    penalty (`gate_penalty` is taken from its value), soft (its value is moved towards `rejected_value` by the share of
    letters in other languages), scheduled (soft, closing over `gate_schedule_steps`), off."""
    rejected_value: float = identity(-0.2)
    """Value of a response in the wrong language."""  # ASSUMED: the paper names no language term
    gate_share: float = identity(0.8)
    """Share of a part's letters that must be in the prompt's language for it to count as right."""  # ASSUMED
    gate_penalty: float = identity(0.5)
    """language_gate penalty: taken from the value of a response in another language."""  # ASSUMED
    gate_schedule_steps: int = identity(100)
    """language_gate scheduled: steps over which the gate closes, from no effect to that of soft."""  # ASSUMED
    similarity: str = identity("raw")
    """Cosine to reward: raw, affine ((1 + cos) / 2), floor (see `similarity_floor`), or calibrated (baseline of
    mismatched pairs per language, see `calibration`)."""  # ASSUMED: not stated
    similarity_floor: float = identity(0.0)
    """With similarity floor: the cosine that earns nothing; above it the reward is (cos - floor) / (1 - floor)."""
    calibration: str = identity("")
    """With similarity calibrated: the calibration.json that `pbrl calibrate` wrote."""
    references: str = identity("max")
    """Where a prompt has several references: the max or the mean of the similarities."""  # ASSUMED: not stated
    hybrid_form: str = identity("convex")
    """How answer part a and reasoning part r become one value: convex (alpha * a + (1 - alpha) * r), product
    (a^alpha * r^(1 - alpha), parts cut at 0), or gated (the same sum where a >= hybrid_gate, else alpha * a)."""
    # ASSUMED: not stated
    hybrid_gate: float = identity(0.5)
    """hybrid_form gated: the answer part from which the reasoning part counts."""  # ASSUMED
    hybrid_answer: str = identity("answer")
    """Reward `hybrid`: name in REWARDS of the answer part."""
    hybrid_reasoning: str = identity("alignment")
    """Reward `hybrid`: name in REWARDS of the reasoning part."""
    repetition_ngram: int = identity(3)
    """Reward `repetition`: length in tokens of the n-grams that are counted."""
    repetition_penalty: float = identity(-1.0)
    """Reward `repetition`: value where all n-grams are the same; at most 0 (TRL's max_penalty)."""
    overlong_length: int = identity(0)
    """Reward `overlong`: tokens at which the penalty is -1; 0: rollout.max_completion_length."""
    overlong_cache: int = identity(0)
    """Reward `overlong`: tokens below that length over which the penalty falls from 0 to -1 (DAPO's soft punish
    cache); 0: a fifth of it."""  # ASSUMED
    translator: str = identity("")
    """What translates responses into English: a folder or hub id of an M2M100 or NLLB model or of a policy, `policy`
    (the start policy, asked to translate), or `endpoint`. Rewards `translation` and `comet` with wiring reference."""
    translation_similarity: str = identity("embedding")
    """Reward `translation`: what compares a translation with the reference: embedding, chrf, bleu, rouge_l, comet."""
    # ASSUMED: not stated
    comet: str = identity("")
    """Folder or hub id of a COMET model, for example Unbabel/wmt22-comet-da."""
    comet_wiring: str = identity("reference")
    """Reward `comet`, r the response and e the English reference: reference (src r, mt r translated, ref e), quality
    (src e, mt r; models without references), direct (src r, mt r, ref e)."""  # ASSUMED: not stated
    implicit_form: str = identity("reference")
    """Reward `implicit`, log-likelihoods per token behind the English question: reference (by how much the response
    makes the reference likelier, to the start policy) or response (by how much `implicit_policy` finds the response
    likelier than the start policy does)."""  # ASSUMED
    implicit_policy: str = identity("")
    """Reward `implicit` of form response: folder of the policy whose taste in English is asked for."""
    judge_opponents: int = identity(2)
    """Reward `judge`: other samples of the prompt that each response is compared with."""  # ASSUMED
    final_weights: tuple[float, ...] = identity(())
    """Curriculum: the weights that reward_weights move to, for example from the pivot's reward to that of verifiable
    answers; empty: they stay."""
    curriculum_start: int = identity(0)
    """Optimizer steps before the weights begin to move."""
    curriculum_steps: int = identity(100)
    """Steps over which they move."""  # ASSUMED: the paper names a curriculum as future work
    curriculum_shape: str = identity("linear")
    """How they move: linear or cosine."""
    timeout: float = operational(600.0)
    """Seconds a reward function of the user's own may take for one batch; then its rows are invalid. 0: no limit."""
