# SPDX-License-Identifier: Apache-2.0
"""Datasets in object storage, against a server on this machine that speaks S3's protocol."""

import json
import pickle
import socket
import sys

import boto3
import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.data import object_store
from mindspeed_ms.data.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from mindspeed_ms.data.gpt_dataset import GPTDataset
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig, TokenizerInfo
from mindspeed_ms.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from mindspeed_ms.data.object_store import RemoteFile
from mindspeed_ms.data.token_rows import open_rows


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket, and the settings that reach it."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.01)
    fsspec.filesystem("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    yield client
    for item in client.list_objects_v2(Bucket="corpus").get("Contents", []):
        client.delete_object(Bucket="corpus", Key=item["Key"])
    client.delete_bucket(Bucket="corpus")
    fsspec.filesystem("s3").clear_instance_cache()


def write(folder, seed=0, documents=12):
    rng = np.random.default_rng(seed)
    prefix = str(folder / "text")
    with IndexedDatasetBuilder(f"{prefix}.bin", np.uint16) as builder:
        for _ in range(documents):
            length = int(rng.integers(3, 40))
            builder.add_document(rng.integers(1, 200, length), [length])
        builder.finalize(f"{prefix}.idx")
    return prefix


def upload(client, prefix):
    for end in (".bin", ".idx"):
        client.upload_file(prefix + end, "corpus", f"data/text{end}")


@pytest.mark.parametrize("protocol", ["s3", "obs"])
def test_tokens_equal_those_of_the_local_files(bucket, tmp_path, protocol):
    local = IndexedDataset(write(tmp_path))
    upload(bucket, local.path_prefix)
    far = IndexedDataset(
        f"{protocol}://corpus/data/text", object_storage_cache=str(tmp_path / "cache")
    )
    assert len(far) == len(local) and far.state == local.state
    for number in range(len(local)):
        assert np.array_equal(far[number], local[number])
    assert np.array_equal(far.get(3, 1, 2), local.get(3, 1, 2))
    again = pickle.loads(pickle.dumps(far))
    assert np.array_equal(again[5], local[5])


def test_the_index_is_copied_once_and_again_when_it_changed(bucket, tmp_path):
    upload(bucket, write(tmp_path))
    cache = tmp_path / "cache"
    url = "s3://corpus/data/text"
    first = IndexedDataset(url, object_storage_cache=str(cache))
    copy = cache / "s3/corpus/data/text.idx"
    made = copy.stat().st_mtime_ns, copy.stat().st_ino
    IndexedDataset(url, object_storage_cache=str(cache))
    assert (copy.stat().st_mtime_ns, copy.stat().st_ino) == made
    other = tmp_path / "other"
    other.mkdir()
    upload(bucket, write(other, seed=1, documents=20))
    fsspec.filesystem("s3").invalidate_cache()
    assert len(IndexedDataset(url, object_storage_cache=str(cache))) == 20 != len(first)
    assert {path.name for path in cache.rglob("*.*")} == {"text.idx", "text.idx.source.json"}
    assert json.loads(copy.with_name("text.idx.source.json").read_text())["size"] == (
        copy.stat().st_size
    )


def test_samples_equal_those_of_the_local_files(bucket, tmp_path):
    prefix = write(tmp_path, documents=40)
    upload(bucket, prefix)

    def samples(path, **more):
        config = GPTDatasetConfig(
            random_seed=7,
            sequence_length=16,
            tokenizer=TokenizerInfo(vocab_size=256, eod=0, pad=0),
            blend=([path], None),
            split="1,0,0",
            **more,
        )
        built = BlendedMegatronDatasetBuilder(GPTDataset, [30, 0, 0], lambda: True, config).build()
        return [built[0][number]["tokens"] for number in range(30)]

    cache = str(tmp_path / "cache")
    far = samples("s3://corpus/data/text", object_storage_cache_path=cache)
    assert list((tmp_path / "cache/GPTDataset_indices").glob("*-shuffle_index.npy"))
    assert all(map(np.array_equal, far, samples(prefix)))


@pytest.mark.parametrize(
    ("url", "cache", "error", "message"),
    [
        ("s3://corpus/data/none", True, FileNotFoundError, "none.idx not found; a dataset is a"),
        ("s3://corpus/data/text", False, ValueError, "give --object-storage-cache-path FOLDER"),
        ("nowhere://a/b", True, ValueError, "a kind of store that fsspec does not know; known are"),
    ],
)
def test_what_cannot_be_read_is_one_line(bucket, tmp_path, url, cache, error, message):
    upload(bucket, write(tmp_path))
    folder = str(tmp_path / "cache") if cache else None
    with pytest.raises(error, match=message) as found:
        IndexedDataset(url, object_storage_cache=folder)
    assert "\n" not in str(found.value)


def test_a_store_that_does_not_answer_is_asked_again_and_named(bucket, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(OSError, match=r"cannot be read \(.*\), 4 times; check network, endpoint"):
        RemoteFile("s3://corpus/data/text.idx")
    monkeypatch.undo()
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_file_that_became_shorter_ends_the_reading(bucket, tmp_path):
    prefix = write(tmp_path)
    upload(bucket, prefix)
    far = IndexedDataset("s3://corpus/data/text", object_storage_cache=str(tmp_path / "cache"))
    bucket.put_object(Bucket="corpus", Key="data/text.bin", Body=b"\0" * 10)
    with pytest.raises(OSError, match="text.bin"):
        far[len(far) - 1]


def test_without_the_package_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ValueError, match=r"pip install 'mindspeed_ms\[object-storage\]'"):
        RemoteFile("s3://corpus/data/text.idx")


@pytest.mark.parametrize("name", ["load_checkpoint", "output_dir"])
def test_checkpoints_need_a_file_system(name):
    with pytest.raises(ValueError, match=f"{name} s3://b/c is a URL; checkpoints are read and"):
        TrainingConfig(**{name: "s3://b/c"})


def test_other_files_need_a_file_system():
    with pytest.raises(ValueError, match="of object storage .bin/.idx pairs are read"):
        open_rows("s3://corpus/rows.npy")
