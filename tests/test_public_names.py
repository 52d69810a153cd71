"""The names a user imports: all there, documented as they are, and cheap until they are used."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import pbrl_jax

SIGNATURE = re.compile(r"^  (\w+)\(([^()]*(?:\(\)[^()]*)*)\)", re.MULTILINE)
DOCUMENTED = {name: " ".join(inside.split()) for name, inside in SIGNATURE.findall(pbrl_jax.__doc__)}


@pytest.mark.parametrize("name", sorted(pbrl_jax.NAMES))
def test_each_name_is_the_one_of_its_module(name):
    module = importlib.import_module(f"pbrl_jax.{pbrl_jax.NAMES[name]}")
    value = getattr(pbrl_jax, name)
    assert value is getattr(module, name)
    assert value.__module__ == module.__name__, "listed under a module that only imports it"
    assert value.__doc__


def test_the_names_of_the_contract_are_there():
    contract = {
        "load_policy", "load_encoder", "cosine_reward", "group_advantages", "policy_loss", "generate", "make_update",
        "make_fused_step", "PivotStore", "extract_answer", "identify_language", "Config", "with_values", "Policy",
        "Encoder",
    }  # fmt: skip
    assert contract <= set(pbrl_jax.__all__) and contract <= set(dir(pbrl_jax))


@pytest.mark.parametrize("name", sorted(name for name in pbrl_jax.NAMES if name.islower()))
def test_each_function_is_documented_with_its_signature(name):
    found = ", ".join(
        f"{'**' if p.kind is p.VAR_KEYWORD else ''}{p.name}" + ("" if p.default is p.empty else f"={default(p)}")
        for p in inspect.signature(getattr(pbrl_jax, name)).parameters.values()
    )
    assert DOCUMENTED[name].replace("*, ", "") == found
    kinds = [p.kind for p in inspect.signature(getattr(pbrl_jax, name)).parameters.values()]
    before_star = DOCUMENTED[name].split("*, ")[0] if "*, " in DOCUMENTED[name] else None
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        assert before_star.count(",") == kinds.index(inspect.Parameter.KEYWORD_ONLY), "the star is elsewhere"
    else:
        assert before_star is None


def default(parameter: inspect.Parameter) -> str:
    """A default as the docstring writes it."""
    value = parameter.default
    return f"{type(value).__name__}()" if type(value).__module__.startswith("pbrl_jax") else repr(value)


def test_the_import_loads_nothing():
    code = (
        "import sys, pbrl_jax; heavy = {'jax', 'numpy', 'transformers', 'tensorflow', 'flax'} & set(sys.modules); "
        "assert not heavy, heavy; pbrl_jax.extract_answer; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=inspect.getfile(pbrl_jax).rsplit("/", 2)[0])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_model"):
        pbrl_jax.load_model  # noqa: B018
    with pytest.raises(ImportError, match="load_model"):
        exec("from pbrl_jax import load_model", {})
