"""Characters that steer a terminal: shown as escapes wherever foreign text is printed there."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pbrl_jax import cli
from pbrl_jax.core.characters import CONTROL, as_texts, visible
from pbrl_jax.core.errors import DataError
from pbrl_jax.logs.live import LiveView, Pace
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.logs.progress import Progress
from pbrl_jax.run import generate

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31mred\rover\u202eabc\ud800"
SHOWN = r"\x1b]0;title\x07\x1b[2J\x9b31mred\rover\u202eabc\ud800"


def test_text_is_text_and_all_else_is_an_escape():
    plain = "Jibu ni 4.\n\tคำตอบคือ 4\r\nবাংলা 👨\u200d👩\u200d👧 é \\x1b"
    assert visible(plain) == plain and not CONTROL.search(plain)
    assert visible(EVIL) == SHOWN and CONTROL.search(EVIL)
    assert "".join(map(visible, EVIL)) == SHOWN, "also in pieces, as an answer is streamed"


def test_messages_and_logs(capsys, monkeypatch, tmp_path):
    def verb(_arguments):
        raise DataError(EVIL)

    monkeypatch.setattr(cli, "VERBS", {"report": verb})
    assert cli.main(["report"]) == 1 and capsys.readouterr().err == f"Error: {SHOWN}\n"
    written = io.StringIO()
    console = Console(file=written, width=200)
    with MetricWriter(tmp_path, console=console, quiet=True) as writer:
        writer.say(EVIL)
    with Progress("stage", 2, console=console, every_seconds=0) as progress:
        progress.advance(note=EVIL)
    view = LiveView("run", Pace(2), console)
    view.update({"step": 1, f"language/consistency/{EVIL}": 0.5})
    console.print(view.panel())
    assert written.getvalue().count(SHOWN) == 3 and "\x1b" not in written.getvalue()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_answers_of_a_policy(stream, terminal, monkeypatch, capsys):
    """On a terminal as escapes; a file gets the answer itself."""
    text = EVIL[:-1]
    answers = SimpleNamespace(
        answer=lambda *_: [SimpleNamespace(text=text)],
        stream=lambda *_: (SimpleNamespace(text=text[:end]) for end in range(1, len(text) + 1)),
    )
    monkeypatch.setattr(generate, "load", lambda _: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(generate, "form", lambda *_: {})
    monkeypatch.setattr(generate, "format_prompts", lambda *_: [[1]])
    monkeypatch.setattr(generate.Engine, "of", lambda *_: answers)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert cli.main(["generate", "--policy", "p", "--prompt", "\x1b[1m?", *["--stream"] * stream]) == 0
    output = capsys.readouterr().out
    assert (SHOWN[:-6] in output and "\x1b" not in output) if terminal else text in output


def test_memory_that_is_used_up(monkeypatch, capsys):
    def verb(error):
        def run(_arguments):
            raise error

        return {"train": run}

    for error, where in (
        (MemoryError("Unable to allocate 9 TiB"), "this host"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the device"),
        (RuntimeError("INTERNAL: std::bad_alloc"), "the device"),
    ):
        monkeypatch.setattr(cli, "VERBS", verb(error))
        assert cli.main(["train"]) == 1
        assert f"Error: {where} ran out of memory. Lower --train.microbatch-prompts" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["abc", ["a", None], ["a", 1.5], [["a"]]])
def test_a_text_alone_is_no_list_of_texts(wrong):
    """Its letters would be embedded, scored or translated one by one."""
    with pytest.raises(DataError, match=r"expected a (list of texts, found one text 'abc'|text\.)"):
        as_texts(wrong, "Texts")
    assert as_texts(iter(["a", ""]), "Texts") == ["a", ""]
