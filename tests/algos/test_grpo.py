"""The GRPO loss against a plain loop, its additivity, and garbage under the mask."""

import inspect
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import AlgoConfig
from pbrl_jax.algos import ALGORITHMS, grpo
from pbrl_jax.algos.advantages import ScoredGroups
from pbrl_jax.algos.losses import LOSSES
from pbrl_jax.core.errors import ConfigError

OLD = np.log(np.array([[0.5, 0.2, 0.4], [0.3, 0.6, 0.5]]))
RATIO = np.array([[1.5, 0.9, 0.5], [0.6, 1.1, 2.0]])  # clipped high in row 0, low in row 1
NEW = OLD + np.log(RATIO)
REF = np.log(np.array([[0.6, 0.1, 0.4], [0.3, 0.3, 0.9]]))
ADV = np.array([2.0, -1.0])
MASK = np.array([[True, True, True], [True, True, False]])
CONFIG = AlgoConfig(beta=0.1, epsilon=0.2, epsilon_high=0.28)
#: Every loss type and level, with what each needs.
OBJECTIVES = {
    **{loss_type: {"loss_type": loss_type} for loss_type in LOSSES},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.05},
    "delta": {"delta": 1.5},
    "gspo": {"importance_sampling_level": "sequence"},
    "gspo_token": {"importance_sampling_level": "sequence_token"},
    "cispo_sequence": {"loss_type": "cispo", "epsilon_high": 1.05, "importance_sampling_level": "sequence"},
    "entropy": {"entropy_coef": 0.01},
    "kl_in_reward": {"kl_in": "reward"},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def arrays(new=NEW, old=OLD, adv=ADV, mask=MASK, ref=REF):
    return [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in (new, old, adv, mask, ref)]


def loss_of(config, new=NEW, old=OLD, adv=ADV, mask=MASK, ref=REF, **settings):
    new, old, adv, mask, ref = arrays(new, old, adv, mask, ref)
    if config.entropy_coef:
        settings["entropy_BR"] = -3 * new
    return grpo.policy_loss(new, old, adv, mask, config=config, ref_logp_BR=ref, **settings)


CLIP_METRICS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def surrogate(config, logp, ratio, adv):
    """(loss, indicators) of one token, by the definition of its loss_type."""
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    if config.loss_type == "gpg":
        return -adv * logp, {}
    if config.loss_type == "cispo":
        cut = {"cispo_clip_ratio": ratio > config.epsilon_high and adv > 0}
        return -min(ratio, config.epsilon_high) * adv * logp, cut
    if config.loss_type == "sapo":
        t = config.sapo_temperature_pos if adv > 0 else config.sapo_temperature_neg
        return -adv * 4 / t / (1 + math.exp(-t * (ratio - 1))), {}
    low_cut, high_cut = ratio < 1 - config.epsilon and adv < 0, ratio > 1 + high and adv > 0
    clipped = min(max(ratio, 1 - config.epsilon), 1 + high)
    if config.delta is not None:
        ratio = min(ratio, config.delta)
    cuts = (low_cut, high_cut, low_cut or high_cut)
    return -min(ratio * adv, clipped * adv), dict(zip(CLIP_METRICS, cuts, strict=True))


def loop(config, length):
    """The definition, one token at a time: (sum, count, metrics)."""
    row_means, tokens, token_sum, metrics = [], 0, 0.0, {"kl": 0.0}
    for b in range(NEW.shape[0]):
        row = []
        for t in range(NEW.shape[1]):
            if not MASK[b, t]:
                continue
            ratio = math.exp(NEW[b, t] - OLD[b, t])
            d = NEW[b, t] - REF[b, t]
            kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[config.kl_estimator]
            kl *= ratio if config.use_bias_correction_kl else 1
            loss, indicators = surrogate(config, NEW[b, t], ratio, ADV[b])
            row.append(loss + config.beta * kl)
            for name, value in {"kl": kl, **indicators}.items():
                metrics[name] = metrics.get(name, 0.0) + value
        row_means.append(sum(row) / len(row))
        tokens, token_sum = tokens + len(row), token_sum + sum(row)
    total, count = {
        "grpo": (sum(row_means), len(row_means)),
        "sapo": (sum(row_means), len(row_means)),
        "dr_grpo": (token_sum, len(row_means) * length),
    }.get(config.loss_type, (token_sum, tokens))
    return total, count, {name: (value, tokens) for name, value in metrics.items()}


#: The KL is added to every loss in the same place: all its forms with one loss, two of them with each other one.
FORMS = [("grpo", estimator, corrected) for estimator in ("k1", "k2", "k3") for corrected in (False, True)]
FORMS += [(other, *form) for other in LOSSES if other != "grpo" for form in (("k1", False), ("k3", True))]


@pytest.mark.parametrize("loss_type, estimator, corrected", FORMS)
def test_equals_the_loop(loss_type, estimator, corrected):
    settings = {"kl_estimator": estimator, "use_bias_correction_kl": corrected}
    config = replace(CONFIG, **OBJECTIVES[loss_type], **settings)
    total, count, metrics = loss_of(config, max_completion_length=7)
    expected_total, expected_count, expected_metrics = loop(config, 7)
    assert abs(expected_total) > 0.1
    np.testing.assert_allclose(total, expected_total, rtol=1e-12)
    assert count == expected_count
    assert set(metrics) == set(expected_metrics)
    for name, pair in expected_metrics.items():
        assert pair[0] != 0, name
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-12, err_msg=name)


def test_gradient_by_hand():
    # d/dlogp of -ratio * adv is -ratio * adv where it is not clipped, 0 where it is (row 0 token 0, row 1 token 0).
    config = replace(CONFIG, beta=0.0, loss_type="dapo")
    grad = jax.grad(lambda new: loss_of(config, new=new)[0])(jnp.asarray(NEW))
    np.testing.assert_allclose(grad, [[0.0, -1.8, -1.0], [0.0, 1.1, 0.0]], rtol=1e-12, atol=1e-15)


def test_clip_higher_lets_a_rising_token_through():
    old, new = np.zeros((1, 1)), np.log([[1.25]])
    both = {"old": old, "new": new, "adv": np.array([1.0]), "mask": np.ones((1, 1), bool), "ref": old}
    narrow = replace(CONFIG, beta=0.0, epsilon_high=None)
    wide = replace(CONFIG, beta=0.0, epsilon_high=0.28)
    slope = {c: jax.grad(lambda new, c=c: loss_of(c, **(both | {"new": new}))[0])(new) for c in (narrow, wide)}
    assert slope[narrow] == 0
    np.testing.assert_allclose(slope[wide], [[-1.25]])
    assert loss_of(narrow, **both)[2]["clip_ratio/high_mean"] == (1, 1)
    assert loss_of(wide, **both)[2]["clip_ratio/high_mean"] == (0, 1)


def test_on_policy_the_loss_is_minus_the_advantage_and_the_gradient_the_policy_gradient():
    config = replace(CONFIG, beta=0.0)
    total, count, metrics = loss_of(config, old=NEW)
    np.testing.assert_allclose([total, count], [-(2.0 - 1.0), 2], rtol=1e-12)
    assert metrics["clip_ratio/region_mean"] == (0, 5)
    grad = jax.grad(lambda new: loss_of(config, new=new, old=jax.lax.stop_gradient(new))[0])(jnp.asarray(NEW))
    np.testing.assert_allclose(grad, [[-2 / 3] * 3, [0.5, 0.5, 0.0]], rtol=1e-12)


def test_the_kl_enters_once_with_weight_beta_and_only_where_asked():
    without = loss_of(replace(CONFIG, beta=0.0))
    once, twice = loss_of(replace(CONFIG, beta=0.5)), loss_of(replace(CONFIG, beta=1.0))
    assert once[0] - without[0] > 0.01
    np.testing.assert_allclose(twice[0] - without[0], 2 * (once[0] - without[0]), rtol=1e-12)
    np.testing.assert_allclose(without[2]["kl"], once[2]["kl"], rtol=1e-12)
    bare = grpo.policy_loss(*arrays()[:4], config=replace(CONFIG, beta=0.0))
    assert "kl" not in bare[2]
    assert bare[0] == without[0]


B, R = 6, 4


def random_batch(seed, rows=B):
    rng = np.random.default_rng(seed)
    old, new, ref = -rng.exponential(1.0, (3, rows, R))
    lengths = rng.integers(0, R + 1, rows)  # length 0 is an invalid row
    return {"old": old, "new": new, "ref": ref, "adv": rng.normal(size=rows), "mask": np.arange(R) < lengths[:, None]}


@pytest.mark.parametrize("seed, objective", list(enumerate(sorted(OBJECTIVES))))
def test_microbatches_add_up(seed, objective):
    """Of every objective, with parts, rows without tokens and the two switches as the seed has them."""
    cuts, corrected, count_masked_rows = ({1}, {2}, {1, 3}, {3})[seed % 4], seed % 2 == 0, seed % 3 == 0
    config = replace(CONFIG, **OBJECTIVES[objective], use_bias_correction_kl=corrected)
    batch = random_batch(seed, rows=4)  # each size of a part is compiled anew

    def whole(new, start=0, stop=4):
        part = {name: x[start:stop] for name, x in batch.items()} | {"new": new[start:stop]}
        total, count, metrics = loss_of(config, **part, count_masked_rows=count_masked_rows)
        return total, (total, count, metrics)

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        new = jnp.asarray(batch["new"])
        grad, sums = jax.grad(whole, has_aux=True)(new)
        edges = [0, *sorted(cuts), 4]
        parts = [jax.grad(whole, has_aux=True)(new, *edges[i : i + 2]) for i in range(len(edges) - 1)]
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), added, (grad, sums))
    assert not batch["mask"].any() or sums[0] != 0


@pytest.mark.parametrize(
    "objective, estimator", [*((name, "k3") for name in OBJECTIVES), ("grpo", "k1"), ("grpo", "k2")]
)
def test_garbage_under_the_mask_reaches_nothing(objective, estimator):
    config = replace(CONFIG, **OBJECTIVES[objective], kl_estimator=estimator, use_bias_correction_kl=True)
    batch = random_batch(3)
    batch["mask"][2] = False
    mask, rows = batch["mask"], batch["mask"].any(axis=1)

    def loss(new, batch):
        total, count, metrics = loss_of(config, **(batch | {"new": new}))
        return total, (count, metrics)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    clean = step(batch["new"], batch)
    assert clean[0][0] != 0 and np.abs(clean[1]).max() > 0.01
    for garbage in (1e3, -1e3, np.nan, np.inf, -np.inf):
        spoiled = batch | {name: np.where(mask, batch[name], garbage) for name in ("old", "ref")}
        spoiled["adv"] = np.where(rows, batch["adv"], garbage)
        dirty = step(np.where(mask, batch["new"], -garbage), spoiled)
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)
        assert (np.asarray(dirty[1])[~mask] == 0).all()


def test_garbage_is_replaced_before_any_arithmetic_so_that_jax_debug_nans_stays_quiet():
    batch = random_batch(3)
    mask = batch["mask"]
    spoiled = batch | {name: np.where(mask, batch[name], np.nan) for name in ("old", "ref", "new")}
    spoiled["adv"] = np.where(mask.any(axis=1), batch["adv"], np.nan)
    spoiled = {name: jnp.asarray(x) for name, x in spoiled.items()}
    assert jnp.isnan(spoiled["adv"]).any() and jnp.isnan(spoiled["new"]).any()
    with jax.debug_nans(True):
        total, _, _ = loss_of(CONFIG, **spoiled)
        grad = jax.grad(lambda new: loss_of(CONFIG, **(spoiled | {"new": new}))[0])(spoiled["new"])
    assert total != 0 and np.abs(grad).max() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_extreme_valid_log_ratios_stay_finite_in_float32(objective):
    """Ratios of exp(+-100) to the sampler and to the reference, under advantages of both signs."""
    config = replace(CONFIG, **OBJECTIVES[objective])
    with jax.enable_x64(False):
        new = jnp.asarray([[-0.1, -100.0], [-0.1, -100.0]], jnp.float32)
        old = ref = jnp.flip(new, axis=1)
        adv, mask = jnp.asarray([-1.0, 1.0]), jnp.ones((2, 2), bool)
        value, grad = jax.value_and_grad(lambda new: loss_of(config, new, old, adv, mask, ref)[0])(new)
        assert value.dtype == jnp.float32
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_a_token_advantage_equals_the_rows_where_it_is_the_same():
    config = replace(CONFIG, delta=1.4)
    whole, apart = loss_of(config), loss_of(config, adv=np.where(MASK, ADV[:, None], np.nan))
    jax.tree.map(np.testing.assert_array_equal, apart, whole)


def test_gspo_token_has_the_gradient_of_gspo_and_lets_tokens_differ():
    gspo, token = (replace(CONFIG, beta=0.0, **OBJECTIVES[name]) for name in ("gspo", "gspo_token"))
    grads = [jax.grad(lambda new, c=c: loss_of(c, new=new)[0])(jnp.asarray(NEW)) for c in (gspo, token)]
    assert np.abs(grads[0]).max() > 0.1
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-12)
    adv = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    moved = jax.grad(lambda new: loss_of(token, new=new, adv=adv)[0])(jnp.asarray(NEW))
    assert moved[0, 0] != 0 and (np.asarray(moved).ravel()[1:] == 0).all()


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens():
    """Row 0: (1.5 * 0.9 * 0.5)^(1/3) = 0.877...; row 1: (0.6 * 1.1)^(1/2) = 0.812..., its masked token left out."""
    config = replace(CONFIG, beta=0.0, epsilon=0.5, epsilon_high=None, **OBJECTIVES["gspo"])
    total, count, metrics = loss_of(config)
    np.testing.assert_allclose(total, -2 * 0.675 ** (1 / 3) + 0.66**0.5, rtol=1e-12)
    assert count == 2 and metrics["clip_ratio/region_mean"] == (0, 2)
    tight = loss_of(replace(config, epsilon=0.15))[2]
    assert tight["clip_ratio/low_mean"] == (1, 2) and tight["clip_ratio/high_mean"] == (0, 2)


def test_delta_bounds_what_a_bad_token_weighs():
    """Ratio 4 with advantage -1: weight 4 without delta, 1.5 and no gradient with it; of advantage 1 clipped."""
    old, new, one = np.zeros((1, 1)), np.log([[4.0]]), np.ones((1, 1), bool)
    both = {"old": old, "mask": one, "ref": old}
    for delta, adv, expected, slope in ((None, -1.0, 4.0, 4.0), (1.5, -1.0, 1.5, 0.0), (1.5, 1.0, -1.28, 0.0)):
        config = replace(CONFIG, beta=0.0, delta=delta)
        value, grad = jax.value_and_grad(
            lambda new, c=config, a=adv: loss_of(c, new=new, adv=np.array([a]), **both)[0]
        )(jnp.asarray(new))
        np.testing.assert_allclose([value, grad[0, 0]], [expected, slope], rtol=1e-12)


def test_the_entropy_bonus_lowers_the_loss_by_its_mean_and_pulls_on_the_entropy():
    config = replace(CONFIG, beta=0.0, loss_type="dapo")
    entropy = np.where(MASK, [[0.5, 1.0, 1.5], [2.0, 1.0, 9.0]], np.nan)

    def loss(entropy, config):
        total, count, _ = grpo.policy_loss(*arrays()[:4], config=config, entropy_BR=entropy)
        return total / count

    plain, bonus = (loss(jnp.asarray(entropy), replace(config, entropy_coef=c)) for c in (0.0, 0.1))
    np.testing.assert_allclose(plain - bonus, 0.1 * 6.0 / 5, rtol=1e-12)
    pull = jax.grad(loss)(jnp.asarray(np.nan_to_num(entropy)), replace(config, entropy_coef=0.1))
    np.testing.assert_allclose(pull, np.where(MASK, -0.1 / 5, 0), rtol=1e-12)
    with pytest.raises(ConfigError, match=r"algo.entropy_coef is 0.1.*--algo.entropy-coef 0"):
        loss(None, replace(config, entropy_coef=0.1))


def test_a_beta_of_the_step_stands_in_for_the_configs():
    once = loss_of(replace(CONFIG, beta=0.3))
    given = loss_of(CONFIG, beta=jnp.asarray(0.3))
    np.testing.assert_allclose(given[0], once[0], rtol=1e-12)
    in_reward = loss_of(replace(CONFIG, kl_in="reward"))
    assert in_reward[0] == loss_of(replace(CONFIG, beta=0.0))[0] and in_reward[2]["kl"] == once[2]["kl"]


def test_a_row_that_left_the_loss_changes_no_other():
    for objective in OBJECTIVES.values():
        config = replace(CONFIG, **objective)
        total, count, _ = loss_of(config)
        with_row = {
            name: np.concatenate([x, np.full_like(x[:1], np.nan if x.dtype != bool else False)])
            for name, x in {"new": NEW, "old": OLD, "adv": ADV, "mask": MASK, "ref": REF}.items()
        }
        again, count_again, _ = loss_of(config, **with_row)
        np.testing.assert_allclose([again, count_again], [total, count], rtol=1e-12)


def test_half_precision_log_probs_are_computed_in_float32():
    with jax.enable_x64(False):
        new, old, adv, mask, ref = [jnp.asarray(x, x.dtype if x.dtype == bool else jnp.bfloat16) for x in (
            NEW, OLD, ADV, MASK, REF)]  # fmt: skip
        total, count, _ = grpo.policy_loss(new, old, adv, mask, config=CONFIG, ref_logp_BR=ref)
        wide = [x if x.dtype == bool else x.astype(jnp.float32) for x in (new, old, adv, mask, ref)]
        expected, _, _ = grpo.policy_loss(*wide[:4], config=CONFIG, ref_logp_BR=wide[4])
        assert total.dtype == count.dtype == jnp.float32
        assert total == expected


def test_metrics_carry_no_gradient():
    def kl(new):
        return loss_of(CONFIG, new=new)[2]["kl"][0]

    assert kl(jnp.asarray(NEW)) > 0
    assert (jax.grad(kl)(jnp.asarray(NEW)) == 0).all()


def test_bad_input_is_refused_with_what_to_do():
    policy_loss = inspect.unwrap(grpo.policy_loss)  # as a user has it: shapes are type-checked in tests only
    new, old, adv, mask, ref = arrays()
    with pytest.raises(ConfigError, match=r"algo.beta is 0.1.*ref_logp_BR is None.*--algo.beta 0"):
        policy_loss(new, old, adv, mask, config=CONFIG)
    with pytest.raises(ConfigError, match=r"old_logp_BR \(2, 1\).*expected one shape"):
        policy_loss(new, old[:, :1], adv, mask, config=CONFIG, ref_logp_BR=ref)
    with pytest.raises(ConfigError, match=r"adv_B \(1,\)"):
        policy_loss(new, old, adv[:1], mask, config=CONFIG, ref_logp_BR=ref)
    with pytest.raises(ConfigError, match="mask of float64; expected bool"):
        policy_loss(new, old, adv, mask.astype(float), config=CONFIG, ref_logp_BR=ref)
    with pytest.raises(ConfigError, match="'gpro'.*Did you mean 'grpo'"):
        policy_loss(new, old, adv, mask, config=replace(CONFIG, loss_type="gpro"), ref_logp_BR=ref)


def test_the_table_holds_grpo_and_its_advantages_read_the_config():
    algorithm = ALGORITHMS[AlgoConfig().name]
    assert algorithm.estimate is grpo.estimate
    reward, valid, mask = jnp.asarray([[1.0, 2.0, 6.0]]), jnp.ones((1, 3), bool), jnp.ones((3, 2), bool)
    found = {
        (scale, loo): algorithm.estimate(
            ScoredGroups(reward, valid, mask),
            None,
            config=AlgoConfig(scale_rewards=scale, leave_one_out=loo, advantage_epsilon=0.5),
        )[0]
        for scale in ("group", "none")
        for loo in (False, True)
    }
    np.testing.assert_allclose(found["none", False], [-2.0, -1.0, 3.0], rtol=1e-12)
    np.testing.assert_allclose(found["none", True], [-3.0, -1.5, 4.5], rtol=1e-12)
    np.testing.assert_allclose(found["group", False], np.array([-2.0, -1.0, 3.0]) / (np.sqrt(7) + 0.5), rtol=1e-12)
    np.testing.assert_allclose(found["group", True], np.array([-3.0, -1.5, 4.5]) / (np.sqrt(7) + 0.5), rtol=1e-12)
