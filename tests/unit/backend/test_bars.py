# SPDX-License-Identifier: Apache-2.0
"""Progress bars: on a terminal, and nowhere else. One rank."""

import contextlib
import io
import os

import pytest
from run_builder import trained

from mindspeed_ms.backend import bars
from mindspeed_ms.data.tokenizers import corpus

pytest.importorskip("tqdm")
EVALUATED = ("--eval-iters", "1", "--eval-interval", "2", "--log-interval", "1")


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self):
        return True


@contextlib.contextmanager
def terminal():
    """What is written to a terminal in a block."""
    screen = Terminal()
    with contextlib.redirect_stdout(screen):
        yield screen


def test_a_run_shows_its_step_loss_speed_and_time_left(tmp_path):
    save = ("--save", str(tmp_path), "--save-interval", "2")
    with terminal() as screen:
        trained(*EVALUATED, *save)
    text = screen.getvalue()
    last = [part for part in text.split("\r") if part.startswith("training:")][-1]
    assert "3/3" in last and "loss=4.24" in last and "tokens_per_s=" in last
    assert any("1/3" in part and "<" in part for part in text.split("\r"))  # time left
    assert "evaluating:" in text and "saving:" in text
    with terminal() as screen:
        trained(
            "--load", str(tmp_path), "--override-opt_param-scheduler", "--train-iters", "4", *save
        )
    assert "loading:" in screen.getvalue()


def test_lines_of_the_log_stay_whole():
    with terminal() as screen:
        trained(*EVALUATED)
    whole = [
        line for line in screen.getvalue().split("\n") if "number of nan iterations:   0 |" in line
    ]
    assert len(whole) == 3
    assert all("iteration        " in line for line in whole)


def test_nothing_is_drawn_where_there_is_no_terminal(capsys, tmp_path):
    trained(*EVALUATED, "--save", str(tmp_path), "--save-interval", "2")
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err and "training:" not in captured.out


def test_a_bar_on_the_terminal_of_who_started_the_job(monkeypatch, capsys, tmp_path):
    """Standard output is a file, as under msrun; lines of the log stay there."""
    screen, name = os.openpty()
    os.set_blocking(screen, False)
    monkeypatch.setenv("MINDSPEED_MS_TERMINAL", os.ttyname(name))
    trained(*EVALUATED, "--save", str(tmp_path), "--save-interval", "2")
    shown = os.read(screen, 1 << 16).decode()
    os.close(screen)
    os.close(name)
    captured = capsys.readouterr().out
    assert "3/3" in shown and "loss=4.24" in shown
    assert "number of nan iterations" in captured and "number of nan" not in shown
    assert "\r" not in captured
    parts = [part for part in shown.split("\r") if part.strip()]
    assert all(len(part) <= 72 for part in parts)


@pytest.mark.parametrize("kind", ["file", "absent"])
def test_what_is_no_terminal_is_left_alone(monkeypatch, tmp_path, kind):
    path = tmp_path / "a"
    if kind == "file":
        path.write_text("mine", encoding="utf-8")
    monkeypatch.setenv("MINDSPEED_MS_TERMINAL", str(path))
    with bars.bar("training", 3) as shown:
        assert shown is bars.SILENT
    assert not path.exists() or path.read_text("utf-8") == "mine"


def test_nothing_is_drawn_without_the_library(monkeypatch):
    monkeypatch.setattr(bars.importlib.util, "find_spec", lambda name: None)
    with terminal() as screen:
        trained(*EVALUATED)
    assert "\r" not in screen.getvalue()


def test_a_run_that_fails_leaves_no_bar():
    def fail(step):
        raise KeyError(step.iteration)

    with terminal() as screen, pytest.raises(KeyError):
        trained(on_step=fail)
    assert "training:" in screen.getvalue()
    assert not bars.write_above("a line")
    assert bars._open.count == 0


def test_another_rank_draws_nothing():
    with terminal() as screen, bars.bar("working", 3, "step", is_shown=False) as bar:
        bar.update()
        bar.tell(loss="1")
    assert bar is bars.SILENT and screen.getvalue() == ""


def test_preprocessing_shows_bytes_documents_and_speed(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 100)
    with terminal() as screen:
        progress = corpus.Progress([str(path)], 1, corpus.logging.getLogger("test"))
        progress.add(corpus.EncodedChunk({}, 3, 50, 50))
        progress.add(corpus.EncodedChunk({}, 3, 50, 100))
        progress.end()
    last = [part for part in screen.getvalue().split("\r") if part.startswith("preproc")][-1]
    assert "100/100" in last and "documents=6" in last
