# SPDX-License-Identifier: Apache-2.0
"""A folder from the hub goes in and comes out with nothing lost; what is missing is added."""

import base64
import http.server
import json
import subprocess
import sys
import threading

import hf_models
import numpy as np
import pytest

from mindspeed_ms import AutoModel, AutoTokenizer
from mindspeed_ms.formats import companions, own_format
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.toolkit.models import hub_upload
from mindspeed_ms.toolkit.models.file_size import file_size
from mindspeed_ms.training.conversion import ConvertOptions, convert

FILES = {
    "generation_config.json": '{"eos_token_id": [2, 3], "temperature": 0.6, "top_p": null}',
    "tokenizer.json": '{"any": "bytes"}',
    "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}',
    "special_tokens_map.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/rag.jinja": "{{ documents }}",
    "README.md": "# A model of somebody's",
    "LICENSE": "terms",
}


@pytest.fixture
def source(tmp_path):
    """A folder as it is downloaded; the vocabulary has 61 rows, which nothing divides."""
    folder = tmp_path / "source"
    hf_models.write(folder, "llama")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("config.json", "model.safetensors")
    }


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def tensors(folder):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= {
            name: (array.dtype, array.shape, array.tobytes())
            for name, array in load_file(file).items()
        }
    return found


@pytest.mark.parametrize("between", ["mindspeed_ms", "megatron", "mindspore", "huggingface"])
def test_through_every_format_nothing_is_lost(between, source, tmp_path):
    options = ConvertOptions(to=between, tensor=2 if between == "megatron" else 1)
    convert(source, tmp_path / "between", options)
    report = convert(tmp_path / "between", tmp_path / "back", ConvertOptions(to="huggingface"))
    assert config_of(tmp_path / "back") == config_of(source)
    assert list(config_of(tmp_path / "back")) == list(config_of(source))
    assert contents(tmp_path / "back") == contents(source)
    assert tensors(tmp_path / "back") == tensors(source)
    assert any("carried along: " in note for note in report.notes)


def test_a_model_in_memory_takes_its_files_along(source, tmp_path):
    model = AutoModel.from_pretrained(source)
    assert model.generation_config["eos_token_id"] == [2, 3]
    for form in ("huggingface", "mindspeed_ms"):
        model.save_pretrained(tmp_path / form, format=form)
    again = AutoModel.from_pretrained(tmp_path / "mindspeed_ms")
    assert again.generation_config == json.loads(FILES["generation_config.json"])
    again.save_pretrained(tmp_path / "last")
    for folder in (tmp_path / "huggingface", tmp_path / "last"):
        assert config_of(folder) == config_of(source)
        kept = contents(folder)
        generation = json.loads(kept.pop("generation_config.json"))
        assert generation == json.loads(FILES["generation_config.json"])
        assert kept == {k: v for k, v in contents(source).items() if k in kept}
        assert len(kept) == len(FILES) - 1


def test_files_are_split_and_indexed(source, tmp_path):
    options = ConvertOptions(to="huggingface", max_shard_bytes=file_size("20KB"))
    convert(source, tmp_path / "parts", options)
    files = sorted(tmp_path.glob("parts/*.safetensors"))
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_text())
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    assert all(path.stat().st_size < 20_000 + 4096 for path in files)
    assert tensors(tmp_path / "parts") == tensors(source)
    assert index["weight_map"].keys() == tensors(source).keys()
    assert index["metadata"]["total_size"] == sum(len(item[2]) for item in tensors(source).values())
    logits = AutoModel.from_pretrained(source)(hf_models.IDS).asnumpy()
    parts = AutoModel.from_pretrained(tmp_path / "parts")
    np.testing.assert_array_equal(parts(hf_models.IDS).asnumpy(), logits)
    parts.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    assert tensors(tmp_path / "again") == tensors(source)


@pytest.mark.parametrize("text", ["", "5 apples", "0", "-1GB", "GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="write 5GB, 500MB or bytes"):
        file_size(text)


def test_another_model_beside_a_checkpoint_is_not_its_origin(source, tmp_path):
    convert(source, tmp_path / "own", ConvertOptions())
    stranger = tmp_path / "own" / "huggingface" / "config.json"
    stranger.write_text(json.dumps({**config_of(source), "rms_norm_eps": 1e-3}))
    index = own_format.read_index(next(tmp_path.glob("own/iter_*")))
    assert index["huggingface"]["rms_norm_eps"] == 1e-6
    convert(tmp_path / "own", tmp_path / "back", ConvertOptions(to="huggingface"))
    assert config_of(tmp_path / "back")["rms_norm_eps"] == 1e-6


def test_a_type_is_written_where_the_origin_has_it(source, tmp_path):
    convert(source, tmp_path / "half", ConvertOptions(to="huggingface", dtype="BF16"))
    assert config_of(tmp_path / "half") == {**config_of(source), "torch_dtype": "bfloat16"}
    plain = config_of(source)
    del plain["torch_dtype"]
    (source / "config.json").write_text(json.dumps(plain))
    convert(source, tmp_path / "same", ConvertOptions(to="huggingface"))
    assert config_of(tmp_path / "same") == plain


# ---- the command ----


def tool(*words):
    command = [sys.executable, "tools/convert_ckpt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_trained_model_gets_its_tokenizer_and_ids(tmp_path, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    hf_models.write(tmp_path / "source", "llama", eos_token_id=None, bos_token_id=None)
    convert(tmp_path / "source", tmp_path / "own", ConvertOptions())
    folder = next(tmp_path.glob("own/iter_*"))
    index = own_format.read_index(folder)
    index["config"]["dataset_config"] |= {
        "tokenizer_type": "SentencePieceTokenizer",
        "tokenizer_model": "data/tiny/tok.model",
    }
    del index["seal"]
    own_format.write_index(folder, index)
    done = tool("convert", tmp_path / "own", tmp_path / "hub", "--to", "huggingface")
    assert done.returncode == 0, done.stderr
    assert "tokenizer: data/tiny/tok.model" in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    theirs = AutoTokenizer.from_pretrained("data/tiny/tok.model")
    text = "The lamp, and 3 hats."
    assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    written = config_of(tmp_path / "hub")
    assert written["eos_token_id"] == theirs.eos_token_id is not None
    generation = json.loads((tmp_path / "hub/generation_config.json").read_text())
    assert generation["eos_token_id"] == theirs.eos_token_id
    card = (tmp_path / "hub/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "LlamaForCausalLM" in card


def test_without_a_terminal_there_is_no_bar(source, tmp_path):
    done = tool(
        "convert", source, tmp_path / "a", "--to", "huggingface", "--max-shard-size", "20KB"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.glob("a/*.safetensors"))) > 2
    wrong = tool("convert", source, tmp_path / "b", "--push-to-hub", "a/b")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--push-to-hub uploads Hugging Face models" in wrong.stderr


# ---- the hub ----


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload of small files calls."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests.append((self.path.partition("?")[0], body, dict(self.headers)))
        status, result = 200, {}
        if self.server.refuses:
            status, result = 401, {"error": "Invalid credentials"}
        elif self.path.endswith("/repos/create"):
            address = f"http://127.0.0.1:{self.server.server_port}/o/tiny"
            result = {"url": address, "id": "o/tiny", "name": "o/tiny"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            result["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in files
            ]
        elif "/commit/" in self.path:
            address = f"{self.server.address}/o/tiny/commit/1"
            result = {"commitUrl": address, "commitOid": "1", "success": True}
        data = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *unused):
        pass


@pytest.fixture
def hub(monkeypatch):
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.refuses = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield server
    server.shutdown()


def uploaded(hub):
    (commit,) = [body for path, body, _ in hub.requests if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }


def test_a_folder_arrives_at_the_hub(hub, source):
    address = hub_upload.push_to_hub(source, "o/tiny", token="hf_secret", endpoint=hub.address)
    assert address == f"{hub.address}/o/tiny/commit/1"
    files = uploaded(hub)
    assert files == contents(source) | {
        "config.json": (source / "config.json").read_bytes(),
        "model.safetensors": (source / "model.safetensors").read_bytes(),
    }
    assert {headers.get("authorization") for _, _, headers in hub.requests} == {"Bearer hf_secret"}


def test_a_model_is_pushed_when_it_is_saved(hub, source, tmp_path):
    model = AutoModel.from_pretrained(source)
    options = {"repo_id": "o/tiny", "token": "hf_secret", "endpoint": hub.address}
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, **options)
    written = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert uploaded(hub)["model.safetensors"] == written
    hub.requests.clear()
    model.push_to_hub(**options)
    assert "generation_config.json" in uploaded(hub)


def test_a_hub_that_refuses(hub, source, tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        hub_upload.push_to_hub(tmp_path, "o/tiny", token="hf_x", endpoint=hub.address)
    hub.refuses = True
    with pytest.raises(OSError, match="401"):
        hub_upload.push_to_hub(source, "o/tiny", token="hf_x", endpoint=hub.address)


def test_counts_of_parameters():
    assert companions._count(12_848_143_360) == "12.8B"


@pytest.mark.parametrize("kind", hf_models.CONFIGS)
def test_what_is_written_anew_has_no_value_that_transformers_refuses(kind):
    """Its classes take no null for these keys, whatever a file may leave out."""
    family = family_of_type(hf_models.CONFIGS[kind]["model_type"])
    written = family.config_json(family.config(hf_models.CONFIGS[kind]), 61)
    assert {key for key, value in written.items() if value is None} <= {"sliding_window"}
