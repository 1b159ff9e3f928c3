# SPDX-License-Identifier: Apache-2.0
"""The report of runs: what it tells, and what a browser shows of it. One rank."""

import html
import json
import re
import shutil
import subprocess
import sys

import pytest
from run_builder import configuration, trained

from mindspeed_ms.engine.observe import observer
from mindspeed_ms.engine.report import page, story
from mindspeed_ms.engine.start import refuse_unsupported

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVALUATED = ("--eval-iters", "1", "--eval-interval", "2")


def run_in(folder, *flags):
    """A small run with a report; its losses."""
    save = ("--save", str(folder), "--save-interval", "2", "--report", *EVALUATED)
    return [loss for loss, _ in trained(*save, *flags)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their learning rate: folders and losses."""
    root = tmp_path_factory.mktemp("runs")
    return {
        name: (root / name, run_in(root / name, "--lr", rate))
        for name, rate in (("slow", "0.001"), ("fast", "0.01"))
    }


@pytest.fixture(scope="module")
def shown(runs, tmp_path_factory):
    """The page of both runs, after its script has run in a browser without a network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    output = tmp_path_factory.mktemp("page") / "both.html"
    page.write_report([folder for folder, _ in runs.values()], output)
    words = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", output.as_uri()),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def drawn(text, title):
    """Curve -> its last value, as the plot of this title holds it."""
    (found,) = re.findall(rf'data-plot="{title}"[^>]*data-last="([^"]*)"', text)
    return json.loads(html.unescape(found))


def test_a_browser_draws_the_curves_of_both_runs(runs, shown):
    assert 'data-drawn="yes"' in shown
    last = drawn(shown, "loss")
    for name, (_, losses) in runs.items():
        assert last[f"{name}: lm loss"] == losses[-1]
        assert f"{name}: lm loss validation" in last
    assert drawn(shown, "learning rate") == {
        "slow": 0.001,
        "fast": 0.01,
    }
    plots = ("loss", "learning rate", "gradient norm", "tokens per second")
    for title in plots:
        start = shown.index(f'data-plot="{title}"')
        assert "scatterlayer" in shown[start : start + 60_000], title


def test_a_browser_shows_tables_and_pictures(runs, shown):
    body = shown[shown.index("<main") :]
    assert (
        len(re.findall(r'data-tile="loss"><span class="soft">loss</span><b>([\d.]+)<', body)) == 2
    )
    table = body[body.index('id="differences"') :]
    table = table[: table.index("</table>")]
    row = re.search(
        r"optimizer_<wbr>config\.learning_<wbr>rate</code></td><td>([\d.]+)</td><td>([\d.]+)", table
    )
    assert row.groups() == ("0.001", "0.01")
    assert body.count('class="plot timeline js-plotly-plot"') == 2
    assert body.count('class="plot memory js-plotly-plot"') == 2
    assert body.count("layers 0–7") == 2


def test_the_file_needs_nothing_from_elsewhere(runs):
    text = (runs["slow"][0] / page.FILE_NAME).read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", text, count=1, flags=re.S)  # plotly's library
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|fetch\(""", own)


def test_a_story_has_what_the_run_did(runs):
    folder, losses = runs["fast"]
    told = story.tell(folder)
    assert told["curves"]["lm loss"] == {"x": [1, 2, 3], "y": losses}
    assert told["curves"]["lm loss validation"]["x"] == [2]
    assert [one["iteration"] for one in told["checkpoints"]] == [2, 3]
    assert all(float(one["size"]) > 0 for one in told["checkpoints"])
    assert told["changed"]["optimizer_config.learning_rate"] == 0.01
    assert told["memory"][0]["measured peak"] > told["memory"][0]["planned peak"] > 0
    assert told["timeline"]["measured"] and told["timeline"]["predicted"]
    assert told["tiles"]["iterations"] == "3 of 3"


def test_a_removed_checkpoint_is_told(runs, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(runs["fast"][0], folder)
    shutil.rmtree(folder / "iter_0000002")
    sizes = {one["iteration"]: one["size"] for one in story.tell(folder)["checkpoints"]}
    assert sizes[2] == "removed" and sizes[3] != "removed"


def test_long_curves_keep_their_spikes():
    points = [(x, 1.0) for x in range(100_000)]
    points[54_321] = (54_321, 9.0)
    kept = story.thinned(points)
    assert len(kept) <= story.MOST_POINTS and (54_321, 9.0) in kept
    assert kept[-1] == points[-1] and kept == sorted(kept)
    assert story.thinned(points[:10]) == points[:10]


def test_what_a_run_says_cannot_become_part_of_the_page(runs):
    told = story.tell(runs["fast"][0])
    told["name"] = "</script><img src=x>"
    told["warnings"] = [{"iteration": 1, "text": "<b>loud</b>"}]
    text = page.page([told])
    assert "<img src=x>" not in text and "<b>loud</b>" not in text


def test_losses_that_are_none_are_no_points():
    step = {"kind": "step", "iteration": 1, "lm loss": "nan", "grad_norm": None}
    assert dict(story._curves([step, {**step, "iteration": 2, "lm loss": 2.0}])) == {
        "lm loss": {"x": [2], "y": [2.0]}
    }


def test_the_tool_writes_one_file_or_says_why_not(runs, tmp_path):
    words = [sys.executable, "-m", "tools.report"]
    folder, _ = runs["fast"]
    done = subprocess.run([*words, folder, "--output", tmp_path / "a.html"], check=True)
    assert done.returncode == 0 and (tmp_path / "a.html").stat().st_size > 1e6
    failed = subprocess.run([*words, tmp_path], capture_output=True, text=True)
    assert failed.returncode == 2
    assert f"error: {tmp_path} holds no record of a run; name the folder" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_a_run_says_where_its_report_is(tmp_path, capsys):
    run_in(tmp_path)
    assert f"report of the run: {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_a_report_that_cannot_be_made_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs plotly and jinja2.*mindspeed_ms\[report\]"):
        refuse_unsupported(configuration("--report"))


def test_warnings_of_a_run_are_in_its_story(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(observer.LogFile, "write", full)
    run_in(tmp_path / "run", "--log-file", str(tmp_path / "log.csv"))
    (warning,) = story.tell(tmp_path / "run")["warnings"]
    assert "log file cannot be written any more" in warning["text"]
