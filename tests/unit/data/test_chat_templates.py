# SPDX-License-Identifier: Apache-2.0
"""Conversations are written as ``transformers`` writes them, as recorded from it."""

import datetime
import gzip
import json
import subprocess
import sys

import chat_cases
import pytest
import tokenizer_cases as cases

from mindspeed_ms import AutoTokenizer, PreTrainedTokenizerFast
from mindspeed_ms.data.tokenizers import chat_templates
from mindspeed_ms.data.tokenizers.tool_schemas import schema_of

jinja2 = pytest.importorskip("jinja2")
tokenizers = pytest.importorskip("tokenizers")
EXPECTED = json.loads(gzip.decompress(cases.EXPECTED.read_bytes()))
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.fixture
def tokenizer(tmp_path):
    cases.generic_json(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path, bos_token="<s>")


def test_every_template_writes_every_conversation_alike(tokenizer):
    expected = EXPECTED["chat"]["written"]
    assert len(chat_cases.TEMPLATES) >= 12
    assert sum(text == "error" for text in expected.values()) < len(expected) / 2
    for name, text in chat_cases.written(tokenizer).items():
        assert text == expected[name], name


def test_ids_and_masks_are_alike(tokenizer):
    found = json.loads(json.dumps(chat_cases.encoded(tokenizer)))
    for name, result in found.items():
        assert result == EXPECTED["chat"]["encoded"][name], name
    masks = found["generation mask one"]
    learned = [
        n for n, is_on in zip(masks["input_ids"], masks["assistant_masks"], strict=True) if is_on
    ]
    assert "far away" in tokenizer.decode(learned)
    assert "harbour" not in tokenizer.decode(learned)


def test_control_tokens_of_a_user_become_text_alike(tokenizer, tmp_path):
    found = json.loads(json.dumps(chat_cases.sanitized(tokenizer)))
    assert found == EXPECTED["chat"]["sanitized"]
    clean, forged = found["chatml plain one"]["input_ids"], found["chatml off one"]["input_ids"]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert clean.count(start) == 3 < forged.count(start)
    folder = tmp_path / "pieces"
    folder.mkdir()
    cases.llama(folder)
    pieces = AutoTokenizer.from_pretrained(folder)
    found = json.loads(json.dumps(chat_cases.sanitized(pieces)))
    assert found == EXPECTED["chat"]["sanitized pieces"]


def test_a_token_that_plain_text_makes_cannot_be_text():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"lamp": 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(["lamp"])
    with pytest.raises(ValueError, match="'lamp' cannot be text: the tokenizer makes it of plain"):
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a lamp"}],
            chat_template="{{ messages[0].content }} lamp",
            sanitize_control_tokens=True,
        )


def test_functions_become_the_same_schemas():
    found = [schema_of(chat_cases.weather), schema_of(chat_cases.nothing)]
    assert json.dumps(found) == json.dumps(EXPECTED["schemas"])


def test_methods_have_no_receiver():
    class Tools:
        def add(self, a: int) -> int:
            """Add.

            Args:
                a: A number.
            """

    schema = schema_of(Tools().add)["function"]
    assert (
        list(schema["parameters"]["properties"]) == ["a"] and schema["return"]["type"] == "integer"
    )


def undocumented(a: int): ...


def untyped(a):
    """Do.

    Args:
        a: x
    """


def undescribed(a: int):
    """Do."""


def foreign(a: datetime.date):
    """Do.

    Args:
        a: x
    """


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (undocumented, "tool undocumented has no docstring"),
        (untyped, "argument a of tool untyped has no type"),
        (undescribed, "argument a of tool undescribed is not described in Args"),
        (foreign, "argument a of tool foreign has type .*no type of JSON"),
        (3, "a tool is 3; give a JSON schema or a function"),
    ],
)
def test_tools_that_cannot_be_described_are_refused(tool, message):
    with pytest.raises(ValueError, match=message):
        chat_templates.render(MESSAGES, "{{ tools }}", tools=[tool])


# ---- which template ----


def test_named_templates_and_their_order(tokenizer):
    tokenizer.chat_template = {"default": "d", "tool_use": "t", "rag": "r"}

    def text(**options):
        return tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options)

    assert text() == "d"
    assert text(tools=[chat_cases.SCHEMA]) == "t"
    assert text(chat_template="rag") == "r"
    assert text(chat_template="own") == "own"
    tokenizer.chat_template = {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match="none is the default; name one as chat_template: a, b"):
        text()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template; set tokenizer.chat_template"):
        text()


def test_templates_are_found_in_all_their_files(tmp_path):
    cases.generic_json(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == cases.CHATML
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "from jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("more")
    both = AutoTokenizer.from_pretrained(tmp_path)
    assert both.chat_template == {"default": "from jinja", "rag": "more"}
    files = both.save_pretrained(tmp_path / "saved")
    assert any(file.endswith("additional_chat_templates/rag.jinja") for file in files)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == both.chat_template
    both.chat_template = {"../escape": "x"}
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        both.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template["rag"] == "more"


# ---- what a template may do ----


def written(template, messages=MESSAGES, **options):
    return chat_templates.render(messages, template, **options).text


def test_the_date_is_todays():
    assert written("{{ strftime_now('%Y-%m') }}") == datetime.datetime.now().strftime("%Y-%m")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ dict.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ ''.format.__self__.__class__.__subclasses__() }}",
        "{{ messages[0].content.nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox_and_failures_are_one_line(template):
    with pytest.raises(ValueError, match="the chat template does not take this conversation") as e:
        written(template)
    assert "\n" not in str(e.value)


def test_a_template_that_does_not_compile_names_the_line():
    with pytest.raises(ValueError, match="has an error in line 2: "):
        written("a\n{% if %}")


def test_a_template_sees_plain_data_only():
    class Word(str):
        def shout(self):
            return self.upper()

    messages = [{"role": Word("user"), "content": [1.5, None, object(), {"a": b"x"}]}]
    assert written("{{ messages[0].content | tojson }}", messages) == (
        '[1.5, null, "<object>", {"a": "<bytes>"}]'
    )
    with pytest.raises(ValueError, match="does not take"):
        written("{{ messages[0].role.shout() }}", messages)
    assert messages[0]["content"][0] == 1.5  # the caller's messages stay as they are


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "the conversation is empty"),
        (["Hi"], {}, "a message is 'Hi'; give dictionaries"),
        (MESSAGES, {"documents": ["x"]}, "a document is 'x'"),
        (
            MESSAGES,
            {"continue_final_message": True, "add_generation_prompt": True},
            "set one of them",
        ),
        ([{"role": "user"}], {"continue_final_message": True}, "has no 'content' to go on with"),
        (MESSAGES, {"continue_final_message": "role"}, "leaves out part of the last message"),
        (MESSAGES, {"continue_final_message": "note"}, "has no 'note' to go on with"),
    ],
)
def test_wrong_conversations_are_one_line(messages, options, message):
    with pytest.raises(ValueError, match=message):
        written("{{ messages[0].content }} role", messages, **options)


def test_what_goes_on_stays_open():
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
    open_end = [MESSAGES[0], {"role": "assistant", "content": " It is "}]
    assert (
        written(template, open_end, continue_final_message=True) == "<user>Hi<end><assistant>It is"
    )
    kept = template.replace(" | trim", "")
    assert written(kept, open_end, continue_final_message=True).endswith("<assistant> It is ")


def test_marks_leave_no_trace_wherever_the_block_stands():
    template = (
        "{% macro say(m) %}{% generation %}{{ m.content }}!{% endgeneration %}{% endmacro %}"
        "{% set all %}{% for m in messages %}[{{ say(m) }}]{% endfor %}{% endset %}{{ all }}"
    )
    found = chat_templates.render(MESSAGES, template, with_spans=True)
    assert found.text == "[Hi!][Ho!]" == written(template)
    assert [found.text[start:end] for start, end in found.spans] == ["Hi!", "Ho!"]


def test_a_mask_without_blocks_is_all_zero_and_said(tokenizer, caplog):
    result = tokenizer.apply_chat_template(
        MESSAGES, chat_template="{{ messages[0].content }}", return_assistant_tokens_mask=True
    )
    assert set(result["assistant_masks"]) == {0}
    for options in ({"tokenize": False}, {"return_dict": False}, {"continue_final_message": True}):
        with pytest.raises(ValueError, match="return_assistant_tokens_mask"):
            tokenizer.apply_chat_template(MESSAGES, return_assistant_tokens_mask=True, **options)


def test_without_jinja_one_line_says_what_to_install():
    script = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from mindspeed_ms.data.tokenizers import chat_templates\n"
        "try: chat_templates.render([{'role': 'user'}], 'x')\n"
        "except RuntimeError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs the library jinja2" in run.stdout and "mindspeed_ms[tokenizers]" in run.stdout


def test_an_unsafe_jinja_is_refused(monkeypatch):
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    chat_templates._compiled.cache_clear()
    with pytest.raises(RuntimeError, match="need jinja2 3.1.6 or newer, 3.1.5 is installed"):
        written("x")
