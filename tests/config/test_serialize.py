import dataclasses
import json
import shlex

import pytest
import tyro

from pbrl_jax import Config, with_values
from pbrl_jax.config.serialize import command_line, from_json, identity_differences, to_json
from pbrl_jax.core.errors import ConfigError


def edited(change) -> str:
    tree = json.loads(to_json(Config()))
    change(tree)
    return json.dumps(tree)


def fields():
    return [
        (section.name, field)
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(Config(), section.name))
    ]


def test_default_round_trip():
    assert from_json(to_json(Config()), Config) == Config()


def test_round_trip_keeps_types():
    config = with_values(
        Config(),
        reward={"functions": ("cosine", "my.module:f"), "reward_weights": (0.75, 0.25)},
        algo={"epsilon_high": 0.28, "leave_one_out": True, "beta": 0.1 + 0.2},
        data={"languages": ("sw", "bn"), "columns": ()},
        encoder={"prefix": "query: é中"},
    )
    again = from_json(to_json(config), Config)
    assert again == config
    assert again.data.columns == () and type(again.data.languages) is tuple
    assert again.algo.beta == 0.30000000000000004 and again.algo.leave_one_out is True
    assert from_json(to_json(with_values(config, algo={"epsilon_high": None})), Config).algo.epsilon_high is None


def test_integer_for_float_field_becomes_float():
    config = from_json(edited(lambda tree: tree["algo"].update(beta=0, epsilon_high=1)), Config)
    assert type(config.algo.beta) is float and type(config.algo.epsilon_high) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["algo"].update(betta=1.0), ["'algo.betta'", "Did you mean 'beta'?"]),
        (lambda tree: tree.update(alga={}), ["'alga'", "Did you mean 'algo'?"]),
        (lambda tree: tree["algo"].pop("beta"), ["Missing key 'algo.beta'", "default is 0.001"]),
        (lambda tree: tree.pop("guard"), ["Missing key 'guard'"]),
        (lambda tree: tree["algo"].update(beta="0.1"), ["algo.beta", '"0.1" (str)', "expected float"]),
        (lambda tree: tree["algo"].update(beta=None), ["algo.beta", "null", "expected float"]),
        (lambda tree: tree["train"].update(max_steps=1.5), ["train.max_steps", "1.5 (float)", "expected int"]),
        (lambda tree: tree["train"].update(max_steps=True), ["train.max_steps", "true (bool)", "expected int"]),
        (lambda tree: tree["train"].update(packed=1), ["train.packed", "expected bool"]),
        (lambda tree: tree["data"].update(languages="sw"), ["data.languages", "list of str"]),
        (lambda tree: tree["data"].update(languages=["sw", 3]), ["data.languages[1]", "expected str"]),
        (lambda tree: tree["algo"].update(epsilon_high="x"), ["algo.epsilon_high", "expected float"]),
        (lambda tree: tree.update(algo=3), ["section 'algo'", "expected a JSON object"]),
    ],
)
def test_bad_json_names_the_key(change, words):
    with pytest.raises(ConfigError) as caught:
        from_json(edited(change), Config)
    for word in words:
        assert word in str(caught.value)


def test_not_json_and_repeated_keys():
    with pytest.raises(ConfigError, match="line 1 column"):
        from_json("{algo: 3}")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        from_json("[]")
    repeated = to_json(Config()).replace('"beta": 0.001', '"beta": 0.001, "beta": 0.5')
    with pytest.raises(ConfigError, match="beta more than once"):
        from_json(repeated, Config)


def test_every_field_is_identity_or_operational():
    kinds = {(section, field.name): field.metadata.get("kind") for section, field in fields()}
    assert len(kinds) > 60
    assert [name for name, kind in kinds.items() if kind not in ("identity", "operational")] == []


def another(value):
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return 0.5
    if isinstance(value, tuple):
        return (*value, *value, "x")
    return value + type(value)(1) if isinstance(value, int | float) else value + "x"


@pytest.mark.parametrize("kind", ["identity", "operational"])
def test_differences_are_the_identity_fields_and_no_others(kind):
    for section, field in fields():
        if field.metadata["kind"] != kind:
            continue
        old = getattr(getattr(Config(), section), field.name)
        changed = with_values(Config(), **{section: {field.name: another(old)}})
        expected = {f"{section}.{field.name}": (old, another(old))} if kind == "identity" else {}
        assert identity_differences(Config(), changed) == expected


def test_differences_are_saved_then_current_and_nan_equals_itself():
    saved = with_values(Config(), algo={"beta": 0.01}, data={"languages": ("sw",)})
    current = with_values(Config(), algo={"beta": 0.02}, data={"languages": ("sw", "bn")})
    assert identity_differences(saved, current) == {
        "algo.beta": (0.01, 0.02),
        "data.languages": (("sw",), ("sw", "bn")),
    }
    undefined = with_values(Config(), algo={"beta": float("nan")})
    assert identity_differences(undefined, from_json(to_json(undefined), Config)) == {}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("algo.beta", 0.01, "--algo.beta 0.01"),
        ("algo.epsilon_high", None, "--algo.epsilon_high None"),
        ("reward.functions", ("cosine", "answer"), "--reward.functions cosine answer"),
        ("data.columns", (), "--data.columns"),
        ("encoder.prefix", "", "--encoder.prefix ''"),
        ("encoder.prefix", "query: ", "--encoder.prefix 'query: '"),
        ("algo.leave_one_out", True, "--algo.leave_one_out"),
        ("algo.leave_one_out", False, "--algo.no-leave-one-out"),
    ],
)
def test_command_line_is_what_the_parser_takes(name, value, words):
    assert command_line(name, value) == words
    section, field = name.split(".")
    other = {"algo": {"leave_one_out": not value, "epsilon_high": 0.5}, "encoder": {"prefix": "other"}}
    start = with_values(Config(), data={"columns": ("a=b",)}, **other)
    parsed = tyro.cli(Config, default=start, args=shlex.split(words))
    assert getattr(getattr(parsed, section), field) == value
