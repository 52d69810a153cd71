"""Odd values of every field, from experiment files, saved configurations and the command line: taken or refused in one
message, never a traceback; what is taken can be saved and read again, so that the run can be resumed."""

import dataclasses
import json

import pytest
from source_tree import ROOT

from pbrl_jax import Config, with_values
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.core.errors import ConfigError, PbrlError
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.config_file import load_config, override

ODD = (None, "8\ud800", -1, True, 5e-324, float("nan"), 10**400, ["sw"], ("", 8), object())
ODD_JSON = (None, "\0", -1, 1e308, float("nan"), 10**400, [], [[]], {"a": 1})
WORDS = ("x", "nan", "1e400", "9" * 5000, "é\ud800", "\0", "--x")
FIELDS = [
    (part.name, field.name)
    for part in dataclasses.fields(Config)
    for field in dataclasses.fields(getattr(Config(), part.name))
]


def taken(load, said: list[str]):
    """The config that `load` gives, checked as a run's start does it; None where it is refused."""
    try:
        config = load()
        check_start(config, 1)
    except PbrlError as error:
        said.append(str(error))
        return None
    return config


@pytest.fixture(scope="module")
def base():
    return load_config(str(ROOT / "configs" / "tiny_cpu.py"))


def test_of_an_experiment_file(base, tmp_path):
    file, said, kept = tmp_path / "odd.py", [], 0
    file.write_text("import json\ndef get_config():\n    return json.odd_config\n")
    try:
        for section, field in FIELDS:
            for value in ODD:
                json.odd_config = with_values(base, **{section: {field: value}})
                config = taken(lambda: load_config(str(file)), said)
                if config is not None:
                    kept += 1
                    assert from_json(to_json(config), type(config)) == config, (section, field, value)
        for section in dataclasses.fields(base):
            for value in (None, {}, 3, base, object):
                json.odd_config = dataclasses.replace(base, **{section.name: value})
                assert taken(lambda: load_config(str(file)), said) is None, (section.name, value)
    finally:
        del json.odd_config
    assert kept < 0.08 * len(FIELDS) * len(ODD) and max(map(len, said)) < 1000


def test_of_a_saved_configuration(base):
    tree, said = json.loads(to_json(base)), []
    for section, field in FIELDS:
        before = tree[section][field]
        for value in ODD_JSON:
            tree[section][field] = value
            taken(lambda: from_json(json.dumps(tree), type(base)), said)
        tree[section][field] = before
    assert len(said) > 0.8 * len(FIELDS) * len(ODD_JSON)


@pytest.mark.parametrize("name", ["algo.num-generations", "algo.beta"])
def test_of_the_command_line(base, name, capsys):
    for word in WORDS:
        try:
            taken(lambda word=word: override(base, [f"--{name}", word], "pbrl train"), [])
        except SystemExit as error:
            assert error.code, word


@pytest.mark.parametrize(
    "value, message",
    [
        ({"algo": {"num_generations": "8"}}, "Found '8' .str. for algo.num_generations|\"8\" .str. for algo.num_gen"),
        ({"data": {"languages": ["sw"]}}, r"Found \['sw'\] \(list\) for data.languages, expected \('sw',\)"),
        ({"train": {"max_steps": 2**31}}, "train.max_steps has 32 bits; expected an integer of at most 2147483647"),
        ({"rollout": {"temperature": 5e-324}}, r"rollout.temperature is 5e-324; expected 0, or .* \(float32\)"),
        ({"data": {"path": "a\0b"}}, r"data.path is 'a\\x00b'; expected text without the control character '\\x00'"),
    ],
)
def test_messages(base, value, message, tmp_path, monkeypatch):
    file = tmp_path / "odd.py"
    file.write_text("import json\ndef get_config():\n    return json.odd_config\n")
    monkeypatch.setattr(json, "odd_config", with_values(base, **value), raising=False)
    with pytest.raises(ConfigError, match=message):
        check_start(load_config(str(file)), 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "not JSON"),
        ('{"algo": {"beta": %s}}' % ("9" * 5000), "not JSON"),
        ('{"version": [1], "algo": {}}', r"version is \[1\]; expected one such as '0"),
        ('{"version": "new", "algo": {}}', "version is 'new'; expected"),
        ("NaN", "expected a JSON object"),
    ],
)
def test_a_damaged_saved_configuration(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(text)


def test_files_that_are_no_text_or_leave(tmp_path):
    for name, content in (("a.json", b"\xff\xfe"), ("a.py", b"x = '\xff'"), ("b.py", b"import sys; sys.exit(0)")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            load_config(str(tmp_path / name))
