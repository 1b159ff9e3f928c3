# SPDX-License-Identifier: Apache-2.0
"""Slow ranks are named; figures of ranks go together. Two ranks."""

import re
import time

from run_builder import open_run

from mindspeed_ms.backend import comm

PP = ("--pipeline-model-parallel-size", "2")
TP = ("--tensor-model-parallel-size", "2")


def slow_worker():
    run, _ = open_run("--log-straggler", "--log-interval", "3")
    step = run._setup.forward_step

    def slow(*arguments):
        if comm.get_rank() == 1:
            time.sleep(0.05)
        return step(*arguments)

    run._setup.forward_step = slow
    lines = []
    with run:
        run._setup.observer._diagnostics._stragglers.lines = keep(run, lines)
        run.train()
    return lines


def keep(run, lines):
    real = run._setup.observer._diagnostics._stragglers.lines

    def kept(iteration):
        lines.extend(real(iteration))
        return []

    return kept


def test_the_slow_rank_is_named(dist_run):
    for lines in dist_run(slow_worker, ranks=2):
        assert re.search(r"slowest: rank 1 \(\+\d", lines[-2])
        first, second = (re.findall(r"[\d.]+", line.partition(": ")[2]) for line in lines[1:3])
        assert float(second[0]) > float(first[0]) + 150  # 4 micro-batches of 50 ms
        assert float(first[1]) > 100  # rank 0 waits for it


def figures_worker(flags):
    reports = []
    run, _ = open_run(*flags, "--log-max-attention-logit", on_step=reports.append)
    with run:
        run.train()
        norms = run._setup.observer._diagnostics
        run._setup.observer._diagnostics._with_layers = True
        _, layers = norms.at_line(3)
    return [report.max_attention_logit for report in reports], layers


def test_scores_and_norms_are_those_of_the_whole_model(dist_run):
    results = [dist_run(figures_worker, ranks=2, flags=flags) for flags in (PP, TP, ())]
    (logits, layers), *others = [one for result in results for one in result]
    assert len([name for name in layers if "layers." in name]) == 8
    for other_logits, other_layers in others:
        assert all(abs(a - b) < 1e-4 for a, b in zip(logits, other_logits, strict=True))
        assert layers.keys() == other_layers.keys()
        assert all(abs(layers[name] - other_layers[name]) < 1e-3 for name in layers)
