# SPDX-License-Identifier: Apache-2.0
"""The scripts that start one process a rank: as the guide's own, and ranks that find each other."""

import subprocess

import guides
import pytest
from launch_scripts import MULTI, SCRIPTS, SINGLE, environment, logs, run, write_table

NODES = (SINGLE, MULTI)
RECORD = "printf '%s\\n' rank=$RANK_ID size=$RANK_SIZE device=$DEVICE_ID table=$RANK_TABLE_FILE"


def guide_script(name, folder):
    """The guide's own script of that name, waiting for its ranks so that logs are complete."""
    path = folder / name
    path.write_text(guides.block("develop_with_api", "bash", f"bash {name}") + "wait\n")
    return path


def outcome(script, words, folder, **variables):
    """What a script says and leaves behind."""
    done = run(script, words, folder, **variables)
    logs = sorted(folder.glob("output/log/*/*"))
    return done.returncode, done.stdout, {str(p.relative_to(folder)): p.read_text() for p in logs}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("env",),
        ("env", "hccl_4p_0123_127.0.0.1.json", "[0,4]", "4", "more"),
        (RECORD, "hccl_4p_0123_127.0.0.1.json", "[0,4]", "4"),
        (RECORD, "hccl_4p_0123_127.0.0.1.json", "[8,11]", "32"),
        (RECORD, "./hccl_4p_0123_127.0.0.1.json", "[9,11)", "32"),
        (RECORD, "/dev/../dev/none.json", "[0,2]", "2"),
        (RECORD, "none.json", "[0,2]", "2"),
        (RECORD, "hccl_4p_0123_127.0.0.1.json", "[a,4]", "4"),
        (RECORD, "hccl_4p_0123_127.0.0.1.json", "[0,b]", "4"),
        (RECORD, "hccl_4p_0123_127.0.0.1.json", "[4]", "4"),
        (RECORD, "hccl_4p_0123_127.0.0.1.json", "[-1,4]", "4"),
    ],
    ids=lambda words: " ".join(words[1:]) or str(len(words)),
)
def test_node_scripts_say_and_leave_what_the_guides_do(tmp_path, name, words):
    folder = tmp_path / "job"
    theirs = guide_script(name, tmp_path)
    results = []
    for script in (theirs, SCRIPTS / name):
        folder.mkdir()
        write_table(folder)
        order = words
        if script == theirs and words and words[0] == RECORD:
            (tmp_path / "record.sh").write_text(RECORD)  # the guide's script splits the order
            order = (f"bash {tmp_path}/record.sh", *words[1:])
        results.append(outcome(script, order, folder, WAIT="1"))
        folder.rename(tmp_path / f"job_of_{len(results)}")
    assert results[0] == results[1]


def test_an_order_with_quotes_arrives_whole(tmp_path):
    order = "python -c 'import sys; print(sys.argv[1:])' 'hello world!' \"a 'b'\""
    run(SCRIPTS / NODES[0], (order, write_table(tmp_path), "[0,1]", 1), tmp_path, WAIT="1")
    log = tmp_path / "output/log/rank_0/mindformer.log"
    assert log.read_text().strip() == str(["hello world!", "a 'b'"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("true", "[3,3]", "4"), "error: device range [3,3] holds no device"),
        (("true", "[0,2]", "many"), "error: rank_size=many is not a number"),
    ],
)
@pytest.mark.parametrize("name", NODES)
def test_what_would_start_nothing_is_refused(tmp_path, name, words, message):
    done = run(SCRIPTS / name, (words[0], write_table(tmp_path), *words[1:]), tmp_path)
    assert done.returncode == 1 and done.stdout.startswith(message)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", NODES)
def test_with_wait_the_first_failing_status_is_returned(tmp_path, name):
    order = "case $RANK_ID in 1) exit 7;; 2) sleep 1; exit 9;; esac; touch ended_$RANK_ID"
    words = (order, write_table(tmp_path), "[0,4]", 4)
    assert run(SCRIPTS / name, words, tmp_path, WAIT="1").returncode == 7
    assert sorted(path.name for path in tmp_path.glob("ended_*")) == ["ended_0", "ended_3"]
    assert run(SCRIPTS / name, words, tmp_path).returncode == 0  # in the background


SUM = """
from mindspeed_ms.backend import comm, memory
import numpy as np
comm.init_process_group()
tensor = memory.from_numpy(np.full(1, comm.get_rank() + 1, np.float32))
comm.all_reduce(tensor)
print("rank", comm.get_rank(), "of", comm.get_world_size(), "sum", float(tensor.asnumpy()[0]))
if comm.get_rank() == FAILING:
    raise SystemExit(5)
"""


@pytest.mark.parametrize("failing", [None, 1])
def test_ranks_of_one_node_find_each_other(tmp_path, failing):
    (tmp_path / "task.py").write_text(SUM.replace("FAILING", repr(failing)))
    words = ("python task.py", write_table(tmp_path), "[0,2]", 2)
    done = run(SCRIPTS / NODES[0], words, tmp_path, WAIT="1")
    texts = logs(tmp_path, 2)
    assert done.returncode == (5 if failing else 0), texts
    for rank, text in enumerate(texts):
        assert f"rank {rank} of 2 sum 3.0" in text


@pytest.mark.slow
def test_ranks_of_two_nodes_find_each_other(tmp_path):
    (tmp_path / "task.py").write_text(SUM.replace("FAILING", "None"))
    table = write_table(tmp_path, servers=("127.0.0.1", "127.0.0.2"))
    variables = environment(WAIT="1", OMP_NUM_THREADS="1")  # one port for both
    started = [
        subprocess.Popen(
            ["bash", SCRIPTS / NODES[1], "python task.py", table, device_range, "4"],
            cwd=tmp_path,
            env=variables,
        )
        for device_range in ("[2,4]", "[0,2]")
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0], logs(tmp_path, 4)
    for rank, text in enumerate(logs(tmp_path, 4)):
        assert f"rank {rank} of 4 sum 10.0" in text


def test_ranks_whose_table_is_of_another_job_say_so(tmp_path):
    (tmp_path / "task.py").write_text(SUM.replace("FAILING", "None"))
    words = ("python task.py", write_table(tmp_path), "[0,1]", 3)
    done = run(SCRIPTS / NODES[0], words, tmp_path, WAIT="1")
    assert done.returncode != 0
    assert "RANK_SIZE is 3, but RANK_TABLE_FILE" in logs(tmp_path, 1)[0]
