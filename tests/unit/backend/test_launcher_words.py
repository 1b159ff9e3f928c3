# SPDX-License-Identifier: Apache-2.0
"""Launchers of other kinds, and what a published script leaves open in their words."""

import os
import subprocess
from pathlib import Path

import pytest

from mindspeed_ms.backend.torchrun import run
from mindspeed_ms.backend.torchrun.deepspeed import requested
from mindspeed_ms.backend.torchrun.options import LaunchError, read
from mindspeed_ms.backend.torchrun.tasks import num_tasks, split

ROOT = Path(__file__).parents[3]
BIN = Path(run.__file__).with_name("bin")
MODEL = (
    "--num-layers 8 --hidden-size 256 --num-attention-heads 4 --seq-length 128 --lr 1e-4 "
    "--max-position-embeddings 128 --micro-batch-size 1 --global-batch-size 32 --train-iters 9 "
    "--vocab-size 1000 --tokenizer-type NullTokenizer --tensor-model-parallel-size 2"
)


def test_a_value_that_a_variable_left_empty_is_named():
    with pytest.raises(LaunchError, match="--nproc-per-node has no value; a variable"):
        read("torchrun", "--nproc_per_node --nnodes 1 train.py --bf16".split(), {})
    with pytest.raises(LaunchError, match="--master-port has no value"):
        read("torchrun", "--nproc_per_node 2 --master_port train.py --bf16".split(), {})


@pytest.mark.parametrize(
    ("words", "is_counted", "size", "left_out"),
    [
        ("--nproc_per_node --nnodes 2 train.py", False, 2, 1),
        ("--nproc_per_node 4 --nnodes --node_rank 0 train.py", False, 4, 1),
        ("--nproc_per_node 4 --nnodes 2 --master_port train.py", True, 8, 1),
        ("--nproc_per_node gpu --nnodes 2 train.py", False, 2, 0),
        ("--nproc_per_node 4 --master_addr your master node IP --nnodes 2 train.py", True, 8, 0),
        ("--nproc_per_node 4 --ft_y 8 --nnodes 2 --ft-on train.py", True, 8, 0),
    ],
)
def test_a_plan_does_without_what_is_left_open(
    monkeypatch, capsys, words, is_counted, size, left_out
):
    monkeypatch.setenv("MINDSPEED_MS_DRY_RUN", "1")
    request = read("torchrun", [*words.split(), "--lr", "1"], {})
    assert (request.is_counted, request.world_size) == (is_counted, size)
    assert (request.script, request.script_args) == ("train.py", ("--lr", "1"))
    assert capsys.readouterr().err.count("has no value, and a plan does without") == left_out


def test_the_script_of_another_model_is_refused_by_its_name(monkeypatch):
    monkeypatch.setenv("MINDSPEED_MS_DRY_RUN", "1")
    for name in ("examples/bert/pretrain_bert.py", "pretrain_t5.py", "pretrain_vlm.py"):
        with pytest.raises(LaunchError, match="trains another kind of model"):
            run.launch(read("torchrun", [name], {}))


@pytest.mark.parametrize(
    ("words", "nodes", "ranks"),
    [
        ("--num_nodes 1 --num_gpus 8", 1, 8),
        ("--num_gpus=4 --master_port 29700", 1, 4),
        ("--hostfile {hosts}", 3, 8),
        ("--hostfile {hosts} --num_nodes=2 --force_multi", 2, 8),
        ("-H {hosts} -e c", 2, 8),
        ("-H {hosts} -i a:0,1@b:2,3", 2, 2),
        ("--hostfile no/such/file --num_gpus 2", 1, 2),
    ],
)
def test_the_words_of_deepspeed(monkeypatch, tmp_path, words, nodes, ranks):
    monkeypatch.setenv("MINDSPEED_MS_DRY_RUN", "1")
    (tmp_path / "hosts").write_text("a slots=8\n# away\nb slots=8\n\nc slots=8 # far\n")
    words = words.format(hosts=tmp_path / "hosts").split()
    request = requested([*words, "train.py", "--deepspeed", "--num_gpus", "5"], {})
    assert (request.nodes, request.ranks_per_node) == (nodes, ranks)
    assert request.script_args == ("--deepspeed", "--num_gpus", "5")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--num_nodes 2 --num_gpus 8", "run this on each with --no_ssh and its own --node_rank"),
        ("--num_gpus two", "--nproc-per-node is 'two'"),
        ("-i a -e b", "exclude each other"),
        ("--no_python", "ranks are Python processes"),
        ("-H {hosts}", "not of the form host slots=8"),
    ],
)
def test_what_deepspeed_alone_can_do_is_told(monkeypatch, tmp_path, words, line):
    monkeypatch.delenv("MINDSPEED_MS_DRY_RUN", raising=False)
    (tmp_path / "hosts").write_text("a 8\nb\n")
    words = words.format(hosts=tmp_path / "hosts").split()
    with pytest.raises(LaunchError, match=line):
        requested([*words, "train.py"], {})


@pytest.mark.parametrize(
    ("program", "words", "tasks"),
    [
        ("srun", "-lu --cpus-per-task 8 --wait 60", 1),
        ("srun", "-N2 --ntasks-per-node=8 --exclusive --container-image a:b", 16),
        ("srun", "--mpi=pmix -n 4 -l", 4),
        ("mpirun", "--allow-run-as-root -np 16 -hostfile h -x A=1 -mca btl ^openib", 16),
        ("mpiexec", "-n 2 -prepend-rank", 2),
        ("numactl", "--membind=0-3 -C 0-7", 1),
    ],
)
def test_the_command_behind_another_launcher(monkeypatch, program, words, tasks):
    for name in ("SLURM_NNODES", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    options, command = split(program, [*words.split(), "python", "-u", "train.py", "-n", "3"])
    assert command == ["python", "-u", "train.py", "-n", "3"]
    assert num_tasks(program, options) == tasks


def planned(script, folder, **more):
    (folder / "train.sh").write_text(script)
    done = subprocess.run(
        ["bash", "train.sh"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "MINDSPEED_MS_DRY_RUN": "1",
            "PYTHONPATH": str(ROOT),
            **more,
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_slurm_script_whose_devices_torch_counts_is_planned(tmp_path):
    script = f"""
ARGS=(
    --nproc_per_node $(python3 -c "import torch; print(torch.cuda.device_count())")
    --nnodes $SLURM_NNODES  # of the job
    --rdzv_endpoint $(hostname):25678 --tee 3
)
CMD="torchrun ${{ARGS[@]}} /no/such/pretrain_gpt.py {MODEL} --load your ckpt path"
srun -lu --cpus-per-task 8 --wait 60 bash -c "numactl --membind=0-3 $CMD" | tee log.txt
"""
    said = planned(script, tmp_path, SLURM_NNODES="2", MINDSPEED_MS_DRY_RUN_DEVICES="4")
    assert "  8 ranks = tensor 2 × context 1 × data 4 × pipeline 1;" in said
    assert "planned for 4 devices on a host, which torch was to count" in said
    assert "/no/such/pretrain_gpt.py is not here" in said
    assert "given the words 'your ckpt path': planned anyway" in said


def test_a_script_that_asks_mpirun_for_its_rank_is_planned(tmp_path):
    script = """
cat > node.sh <<'EOF'
python pretrain_gpt.py --rank $OMPI_COMM_WORLD_RANK --world-size $OMPI_COMM_WORLD_SIZE \\
  --dist-url tcp://${1}:34566 --num-layers 4 --hidden-size 64 --num-attention-heads 4 \\
  --seq-length 32 --max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 16 \\
  --lr 1e-3 --train-iters 5 --vocab-size 100 --tensor-model-parallel-size 2
EOF
mpirun -np 16 --allow-run-as-root --bind-to none bash node.sh host
"""
    assert "16 ranks" in planned(script, tmp_path)


def test_a_script_of_deepspeed_is_planned(tmp_path):
    script = f'run="deepspeed --num_nodes 4 --num_gpus 8 pretrain_gpt.py {MODEL} --deepspeed \\\n"'
    said = planned(script + '\nrun="$run |& tee log.txt"\neval $run\n', tmp_path)
    assert "  32 ranks = tensor 2 × context 1 × data 16 × pipeline 1;" in said
