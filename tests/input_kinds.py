# SPDX-License-Identifier: Apache-2.0
"""The files that a run reads beside its checkpoints: how sound ones are made, and are read.

What ``read`` returns compares equal for equal contents.
"""

from __future__ import annotations

import importlib
import json
import shutil
import struct
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore.mindrecord import FileWriter

from mindspeed_ms import AutoTokenizer, GenerationConfig
from mindspeed_ms.backend import rank_table
from mindspeed_ms.backend.torchrun import deepspeed
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.distillation import Distillation, LoadOptions
from mindspeed_ms.data.gpt_dataset import GPTDataset
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from mindspeed_ms.data.sft_dataset import SFTDataset, SFTLowLevelDataset
from mindspeed_ms.data.token_rows import open_rows
from mindspeed_ms.data.tokenizers import build_tokenizer
from mindspeed_ms.data.tokenizers.text_sources import records_of
from mindspeed_ms.data.utils import Split
from mindspeed_ms.engine.observe.tensorboard import cut_events, scalar_event
from mindspeed_ms.formats import peft
from mindspeed_ms.formats.huggingface import read_config
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.toolkit.data.conversations import Writer
from mindspeed_ms.toolkit.data.sources import Source
from mindspeed_ms.toolkit.trainer.callbacks import TrainerState

TESTS = Path(__file__).parent
TEXT = "a cat and a hat, 12 dogs é"


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        make: fills a folder.
        read: what a run takes from the folder.
        optional: names of files that readers do without.
        plain: names of texts of which a part is a text.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    optional: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


def _write(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


# --- launch ---------------------------------------------------------------------------------------


def _make_table(folder: Path) -> None:
    servers = [
        {
            "server_id": f"10.0.0.{host}",
            "device": [
                {"device_id": str(n), "device_ip": f"10.1.{host}.{n}", "rank_id": str(2 * host + n)}
                for n in (0, 1)
            ],
            "host_nic_ip": "reserve",
        }
        for host in (0, 1)
    ]
    table = {"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"}
    _write(folder / "t.json", table)


def _read_table(folder: Path) -> object:
    return rank_table.read(folder / "t.json")


def _make_hosts(folder: Path) -> None:
    _write(folder / "hostfile", "# hosts\nworker-1 slots=8\nworker-2\tslots=8  # second\n\n")


def _read_hosts(folder: Path) -> object:
    words = ["--hostfile", str(folder / "hostfile"), "--node_rank", "0", "train.py"]
    return deepspeed.requested(words, {})


# --- tokenizers -----------------------------------------------------------------------------------


def _made_with(tokenizer: object) -> object:
    ids = tokenizer.tokenize(TEXT)  # type: ignore[attr-defined]
    assert all(0 <= one < tokenizer.vocab_size for one in ids), ids  # type: ignore[attr-defined]
    return ids, tokenizer.detokenize(ids), tokenizer.vocab_size, tokenizer.eod  # type: ignore[attr-defined]


def _trained() -> object:
    tokenizers = importlib.import_module("tokenizers")
    steps = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = steps(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        initial_alphabet=steps.alphabet(),
        show_progress=False,
        special_tokens=["<|endoftext|>"],
    )
    tokenizer.train_from_iterator([TEXT] * 9, trainer)
    return tokenizer


def _make_gpt2(folder: Path) -> None:
    _trained().model.save(str(folder))  # type: ignore[attr-defined]


def _read_gpt2(folder: Path) -> object:
    files = {"vocab_file": str(folder / "vocab.json"), "merge_file": str(folder / "merges.txt")}
    return _made_with(build_tokenizer("GPT2BPETokenizer", **files))


def _make_hub_tokenizer(folder: Path) -> None:
    _trained().save(str(folder / "tokenizer.json"))  # type: ignore[attr-defined]
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"},
    )
    _write(
        folder / "chat_template.jinja",
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    )


def _read_hub_tokenizer(folder: Path) -> object:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(TEXT)["input_ids"]
    talk = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "a"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return ids, tokenizer.decode(ids), text, tokenizer.eos_token_id


def _make_sentencepiece(folder: Path) -> None:
    _write(folder / "text", f"{TEXT}\n" * 50)
    importlib.import_module("sentencepiece").SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "t"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "text").unlink()
    (folder / "t.vocab").unlink()


def _read_sentencepiece(folder: Path) -> object:
    found = build_tokenizer("SentencePieceTokenizer", tokenizer_model=str(folder / "t.model"))
    return _made_with(found)


def _make_tiktoken(folder: Path) -> None:
    entries = [
        {"rank": n, "token_bytes": _base64(bytes([n])), "token_str": chr(n)} for n in range(256)
    ]
    entries.append({"rank": 256, "token_bytes": _base64(b"at"), "token_str": "at"})
    _write(folder / "v.json", entries)


def _base64(data: bytes) -> str:
    return importlib.import_module("base64").b64encode(data).decode()


def _read_tiktoken(folder: Path) -> object:
    found = build_tokenizer(
        "TikTokenizer",
        tokenizer_model=str(folder / "v.json"),
        tiktoken_pattern="v1",
        vocab_size=266,
        tiktoken_num_special_tokens=10,
    )
    return _made_with(found)


def _make_generation(folder: Path) -> None:
    options = {
        "max_length": 40,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "eos_token_id": [1, 2],
        "pad_token_id": 0,
        "bad_words_ids": [[1, 2], [3]],
        "stop_strings": ["x"],
        "repetition_penalty": 1.1,
        "num_beams": 1,
        "use_cache": True,
    }
    _write(folder / "generation_config.json", options)


def _read_generation(folder: Path) -> object:
    return GenerationConfig.from_pretrained(str(folder)).to_dict()


# --- adapters -------------------------------------------------------------------------------------

_MODEL = TESTS / "data" / "peft" / "llama_patterns"
_EXPERTS = TESTS / "data" / "peft" / "mixtral_experts"


def _adapters_of(model: Path) -> Kind:
    theirs = read_config(model / "config.json")
    family = family_of_type(theirs["model_type"])

    def make(folder: Path) -> None:
        shutil.copytree(model / "adapter", folder, dirs_exist_ok=True)
        for path in folder.iterdir():
            if path.name not in (peft.CONFIG, peft.WEIGHTS):
                path.unlink()

    def read(folder: Path) -> object:
        options = peft.read_options(folder)
        sections = family.sections(theirs) | {"lora_config": peft.section_of(options)}
        spec = gpt_spec(assemble(sections).model_config)
        arrays = peft.values(peft.read_catalog(folder, spec, [family]))
        return {name: (array.shape, array.tobytes()) for name, array in arrays.items()}

    return Kind(make, read)


# --- resuming -------------------------------------------------------------------------------------


def _make_state(folder: Path) -> None:
    history = [{"loss": 2.5, "epoch": 0.5, "step": n} for n in (1, 2)]
    state = TrainerState(0.5, 2, 4, 1.0, log_history=history, best_metric=2.0, best_global_step=2)
    state.best_model_checkpoint = "out/iter_0000002"
    state.save_to_json(folder / "trainer_state.json")


def _read_state(folder: Path) -> object:
    state = TrainerState.load_from_json(folder / "trainer_state.json")
    # What a run that goes on does with it.
    history = [one for one in state.log_history if one["step"] <= 5]
    best = state.best_metric is None or state.best_metric < 1.0, (state.best_global_step or 0) <= 5
    steps = (state.epoch or 0.0) + state.global_step
    return steps, history, best, Path(state.best_model_checkpoint or "")


def _make_events(folder: Path) -> None:
    records = importlib.import_module("tensorboardX.record_writer")
    file = records.RecordWriter(str(folder / "events.out.tfevents.1.host.1"))
    for step in range(1, 9):
        file.write(scalar_event({"lm loss": 1.0 / step}, step, 1e9))
    file.close()


def _read_events(folder: Path) -> object:
    """Whatever the file is: the run goes on, and what was not taken out is there as it was."""
    path = folder / "events.out.tfevents.1.host.1"
    before = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    cut_events(folder, 4, 16)
    if before is None:
        return "no file"
    after, at = path.read_bytes(), 0
    for byte in after:  # a part of what was there, in its order
        at = before.index(byte, at) + 1
    complete = [step for step, _, _ in _steps(after)]
    lost = [
        step for step, start, end in _steps(before) if step <= 4 and before[start:end] not in after
    ]
    assert not lost, f"lost {len(lost)} events"
    return "cut" if complete == [1, 2, 3, 4] else "kept"


def _steps(data: bytes) -> list[tuple[int, int, int]]:
    """Step, start and end of the events that are whole."""
    event = importlib.import_module("tensorboardX.proto.event_pb2").Event
    found, at = [], 0
    while at + 16 <= len(data):
        end = at + 16 + struct.unpack_from("<Q", data, at)[0]
        if end > len(data):
            break
        try:
            found.append((event.FromString(data[at + 12 : end - 4]).step, at, end))
        except Exception:  # noqa: BLE001  (no event)
            break
        at = end
    return found


# --- data -----------------------------------------------------------------------------------------


def _make_logits(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for first in (0, 2):
        np.savez_compressed(
            folder / f"samples_{first:09d}_{first + 1:09d}__dp0_cp0.npz",
            meta=json.dumps({"identity": "data", "dtype": "fp16"}),
            samples=np.arange(first, first + 2),
            places=np.arange(6),
            values=-rng.random((6, 2, 4)).astype(np.float16),
            tokens=rng.integers(0, 50, (6, 2, 4), np.int32),
        )


def _read_logits(folder: Path) -> object:
    student = Distillation(loads=LoadOptions(folder=folder, identity="data"))
    found = [student._looked_up(np.arange(n, n + 2), np.arange(6)) for n in (0, 2)]
    return [(part.shape, part.tobytes()) for pair in found for part in pair]


def _make_index(folder: Path) -> None:
    with IndexedDatasetBuilder(str(folder / "d.bin"), DType.optimal_dtype(100)) as builder:
        for length in (5, 9, 3, 30, 17):
            builder.add_document(list(range(1, length + 1)), [length])
        builder.finalize(str(folder / "d.idx"))
    _read_index(folder)  # makes the cache


def _read_index(folder: Path) -> object:
    tokenizer = types.SimpleNamespace(vocab_size=100, eod=0, eos=0, pad=-1, unique_identifiers={})
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=8,
        split="1",
        path_to_cache=str(folder / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    low = IndexedDataset(str(folder / "d"))
    documents = np.arange(len(low.document_indices) - 1, dtype=np.int32)
    data = GPTDataset(low, "d", documents, 12, Split.train, config)
    return [data[number]["tokens"].tolist() for number in range(12)]


def _make_sft(folder: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a cat"}]
    _write(
        folder / "d.jsonl", "".join(json.dumps({"messages": talk[: n + 1]}) + "\n" for n in (1, 0))
    )


class _Writes:
    """A tokenizer of conversations by bytes."""

    vocab_size, eod, eos, pad, unique_identifiers = 300, 0, 0, 1, {}  # noqa: RUF012

    def tokenize_conversation(self, conversation):  # type: ignore[no-untyped-def]
        ids = [b for m in conversation for b in (m["role"] + m["content"]).encode()]
        return np.array(ids, np.int64), np.array(ids, np.int64)


def _read_sft(folder: Path) -> object:
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=16,
        split="1",
        tokenizer=_Writes(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    low = SFTLowLevelDataset(str(folder / "d.jsonl"))
    data = SFTDataset(low, "d", np.arange(len(low), dtype=np.int32), None, Split.train, config)
    return [data[number]["tokens"].tolist() for number in range(len(low))]


def _make_records(folder: Path) -> None:
    _write(folder / "d.jsonl", '{"text": "a"}\n{"text": "b c"}\n')
    _write(folder / "d.json", [{"instruction": "a", "output": "b"}])


class _Words:
    """A tokenizer of the high-level front, by bytes."""

    eos_token_id, chat_template = 0, None

    def __call__(self, text: str, **unused: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode("utf-8", "surrogatepass"))}


def _read_records(folder: Path) -> object:
    found = []
    for name in ("d.jsonl", "d.json"):
        source = Source.of(str(folder / name), "train_dataset")
        found.append(list(Writer(_Words()).write_all(source.records or (), "train_dataset")))
    return found, [list(records_of(str(folder / name))) for name in ("d.jsonl", "d.json")]


def _make_parquet(folder: Path) -> None:
    arrow = importlib.import_module("pyarrow")
    table = arrow.table({"text": ["a", "b c", "d"], "number": [1, 2, 3]})
    importlib.import_module("pyarrow.parquet").write_table(table, folder / "d.parquet")
    with arrow.OSFile(str(folder / "d.arrow"), "wb") as sink:
        with arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def _read_parquet(folder: Path) -> object:
    return [list(records_of(str(folder / name))) for name in ("d.parquet", "d.arrow")]


def small_writer(path: Path) -> FileWriter:
    """Writes files of the smallest pages there are."""
    writer = FileWriter(str(path), 1)
    writer.set_header_size(1 << 14)
    writer.set_page_size(1 << 15)
    return writer


def _make_mindrecord(folder: Path) -> None:
    writer = small_writer(folder / "d.mindrecord")
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "rows")
    rows = np.arange(36, dtype=np.int32).reshape(4, 9)
    writer.write_raw_data([{"input_ids": row} for row in rows])
    writer.commit()


def _read_mindrecord(folder: Path) -> object:
    rows = open_rows(str(folder / "d.mindrecord"), str(folder / "cache"))
    return rows.shape, rows.tolist()


KINDS = {
    "rank table": Kind(_make_table, _read_table),
    "hosts": Kind(_make_hosts, _read_hosts, plain=("hostfile",)),
    "gpt2": Kind(_make_gpt2, _read_gpt2),
    "tokenizer": Kind(
        _make_hub_tokenizer,
        _read_hub_tokenizer,
        ("tokenizer_config.json",),
        ("chat_template.jinja",),
    ),
    "sentencepiece": Kind(_make_sentencepiece, _read_sentencepiece),
    "tiktoken": Kind(_make_tiktoken, _read_tiktoken),
    "generation": Kind(_make_generation, _read_generation),
    "adapters": _adapters_of(_MODEL),
    "experts": _adapters_of(_EXPERTS),
    "trainer state": Kind(_make_state, _read_state),
    "events": Kind(_make_events, _read_events, plain=("events.out.tfevents.1.host.1",)),
    "logits": Kind(_make_logits, _read_logits),
    "index": Kind(_make_index, _read_index),
    "sft": Kind(_make_sft, _read_sft, plain=("d.jsonl",)),
    "records": Kind(_make_records, _read_records, plain=("d.jsonl",)),
    "parquet": Kind(_make_parquet, _read_parquet),
    "mindrecord": Kind(_make_mindrecord, _read_mindrecord),
}
