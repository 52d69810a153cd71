"""`pbrl push`: the folder with its card, and what goes to the hub."""

import json
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
import yaml
from tiny_hf import hf_policy

from pbrl_jax import Config, cli, with_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.run import push
from pbrl_jax.weights.policies import load_policy, save_policy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a few files."""
    folder = tmp_path_factory.mktemp("run")
    config = with_values(Config(), policy={"source": "owner/base"}, data={"languages": ("sw", "th")})
    (folder / "config.json").write_text(to_json(config))
    (folder / "final.json").write_text(json.dumps({"step": 7, "metrics": {"eval/accuracy/sw": 0.25}}))
    save_policy(hf_policy(), str(folder / "policy"))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub's client, and its calls."""
    calls = []
    info = SimpleNamespace(card_data={"license": "apache-2.0"})
    client = SimpleNamespace(
        create_repo=lambda *words, **more: calls.append(("create", words, more)),
        upload_folder=lambda **more: calls.append(("upload", (), more)),
        model_info=lambda *_, **__: info,
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client)
    return calls


def test_a_run_goes_to_the_hub_with_its_card(run, hub, capsys):
    assert cli.main(["push", str(run), "me/mine", "--private"]) == 0
    assert [name for name, *_ in hub] == ["create", "upload"]
    assert hub[0][1:] == (("me/mine",), {"private": True, "exist_ok": True})
    assert hub[1][2]["repo_id"] == "me/mine" and hub[1][2]["folder_path"] == str(run / "hub")
    _, head, text = (run / "hub" / "README.md").read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(head) == {
        "language": ["sw", "th"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["pbrl_jax", "grpo"], "base_model": "owner/base", "license": "apache-2.0",
    }  # fmt: skip
    for part in (
        "| accuracy/sw | 0.25 |",
        "| steps | 7 |",
        "cosine (1)",
        "apache-2.0, that of the base",
        "[owner/base]",
    ):
        assert part in text
    assert load_policy(str(run / "hub")).spec.layers == hf_policy().spec.layers
    assert "is on the hub as me/mine" in capsys.readouterr().out


def test_a_dry_run_uploads_nothing(run, hub, capsys):
    assert cli.main(["push", str(run), "me/mine", "--dry-run"]) == 0
    assert not hub and "would be uploaded to me/mine" in capsys.readouterr().out


def test_what_is_refused(run, hub, monkeypatch, tmp_path, capsys):
    def refuses(*_, **__):
        raise OSError("no write access\nmore")

    for words, message in [
        ([str(tmp_path), "me/mine"], "holds no finished run"),
        ([str(run), "mine"], "'mine' is no name of a repository; expected owner/name"),
    ]:
        assert cli.main(["push", *words]) == 1 and message in capsys.readouterr().err
    monkeypatch.setattr(push, "licence_of", lambda _: "")
    huggingface_hub.HfApi().create_repo = refuses
    assert cli.main(["push", str(run), "me/mine"]) == 1
    assert "The hub does not take me/mine: no write access. Log in" in capsys.readouterr().err

    def unreachable(*_, **__):
        raise httpx2.ConnectError("Name or service not known")

    huggingface_hub.HfApi().create_repo = unreachable
    assert cli.main(["push", str(run), "me/mine"]) == 1
    assert "The hub does not take me/mine: Name or service not known." in capsys.readouterr().err
