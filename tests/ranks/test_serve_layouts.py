# SPDX-License-Identifier: Apache-2.0
"""A server over several ranks answers as one rank does; the first one takes the requests."""

from __future__ import annotations

import threading
import time

import pytest
from generation_models import write_folder
from serve_cases import Collected, Words, alone, requests

from mindspeed_ms import AutoModelForCausalLM
from mindspeed_ms.backend import comm
from mindspeed_ms.toolkit.serve.batch import ContinuousBatch
from mindspeed_ms.toolkit.serve.loop import Desk, run
from mindspeed_ms.toolkit.serve.metrics import Metrics

pytestmark = pytest.mark.ranks
TP, PP, EP = (f"{name}_model_parallel_size" for name in ("tensor", "pipeline", "expert"))


def _clients(desk, found):
    """Requests that come while others run; one leaves; then the server is told to stop."""
    numbers = {}
    for place, request in enumerate(requests(3)):
        (number,) = desk.submit([request], found.take)
        numbers[number] = request.number
        if place % 7 == 0:
            time.sleep(0.02)
        if place == 5:
            desk.cancel([number])
            del numbers[number]
    desk.stop()
    found.numbers = numbers


def serving_worker(model, folder, parallel):
    """New ids of every request: alone on one rank, by the server on several."""
    built = AutoModelForCausalLM.from_pretrained(folder, **parallel)
    if comm.get_world_size() == 1:
        return {request.number: alone(built, request) for request in requests(3)}
    found = Collected()
    with built.active(), built.inference_engine(4) as engine:
        batch = ContinuousBatch(engine, Words(), max_rows=6)
        if comm.get_rank():
            run(batch, None)
            return None
        desk = Desk(100, Metrics())
        thread = threading.Thread(target=_clients, args=(desk, found))
        thread.start()
        run(batch, desk)
        thread.join()
    return {request: found.rows(number) for number, request in found.numbers.items()}


@pytest.mark.parametrize(
    ("model", "ranks", "parallel"),
    [
        pytest.param("llama", 2, {TP: 2}, marks=pytest.mark.slow),
        ("gpt2", 2, {PP: 2}),
        ("mixtral", 2, {EP: 2}),
        pytest.param("llama", 4, {TP: 2, PP: 2}, marks=pytest.mark.slow),
    ],
)
def test_every_layout_answers_as_one_rank(dist_run, tmp_path, model, ranks, parallel):
    folder = write_folder(model, tmp_path)
    wanted = serving_worker(model, folder, {})
    found = dist_run(serving_worker, ranks=ranks, model=model, folder=folder, parallel=parallel)[0]
    assert len(found) == len(wanted) - 1
    for number, rows in found.items():
        assert rows == wanted[number], number
