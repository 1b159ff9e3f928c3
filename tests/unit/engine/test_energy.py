# SPDX-License-Identifier: Apache-2.0
"""Energy of steps, from counters as the kernel has them."""

from datetime import datetime

import pytest
from run_builder import trained

from mindspeed_ms.backend import comm
from mindspeed_ms.backend.host_energy import HostEnergy
from mindspeed_ms.engine import train_loop
from mindspeed_ms.engine.observe.energy import EnergyLog


def count(root, zone, value, largest=999_999):
    folder = root / HostEnergy.FOLDER / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")


def test_packages_are_added_up_and_counters_begin_again(tmp_path):
    count(tmp_path, "intel-rapl:0", 900_000)
    count(tmp_path, "intel-rapl:1", 5)
    count(tmp_path, "intel-rapl:0:0", 0)  # the cores of package 0
    host = HostEnergy(tmp_path)
    host.start()
    count(tmp_path, "intel-rapl:0", 100_000)
    count(tmp_path, "intel-rapl:1", 300_005)
    count(tmp_path, "intel-rapl:0:0", 50)
    assert host.taken() == pytest.approx(0.2 + 0.3)


def test_a_lap_is_the_mean_of_its_steps(tmp_path):
    count(tmp_path, "intel-rapl:0", 0)
    comm.init_process_group()
    log = EnergyLog(tmp_path)
    for before, after in ((0, 400_000), (600_000, 800_000)):
        count(tmp_path, "intel-rapl:0", before)
        log.start_step()
        count(tmp_path, "intel-rapl:0", after)
        log.end_step()
    assert log.lap(2) == pytest.approx(0.3)
    assert log.lap(1) == 0


def test_a_host_that_counts_nothing_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_loop, "EnergyLog", lambda: EnergyLog(tmp_path))
    trained("--train-iters", "2", "--log-interval", "1", "--log-energy")
    text = capsys.readouterr().out
    assert text.count("has no counters that this user may read") == 1
    assert "energy per GPU" not in text


def test_the_line_says_energy_and_power(tmp_path, monkeypatch):
    lines = []

    class Counted(EnergyLog):
        def start_step(self):
            super().start_step()
            count(tmp_path, "intel-rapl:0", 500_000)

    count(tmp_path, "intel-rapl:0", 0)
    monkeypatch.setattr(train_loop, "EnergyLog", lambda: Counted(tmp_path))
    line_of = train_loop.megatron_line
    monkeypatch.setattr(
        train_loop, "megatron_line", lambda one, now: lines.append(one) or line_of(one, now)
    )
    trained("--train-iters", "1", "--log-interval", "1", "--log-energy")
    (line,) = lines
    watts = 0.5 / line.seconds_per_iteration
    text = line_of(line, datetime.now())
    assert f"| energy per GPU (J/iter/GPU): 0.5 | power per GPU (W/GPU): {watts:.1f} |" in text
