import dataclasses
import json
import re
import shlex
from typing import Literal

import pytest
import tyro

from pbrl_jax import AlgoConfig, Config, LoraConfig, PivotConfig, __version__, with_values
from pbrl_jax.config.checks import check_section
from pbrl_jax.config.fields import identity
from pbrl_jax.config.older import stable_repr, with_current_names
from pbrl_jax.config.serialize import check_round_trip, command_line, from_json, identity_differences, to_json
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
        (lambda tree: tree["algo"].update(num_generations="8"), ["algo.num_generations", '"8" (str)', "expected int"]),
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


def old(change) -> str:
    """What version 0.1.0, which wrote no version, would have saved."""
    return edited(lambda tree: (tree.pop("version"), change(tree)))


def test_missing_keys_take_their_defaults_and_are_listed_once():
    notes = []
    assert from_json(old(lambda tree: (tree["algo"].pop("beta"), tree.pop("guard"))), Config, notes) == Config()
    assert notes == [
        "config.json was written by pbrl_jax 0.1.0; new settings take their defaults: algo.beta=0.001, guard."
    ]
    notes = []
    assert from_json(to_json(Config()), Config, notes) == Config() and not notes


def test_an_unknown_key_names_the_version_that_wrote_it():
    with pytest.raises(ConfigError) as caught:
        from_json(edited(lambda tree: tree.update(version="7.1", algo=tree["algo"] | {"later": 1})), Config)
    assert "'algo.later' in section 'algo', written by pbrl_jax 7.1 (this is " in str(caught.value)
    assert json.loads(to_json(Config()))["version"] == __version__


@dataclasses.dataclass(frozen=True)
class JoinedAlgo(AlgoConfig):
    momentum: float = identity(0.9)
    choice: Literal["a", "b"] = identity("a")


@dataclasses.dataclass(frozen=True)
class Joined(Config):
    algo: JoinedAlgo = JoinedAlgo()


def test_another_class_of_config():
    """Sections that gained fields: read by their types, as all others."""
    config = with_values(Joined(), algo={"momentum": 0.5, "choice": "b"})
    assert from_json(to_json(config), Joined) == config
    notes = []
    assert from_json(to_json(Config()), Joined, notes) == Joined()
    assert 'algo.momentum=0.9, algo.choice="a"' in notes[0]
    with pytest.raises(ConfigError, match=re.escape("3 (int) for algo.choice")):
        from_json(to_json(with_values(Joined(), algo={"choice": 3})), Joined)
    other = from_json(to_json(with_values(Joined(), algo={"choice": "c"})), Joined)
    with pytest.raises(ConfigError, match="algo.choice is 'c'. Known: a, b"):
        check_section("algo", other.algo)
    with pytest.raises(ConfigError, match="Unknown key 'algo.momentum'"):
        from_json(to_json(config), Config)


@pytest.mark.parametrize(("source", "name"), [("dataset", "store"), ("policy", "store"), ("file", "file")])
def test_pivot_path_is_two_fields_now(source, name, caplog):
    """In a saved file, in code, and with what was typed."""
    expected = PivotConfig(source=source, **{name: "x"})
    tree = json.loads(old(lambda tree: tree.update(pivot={"source": source, "path": "x"})))
    notes = []
    assert from_json(json.dumps(tree), Config, notes).pivot == expected
    assert f"; pivot.path is now pivot.{name}; " in notes[0]
    assert not caplog.records
    assert PivotConfig(source=source, path="x") == with_values(Config(), pivot=vars(expected) | {"path": "x"}).pivot
    assert with_values(Config(), pivot={"path": "x", "source": source}).pivot == expected
    assert with_values(with_values(Config(), pivot={"source": source}), pivot={"path": "x"}).pivot == expected
    assert {record.message for record in caplog.records} == {
        f"pivot.path is now pivot.{name}; the old name still works."
    }
    for words in (["--pivot.path", "x"], ["--pivot.path=x"]):
        typed, said = with_current_names([*words, "--pivot.source", source], {"pivot": {"source": "dataset"}})
        assert "".join(typed).replace("=", "").startswith(f"--pivot.{name}x")
        assert said == [f"--pivot.path is now --pivot.{name}"]
        assert with_current_names(words, {"pivot": {"source": source}})[0][0].startswith(f"--pivot.{name}")
    with pytest.raises(TypeError, match="pth"):
        PivotConfig(pth="x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data": {"languages": ["en", "sw"]}}, ["['en', 'sw'] (list) for data.languages", "('en', 'sw') (tuple)"]),
        ({"algo": {"num_generations": "8"}}, ["algo.num_generations", "expected int"]),
        ({"algo": {"beta": {1}}}, ["cannot be saved as JSON"]),
    ],
)
def test_a_config_that_would_not_come_back_is_refused(values, words):
    with pytest.raises(ConfigError) as caught:
        check_round_trip(with_values(Config(), **values))
    assert all(word in str(caught.value) for word in words), caught.value
    check_round_trip(with_values(Config(), algo={"beta": 1, "delta": float("nan")}))
    with pytest.raises(ConfigError, match="Section 'algo' is a dict, expected a AlgoConfig"):
        check_round_trip(dataclasses.replace(Config(), algo=dataclasses.asdict(Config().algo)))


@dataclasses.dataclass(frozen=True)
class LaterLora(LoraConfig):
    later: int = identity(0)


def test_identities_of_saved_work_do_not_change_with_new_fields():
    """As version 0.1.0 hashed them; a later field counts from when it is set."""
    assert stable_repr(LaterLora(), "LoraConfig") == repr(LoraConfig()) == stable_repr(LoraConfig(), "LoraConfig")
    changed = LaterLora(rank=2, later=3)
    assert stable_repr(changed, "LoraConfig") == repr(LoraConfig(rank=2))[:-1] + ", later=3)"


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
