# SPDX-License-Identifier: Apache-2.0
"""Questions and answers become the files that instruction data is trained on."""

import json
import random
import shutil

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mindspeed_ms.command.instruction_files import Reader, knapsacks
from mindspeed_ms.command.preprocess import main
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.instruction_dataset import KEYS, prefix_of
from mindspeed_ms.data.tokenizers import HuggingFaceTokenizer
from mindspeed_ms.data.tokenizers.byte_level import symbols_of_bytes
from mindspeed_ms.data.tokenizers.prompt_templates import (
    TEMPLATES,
    PromptWriter,
    prompt_template,
)
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer

OUT = -100
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[gMASK]", "sop"]
SPECIAL += ["<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of bytes, with the special tokens of several models."""
    path = tmp_path_factory.mktemp("tokenizer")
    vocab = {symbol: byte for byte, symbol in symbols_of_bytes().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return HuggingFaceTokenizer(folder)


def turns(tokenizer, name, messages, system="", **more):
    """Texts of questions and answers, special tokens spelled out."""
    writer = PromptWriter(prompt_template(name), tokenizer, **more)
    roles = ("user", "assistant")
    chat = [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]
    return [tuple(map(tokenizer.detokenize, pair)) for pair in writer.turns(chat, system)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qwen",
            [
                "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
                "b<|im_end|>",
                "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
                "d<|im_end|>",
            ],
        ),
        (
            "llama3",
            [
                "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
                "b<|eot_id|>",
                "<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
                "d<|eot_id|>",
            ],
        ),
        ("mistral", ["<s>[INST] a [/INST]", "b</s>", "[INST] c [/INST]", "d</s>"]),
        (
            "deepseek3",
            ["<s><｜User｜>a<｜Assistant｜>", "b</s>", "<｜User｜>c<｜Assistant｜>", "d</s>"],
        ),
        ("default", ["Human: a\nAssistant:", "b</s>", "\nHuman: c\nAssistant:", "d</s>"]),
        (
            "chatglm3",
            [
                "[gMASK]sop<|user|>\na<|assistant|>",
                "\nb",
                "<|user|>\nc<|assistant|>",
                "\nd",
            ],
        ),
    ],
)
def test_templates_write_turns(tokenizer, name, expected):
    pairs = turns(tokenizer, name, ["a", "b", "c", "d"])
    assert [part for pair in pairs for part in pair] == expected


def test_a_system_message_goes_where_the_template_has_it(tokenizer):
    assert turns(tokenizer, "llama2", ["a", "b"], "be kind")[0][0] == (
        "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\na [/INST]"
    )
    assert turns(tokenizer, "deepseek2", ["a", "b"], "be kind")[0][0] == (
        "<s>be kind\n\nUser: a\n\nAssistant:"
    )


@pytest.mark.parametrize(
    ("thinks", "asked", "answered"),
    [
        (True, "", "<think>\n\n</think>\n\nb<|im_end|>\n"),
        (False, "<think>\n\n</think>\n\n", "b<|im_end|>\n"),
        (None, "<think>\n\n</think>\n\n", "b<|im_end|>\n"),
    ],
)
def test_templates_that_think(tokenizer, thinks, asked, answered):
    question = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert turns(tokenizer, "qwen3", ["a", "b"], thinks=thinks) == [(question + asked, answered)]
    thought = "<think>\nwell\n</think>\n\nb"
    kept = turns(tokenizer, "qwen3", ["a", thought], thinks=thinks)[0][1]
    assert ("well" in kept) == (thinks is not False)


def test_every_template_is_one(tokenizer):
    for name in TEMPLATES:
        template = prompt_template(name)
        assert any("{{content}}" in piece for piece in template.user if isinstance(piece, str))


def test_a_file_of_templates_is_read(tmp_path, tokenizer):
    path = tmp_path / "templates.json"
    slots = [["bos_token"], "Q: {{content}}", {"token": "<|assistant|>"}]
    path.write_text(json.dumps([{"name": "mine", "format_user": {"slots": slots}}]))
    writer = PromptWriter(prompt_template("mine", str(path)), tokenizer)
    (pair,) = writer.turns(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert list(map(tokenizer.detokenize, pair)) == ["<s>Q: a<|assistant|>", "b</s>"]
    with pytest.raises(ValueError, match="'yours' is unknown in .*; use one of mine, or correct"):
        prompt_template("yours", str(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop_words": 1}, "has stop_words 1; it is a list of texts"),
        ({"default_system": [None]}, "has default_system .None.; it is a list of texts"),
        ({"thought_words": ["<a>"]}, "has 1 thought_words; give two"),
        ({"format_user": [[[]]]}, "has format_user .*; slots are texts"),
        ({"replace_eos": True}, "has replace_eos without stop_words"),
    ],
)
def test_a_template_of_wrong_values_is_refused(tmp_path, given, message):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps([{"name": "mine", **given}]))
    with pytest.raises(ValueError, match=f"template mine {message}"):
        prompt_template("mine", str(path))


def written(tmp_path, folder, records, *flags):
    source = tmp_path / "records.json"
    source.write_text(json.dumps(records))
    prefix = str(tmp_path / "out")
    words = ["--input", str(source), "--output-prefix", prefix]
    words += ["--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", folder]
    assert main([*words, *flags]) == 0
    stores = [IndexedDataset(prefix_of(prefix, key)) for key in KEYS]
    assert all(store.dtype == np.int32 for store in stores)
    return [tuple(store[n].tolist() for store in stores) for n in range(len(stores[0]))]


ALPACA = [
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"instruction": "name", "input": "", "output": "Bo", "history": [["hi", "ho"]]},
]
TALKS = [
    {
        "conversations": [
            {"from": "system", "value": "be kind"},
            {"from": "human", "value": "add\n1 2"},
            {"from": "gpt", "value": "3"},
        ]
    },
    {"conversations": [{"from": "human", "value": "name"}, {"from": "gpt", "value": "Bo"}]},
]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_alpaca_records(tmp_path, folder, tokenizer, workers):
    flags = ["--handler-name", "AlpacaStyleInstructionHandler", "--prompt-type", "qwen"]
    keys = '{"prompt": "instruction", "query": "input", "response": "output", "history": "history"}'
    rows = written(tmp_path, folder, ALPACA, *flags, "--map-keys", keys, "--workers", workers)
    ids, mask, labels = rows[0]
    assert tokenizer.detokenize(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nadd\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>"
    )
    assert mask == [1] * len(ids)
    assert labels == [OUT] * (len(ids) - 2) + ids[-2:]
    learned = [one for one in rows[1][2] if one != OUT]
    assert tokenizer.detokenize(learned) == "ho<|im_end|>Bo<|im_end|>"


def test_conversations_by_the_tokenizers_own_chat_template(tmp_path, folder, tokenizer):
    rows = written(tmp_path, folder, TALKS, "--handler-name", "SharegptStyleInstructionHandler")
    ids, _, labels = rows[0]
    assert tokenizer.detokenize(ids) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nadd\n1 2<|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n"
    )
    assert tokenizer.detokenize([one for one in labels if one != OUT]) == "3<|im_end|>"


def test_the_two_styles_write_the_same(tmp_path, folder):
    flags = ["--prompt-type", "default", "--append-eod"]
    first = written(
        tmp_path, folder, ALPACA[:1], "--handler-name", "AlpacaStyleInstructionHandler", *flags
    )
    talks = [{"conversations": TALKS[0]["conversations"][1:]}]
    second = written(
        tmp_path, folder, talks, "--handler-name", "SharegptStyleInstructionHandler", *flags
    )
    assert first == second


@pytest.mark.parametrize("neat", [False, True])
def test_packs_hold_several_records(tmp_path, folder, tokenizer, neat, caplog):
    records = [{"instruction": "q" * n, "output": "a" * n} for n in (3, 9, 4, 1, 30)]
    flags = ["--handler-name", "AlpacaStyleInstructionHandler", "--prompt-type", "empty", "--pack"]
    more = ["--neat-pack"] if neat else []
    rows = written(tmp_path, folder, records, *flags, "--seq-length", "25", *more)
    assert {len(values) for row in rows for values in row} == {25}
    texts = [tokenizer.detokenize(ids) for ids, _, _ in rows]
    if neat:
        assert texts[0] == "q" * 24 + "<pad>"  # too long: its end is cut off
        assert "1 records lost their ends" in caplog.text
    else:
        assert "1 records are left out, as they are longer" in caplog.text
    ids, mask, labels = rows[-2]
    assert texts[-2] == "q" * 9 + "a" * 9 + "q" * 3 + "a" * 3 + "<pad>"
    assert mask == ([1] * 18 + [2] * 6 + [0] if neat else [1] * 25)
    asked = [OUT] * 9 + ids[9:18] + [OUT] * 3 + ids[21:24] + [OUT]
    assert labels == asked


def test_lengths_that_fit_go_together():
    assert list(knapsacks({5: 1, 3: 2, 2: 1}, 7)) == [[5, 2], [3, 3]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt-type", "qwen"], "--prompt-type is of instruction data"),
        (["--pack"], "say how long they are with --seq-length"),
        (["--neat-pack"], "add --pack"),
        (["--map-keys", '{"question": "q"}'], "--map-keys names 'question'"),
        (["--prompt-type", "none"], "prompt type 'none' is unknown"),
        (["--prompt-type", "gemma"], "can be used"),
    ],
)
def test_mistakes_are_one_line(tmp_path, folder, flags, message, capsys):
    handler = ["--handler-name", "AlpacaStyleInstructionHandler"]
    if "qwen" in flags:
        handler = []
    with pytest.raises(SystemExit) as failure:
        written(tmp_path, folder, [{"instruction": "a"}], *handler, *flags)
    assert failure.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_records_that_cannot_be_used_are_counted(tmp_path, folder, caplog):
    talks = [*TALKS, {"conversations": TALKS[0]["conversations"][:2]}]
    flags = ["--handler-name", "SharegptStyleInstructionHandler", "--prompt-type", "qwen"]
    assert len(written(tmp_path, folder, talks, *flags)) == 2
    assert "1 records are left out; the first" in caplog.text
    assert "record 3: it has 1 messages" in caplog.text


ODD = [None, 0, 5, True, "", "ab", [], ["a"], ["a", "b"], [["a", 1]], [3], {}, {"a": 1}, [{}]]
ODD += [[{"from": value, "value": "x"}] for value in (None, [], {}, "human", "gpt", "system")]
ODD += [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]]
ODD += [[{"role": value, "content": "x"}] for value in (None, [], {}, "user", "assistant")]
ODD += [[{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{}]}]]
ODD += [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]]
ODD += [[{"from": "human", "value": 3}, {"from": "gpt", "value": None}]]


@pytest.mark.parametrize(
    "handler",
    [
        *("AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler"),
        "OpenAIInstructionHandler",
    ],
)
def test_records_of_any_values_are_read_or_named(handler):
    reader = Reader(handler)
    names = [name for name in reader.columns.values() if isinstance(name, str)]
    draw = random.Random(3)
    read = 0
    for _ in range(4000):
        record = {name: draw.choice(ODD) for name in names}
        try:
            chat = reader.chat(record)
        except ValueError as error:
            assert str(error).startswith("it") or str(error).startswith("message"), error
        else:
            texts = [chat.system, *(one["content"] for one in chat.messages)]
            assert all(isinstance(one, str) for one in texts)
            read += 1
    assert 0 < read < 4000


TOOL = {
    "name": "weather",
    "description": "tells it",
    "parameters": {
        "type": "object",
        "properties": {
            "town": {"type": "string", "description": "where"},
            "unit": {"type": "string", "description": "of what", "enum": ["C", "F"]},
            "days": {"type": "array", "description": "when", "items": {"type": "integer"}},
        },
        "required": ["town"],
    },
}
CALL = {"name": "weather", "arguments": {"town": "Köln"}}
CALLING = {
    "conversations": [
        {"from": "human", "value": "warm?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "yes"},
    ],
    "tools": json.dumps([TOOL]),
}
WRAPPED = {"type": "function", "function": TOOL}
OPENAI = {
    "messages": [
        {"role": "user", "content": "warm?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": CALL}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "21"},
        {"role": "assistant", "content": "yes"},
    ],
    "tools": [WRAPPED],
}
TOOL_TEMPLATE = (
    "{% if tools %}T{% for tool in tools %}{{ tool | tojson }}{% endfor %}\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% for call in message.tool_calls %}<call>{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)
IN_SHAREGPT = '{"messages": "conversations", "tools": "tools"}'


def test_calls_and_tools_by_a_prompt_type(tmp_path, folder, tokenizer):
    flags = ["--handler-name", "SharegptStyleInstructionHandler", "--prompt-type", "default"]
    ((ids, _, labels),) = written(tmp_path, folder, [CALLING], *flags, "--map-keys", IN_SHAREGPT)
    assert tokenizer.detokenize(ids) == (
        "You have access to the following tools:\n"
        "> Tool Name: weather\nTool Description: tells it\nTool Args:\n"
        "  - town (string, required): where\n"
        "  - unit (string): of what, should be one of [C, F]\n"
        "  - days (array): when, where each item should be integer\n\n"
        "Use the following format if using a tool:\n```\nAction: tool name (one of [weather]).\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n\n'
        'Human: warm?\nAssistant:Action: weather\nAction Input: {"town": "Köln"}</s>'
        "\nHuman: 21\nAssistant:yes</s>"
    )
    assert tokenizer.detokenize([one for one in labels if one != OUT]) == (
        'Action: weather\nAction Input: {"town": "Köln"}</s>yes</s>'
    )


def test_several_calls_with_a_thought_by_a_prompt_type(tmp_path, folder, tokenizer):
    talk = [dict(one) for one in CALLING["conversations"]]
    talk[1]["value"] = "<think>\nask\n</think>\n\n" + json.dumps([CALL, CALL])
    record = {"conversations": talk, "tools": [WRAPPED]}
    flags = ["--handler-name", "SharegptStyleInstructionHandler", "--map-keys", IN_SHAREGPT]
    ((ids, _, labels),) = written(tmp_path, folder, [record], *flags, "--prompt-type", "qwen3")
    text = tokenizer.detokenize(ids)
    assert f"<tools>\n{json.dumps(WRAPPED)}\n</tools>" in text
    assert "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>" in text
    call = '<tool_call>\n{"name": "weather", "arguments": {"town": "Köln"}}\n</tool_call>'
    learned = tokenizer.detokenize([one for one in labels if one != OUT])
    assert learned == f"<think>\nask\n</think>{call}\n{call}<|im_end|>\nyes<|im_end|>\n"
    with pytest.raises(ValueError, match="writes one call without a text, not 2"):
        reader = Reader(flags[1], json.loads(IN_SHAREGPT))
        writer = PromptWriter(prompt_template("qwen"), tokenizer)
        writer.turns(reader.chat(record).messages)


@pytest.mark.parametrize(
    ("record", "flags"),
    [
        (CALLING, ["SharegptStyleInstructionHandler", "--map-keys", IN_SHAREGPT]),
        (OPENAI, ["OpenAIInstructionHandler"]),
    ],
    ids=["ShareGPT", "OpenAI"],
)
def test_calls_and_tools_by_the_tokenizers_own_chat_template(
    tmp_path, folder, tokenizer, record, flags
):
    """Ids and masks of ``transformers``, which the tests of chat templates compare with."""
    path = tmp_path / "tools"
    shutil.copytree(folder, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": TOOL_TEMPLATE})
    )
    ((ids, _, labels),) = written(tmp_path, str(path), [record], "--handler-name", *flags)
    own = AutoTokenizer.from_pretrained(str(path)).apply_chat_template(
        OPENAI["messages"][:1] + [OPENAI["messages"][1] | {"content": ""}] + OPENAI["messages"][2:],
        tools=[WRAPPED],
        return_assistant_tokens_mask=True,
    )
    assert ids == own["input_ids"]
    mask = own["assistant_masks"]
    assert labels == [one if kept else OUT for one, kept in zip(ids, mask, strict=True)]
    assert tokenizer.detokenize([one for one in labels if one != OUT]) == (
        '<call>weather{"town": "Köln"}<|im_end|>yes<|im_end|>'
    )


@pytest.mark.parametrize(("left", "word"), [("tools", "tools"), ("messages", "tool_calls")])
def test_a_chat_template_that_writes_no_tools_is_named(tmp_path, folder, left, word, capsys):
    plain = {"tools": [], "messages": [OPENAI["messages"][0], OPENAI["messages"][3]]}
    record = {**plain, left: OPENAI[left]}
    with pytest.raises(SystemExit):
        written(tmp_path, folder, [record], "--handler-name", "OpenAIInstructionHandler")
    line = f"record 1: it has {word}, which the chat template does not write"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": "{"}, "its tools '{' is no JSON"),
        ({"tools": [3]}, "its tools .3. are no list of JSON schemas"),
        ({"tools": [{"parameters": {}}]}, "its tool .* has no name"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last of which is no answer"),
        (
            {"messages": [OPENAI["messages"][1] | {"tool_calls": [{}]}]},
            "its call .* has no name",
        ),
        ({"messages": [{"role": "critic", "content": "a"}]}, "message 1 is of 'critic', out of"),
    ],
)
def test_tools_and_calls_that_are_none_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Reader("OpenAIInstructionHandler").chat({**OPENAI, **change})
