# SPDX-License-Identifier: Apache-2.0
"""Rank tables: read, refused with a reason, merged, made for a host; what ranks take from one."""

import copy
import json
import os
import re

import guides
import pytest

from mindspeed_ms.backend import env, launch, msrun_worker, rank_table
from mindspeed_ms.toolkit.launch import hccl_tools, merge_hccl

VARIABLES = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE", "DEVICE_ID")


def document(servers=2, devices=2):
    """A complete table as JSON holds it."""
    return {
        "version": "1.0",
        "server_count": str(servers),
        "server_list": [
            {
                "server_id": f"10.0.0.{number}",
                "device": [
                    {
                        "device_id": str(index),
                        "device_ip": f"192.1.{number}.{index}",
                        "rank_id": str(number * devices + index),
                    }
                    for index in range(devices)
                ],
                "host_nic_ip": "reserve",
            }
            for number in range(servers)
        ],
        "status": "completed",
    }


def sample():
    """The guide's table of 4 servers with 8 devices; its first line is a comment."""
    return json.loads(re.sub(r"^#.*\n", "", guides.blocks("gpt2_13b_distributed", "json")[0]))


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MS_", "PMI", "OMPI", "SLURM")):
            monkeypatch.delenv(name)
    for name in (*VARIABLES, "MS_ROLE", "MS_WORKER_NUM", "MS_NODE_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def table_file(tmp_path, monkeypatch):
    """Write a table and name it in the environment, with further variables."""

    def write(content, **variables):
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("RANK_TABLE_FILE", str(path))
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return path

    return write


def test_the_guides_table_goes_round():
    table = rank_table.parse(sample())
    assert table.to_document() == sample()
    assert [device.rank_id for device in table.devices] == list(range(32))
    assert [len(server.devices) for server in table.servers] == [8] * 4
    assert table.servers[3].devices[7].device_ip == "192.4.27.13"


def test_what_hosts_do_not_need_may_be_missing():
    content = document()
    del content["status"], content["version"], content["server_count"]
    for server in content["server_list"]:
        del server["host_nic_ip"]
        for device in server["device"]:
            device["rank_id"] = int(device["rank_id"])
            del device["device_ip"]
    table = rank_table.parse(content)
    assert {device.device_ip for device in table.devices} == {"reserve"}
    assert table.to_document()["server_list"][1]["device"][1]["rank_id"] == "3"


WRONG = {
    "no object": (lambda t: [], "is .*must be an object"),
    "no servers": (lambda t: t | {"server_list": []}, "must list at least one server"),
    "servers are text": (lambda t: t | {"server_list": "10.0.0.1"}, "must list at least one"),
    "count": (lambda t: t | {"server_count": "3"}, "server_count is 3, but .* has 2 servers"),
    "not ready": (lambda t: t | {"status": "initializing"}, "only a completed table"),
    "server is text": (lambda t: _put(t, 0, "10.0.0.1"), r"server_list\[0\] is .*an object"),
    "no address": (lambda t: _change(t, 1, server_id=""), r"server_list\[1\]: server_id is ''"),
    "no devices": (lambda t: _change(t, 1, device=[]), "must list at least one device"),
    "server twice": (lambda t: _change(t, 1, server_id="10.0.0.0"), "server_id 10.0.0.0 is there"),
    "device is text": (lambda t: _device(t, "device_id", "a"), "device_id is 'a'; .* whole number"),
    "device missing": (lambda t: _device(t, "device_id", None), "device_id is None"),
    "device below 0": (lambda t: _device(t, "device_id", "-1"), "device_id is '-1'"),
    "device a truth": (lambda t: _device(t, "device_id", True), "device_id is True"),
    "device twice": (lambda t: _device(t, "device_id", "0"), "10.0.0.1: device_id 0 is there"),
    "rank twice": (lambda t: _device(t, "rank_id", "0"), "rank_id 0 is there twice"),
    "rank gap": (lambda t: _device(t, "rank_id", "7"), "rank_id 3 is missing; 4 devices have"),
    "rank order": (
        lambda t: t | {"server_list": t["server_list"][::-1]},
        "rank_id goes 2, 3, 0, 1.* must increase",
    ),
}


def _put(table, index, value):
    table["server_list"][index] = value
    return table


def _change(table, index, **values):
    table["server_list"][index].update(values)
    return table


def _device(table, key, value):
    table["server_list"][1]["device"][1][key] = value
    return table


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_refused_with_its_place(case, tmp_path):
    change, message = WRONG[case]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(change(copy.deepcopy(document()))))
    with pytest.raises(ValueError, match=message) as caught:
        rank_table.read(path)
    assert str(caught.value).startswith(f"rank table {path}") and "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read .No such file"):
        rank_table.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("ranks: 8")
    with pytest.raises(ValueError, match="is not JSON"):
        rank_table.read(tmp_path / "text.json")


# ---- merging, and the table of one host ----


def test_tables_of_hosts_merge_into_the_guides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = []
    for server in sample()["server_list"]:
        for rank, device in enumerate(server["device"]):
            device["rank_id"] = str(rank)  # as each host's own table counts
        one = {"version": "1.0", "server_count": "1", "server_list": [server]}
        names.append(f"hccl_8p_01234567_{server['server_id']}.json")
        (tmp_path / names[-1]).write_text(json.dumps(one | {"status": "completed"}))
    assert merge_hccl.main(names) == 0
    assert json.loads((tmp_path / "hccl_4s_32p.json").read_text()) == sample()
    assert "4 servers, 32 devices" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        merge_hccl.main([names[0], names[1], names[0]])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "server 10.155.111.140 is in two of the tables" in error
    with pytest.raises(ValueError, match="no rank table to merge"):
        rank_table.merge([])


@pytest.fixture
def no_npu(monkeypatch, tmp_path):
    monkeypatch.setattr(hccl_tools.shutil, "which", lambda name: None)
    monkeypatch.setattr(hccl_tools, "HCCN_CONF", tmp_path / "hccn.conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "name", "devices"),
    [
        (["--device_num", "[0,8)"], "hccl_8p_01234567_127.0.0.1.json", range(8)),
        ([], "hccl_8p_01234567_127.0.0.1.json", range(8)),
        (["--device_num", "[0,4]"], "hccl_4p_0123_127.0.0.1.json", range(4)),
        (["--device_num=[2,6)", "--server_ip", "10.1.1.1"], "hccl_4p_2345_10.1.1.1.json", "2345"),
        (["--device_num", "[8, 10)"], "hccl_2p_89_127.0.0.1.json", "89"),
        (["--device_num", "[9,12)"], "hccl_3p_91011_127.0.0.1.json", (9, 10, 11)),
        (
            ["--device_num", "[0,16)"],
            "hccl_16p_0123456789101112131415_127.0.0.1.json",
            range(16),
        ),
        (
            ["--device_num", "[0,2)", "--visible_devices", "6,3"],
            "hccl_2p_63_127.0.0.1.json",
            "63",
        ),
        (
            ["--device_num", "[1,3)", "--visible_devices", "4,5,6,7"],
            "hccl_2p_56_127.0.0.1.json",
            "56",
        ),
    ],
)
def test_the_table_of_a_host_without_npu(no_npu, capsys, words, name, devices):
    assert hccl_tools.main(words) == 0
    table = rank_table.read(no_npu / name)
    assert [device.device_id for device in table.devices] == list(map(int, devices))
    assert [device.rank_id for device in table.devices] == list(range(len(devices)))
    out = capsys.readouterr().out
    assert "no NPU address found" in out and out.endswith(f"{name}\n")


def test_addresses_come_from_the_hosts_tools(no_npu, monkeypatch, tmp_path):
    (tmp_path / "hccn.conf").write_text(
        "address_0=192.1.27.6\naddress_1 = 192.2.27.6\nnetmask_0=255.255.255.0\n"
    )
    monkeypatch.setattr(hccl_tools.socket, "gethostbyname", lambda name: "10.155.111.140")
    assert hccl_tools.main(["--device_num", "[0,2)"]) == 0
    table = rank_table.read(tmp_path / "hccl_2p_01_10.155.111.140.json")
    assert [device.device_ip for device in table.devices] == ["192.1.27.6", "192.2.27.6"]
    tool = tmp_path / "hccn_tool"
    tool.write_text('#!/bin/sh\n[ "$1 $3 $4" = "-i -ip -g" ] && echo "ipaddr:192.9.0.$2"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(hccl_tools.shutil, "which", lambda name: str(tool))
    assert hccl_tools.device_addresses([3, 12]) == {3: "192.9.0.3", 12: "192.9.0.12"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device_num", "8"], 'write "[first,end)"'),
        (["--device_num", "[4,4)"], "holds no device"),
        (["--device_num", "[8,4)"], "holds no device"),
        (["--device_num", "[a,4)"], 'write "[first,end)"'),
        (["--visible_devices", "0,1"], "needs 8 visible devices, but --visible_devices lists 2"),
        (["--visible_devices", "0,0"], "write different numbers"),
        (["--visible_devices", "0,x"], "write different numbers"),
        (["--device-number", "[0,8)"], "unrecognized arguments"),
    ],
)
def test_wrong_words_end_with_one_line(no_npu, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        hccl_tools.main(words)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(no_npu.glob("*.json"))


def test_a_host_that_is_partly_known_is_refused(no_npu, monkeypatch, capsys):
    (no_npu / "hccn.conf").write_text("address_0=192.1.27.6\n")
    with pytest.raises(SystemExit):
        hccl_tools.main(["--device_num", "[0,2)"])
    assert "device 1 has no network address on this host; known are devices 0" in (
        capsys.readouterr().err
    )

    def unknown(name):
        raise OSError("Name or service not known")

    monkeypatch.setattr(hccl_tools.socket, "gethostbyname", unknown)
    with pytest.raises(SystemExit):
        hccl_tools.main(["--device_num", "[0,1)"])
    assert "give --server_ip" in capsys.readouterr().err


# ---- ranks started by it ----


def test_rank_and_size_come_from_the_variables_and_the_table(table_file, monkeypatch):
    assert rank_table.told() is None and rank_table.num_servers() == 1
    monkeypatch.setenv("RANK_SIZE", "4")
    assert rank_table.told() is None  # no RANK_ID: nobody started this process as a rank
    monkeypatch.setenv("RANK_ID", "3")
    assert rank_table.told() == (3, 4) == launch.told_by_launcher()
    monkeypatch.delenv("RANK_SIZE")
    assert rank_table.told() is None
    table_file(document())
    assert rank_table.told() == (3, 4) and rank_table.num_servers() == 2
    monkeypatch.setenv("RANK_SIZE", "1")
    monkeypatch.delenv("RANK_TABLE_FILE")
    assert rank_table.told() is None


def test_ranks_of_a_table_share_the_cores_of_their_host(monkeypatch, table_file):
    def ranks():
        return env.ranks_of_this_host(rank_table.local_ranks())

    monkeypatch.setenv("RANK_SIZE", "4")
    assert ranks() == 1
    monkeypatch.setenv("RANK_ID", "0")
    assert ranks() == 4
    table_file(document())
    assert ranks() == 2
    monkeypatch.setenv("RANK_ID", "9")
    assert ranks() == 1  # a mistake that is reported when the job starts
    monkeypatch.setenv("RANK_ID", "0")
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    assert ranks() == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK_ID": 0, "RANK_SIZE": 8}, "RANK_SIZE is 8, but RANK_TABLE_FILE .* lists 4 ranks"),
        ({"RANK_ID": 4, "RANK_SIZE": 4}, "RANK_ID is 4; with RANK_SIZE 4 it must be 0 to 3"),
        ({"RANK_ID": -1}, "RANK_ID is -1"),
        ({"RANK_ID": "first"}, "RANK_ID is 'first'; it must be an integer"),
        ({"RANK_ID": 1, "DEVICE_ID": 5}, "DEVICE_ID of rank 1 is 5, but .* device 1"),
    ],
)
def test_variables_that_contradict_the_table_are_refused(table_file, variables, message):
    table_file(document(), **variables)
    with pytest.raises(ValueError, match=message):
        rank_table.prepare(with_devices=True)


@pytest.mark.parametrize(
    ("servers", "variables", "address", "device"),
    [
        (2, {"RANK_ID": 3}, ("10.0.0.0", 8118), 1),
        (1, {"RANK_ID": 1}, ("127.0.0.1", 8118), 1),
        (2, {"RANK_ID": 3, "MS_SCHED_PORT": 9000}, ("10.0.0.0", 9000), 1),
        (2, {"RANK_ID": 3, "MS_SCHED_HOST": "10.9.9.9"}, ("10.9.9.9", 8118), 1),
        (2, {"RANK_ID": 3, "DEVICE_ID": 0}, ("10.0.0.0", 8118), 0),
        (0, {"RANK_ID": 1, "RANK_SIZE": 2}, ("127.0.0.1", 8118), None),
        (0, {"RANK_ID": 1, "RANK_SIZE": 2, "DEVICE_ID": 7}, ("127.0.0.1", 8118), 7),
    ],
)
def test_a_rank_becomes_a_worker_of_msrun(
    table_file, monkeypatch, servers, variables, address, device
):
    if servers:
        table_file(document(servers), **variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(
        msrun_worker.scheduler, "start_process", lambda ranks: pytest.fail("rank 0's task")
    )
    before = dict(os.environ)
    try:
        rank_table.prepare(with_devices=False)
        host, port = address
        wanted = {"MS_ROLE": "MS_WORKER", "MS_SCHED_HOST": host, "MS_SCHED_PORT": str(port)}
        rank = str(variables["RANK_ID"])
        assert os.environ.items() >= {**wanted, "MS_NODE_ID": rank, "RANK_ID": rank}.items()
        assert os.environ["MS_WORKER_NUM"] == str(2 * servers or 2)
        assert os.environ.get("DEVICE_ID") == (None if device is None else str(device))
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_rank_0_refuses_an_address_that_is_taken(monkeypatch):
    with msrun_worker.socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        before = dict(os.environ)
        try:
            with pytest.raises(RuntimeError, match=f"127.0.0.1:{port} .*set MS_SCHED_PORT"):
                msrun_worker.become(0, 2, ("127.0.0.1", port), 0)
        finally:
            os.environ.clear()
            os.environ.update(before)


def test_other_launchers_come_first(monkeypatch):
    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setenv("RANK_SIZE", "2")
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "3")
    assert launch.told_by_launcher() == (3, 4)
