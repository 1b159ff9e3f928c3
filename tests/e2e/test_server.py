# SPDX-License-Identifier: Apache-2.0
"""The server as its users start it, and their clients."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import openai
import pytest
from browser import Page
from generation_models import RECORDED
from serve_cases import MEGATRONS, served_folder, server

pytestmark = pytest.mark.e2e
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GREEDY = RECORDED["llama"]["tokens"]["no end"][0]
PROMPT, ANSWER = (" ".join(f"w{token}" for token in part) for part in (GREEDY[:6], GREEDY[6:20]))
NO_END = {"ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def running(folder):
    flags = ("--max-queue", "8", "--max-batch-size", "4", "--max-body-bytes", "4000")
    with server(folder, "--served-model-name", "tiny", *flags) as process:
        yield process


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)


def call(address, method, path, body=None, headers=()):
    """Status and answer of a request."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    data = body if isinstance(body, bytes | None) else json.dumps(body)
    connection.request(method, path, data, dict(headers))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    is_json = response.headers.get("Content-Type", "") == "application/json"
    return response.status, json.loads(text) if is_json else text


def test_completions_by_openais_client(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mindspeed_ms"
    options = {"model": "tiny", "max_tokens": 14, "temperature": 0, "extra_body": NO_END}
    found = client.completions.create(prompt=PROMPT, **options)
    assert found.choices[0].text == f" {ANSWER}" and found.choices[0].finish_reason == "length"
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 14, 20)
    found = client.completions.create(prompt=[PROMPT, "w9"], echo=True, n=2, **options)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices[:2]] == [f"{PROMPT} {ANSWER}"] * 2
    stop = f"{ANSWER.split()[3]} {ANSWER.split()[4]}"
    found = client.completions.create(prompt=PROMPT, stop=[stop], **options)
    assert found.choices[0].text == f" {ANSWER[: ANSWER.index(stop)]}"
    assert found.choices[0].finish_reason == "stop"


def test_a_stream_has_the_text_of_an_answer(client):
    options = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "seed": 5, "n": 2}
    whole = client.completions.create(**options)
    texts, ends, usage = ["", ""], {}, None
    stream = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices] and texts[0] != texts[1]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_logprobs_of_completions(client):
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=2, temperature=0, echo=True, logprobs=2
    )
    logs = found.choices[0].logprobs
    assert logs.tokens == [*PROMPT.split(), *ANSWER.split()[:2]]
    assert logs.token_logprobs[0] is None and logs.top_logprobs[0] is None
    for token, value, top in zip(
        logs.tokens[-2:], logs.token_logprobs[-2:], logs.top_logprobs[-2:], strict=True
    ):
        assert top[token] == value == max(top.values()) and len(top) == 2
    text = found.choices[0].text
    for token, offset in zip(logs.tokens, logs.text_offset, strict=True):
        assert text[offset:].lstrip().startswith(token)


def test_biases_and_penalties(client):
    options = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    found = client.completions.create(**options, logit_bias={"50": 100})
    assert found.choices[0].text == " w50" * 6
    biases = {"50": 100, "51": 100}
    found = client.completions.create(**options, logit_bias=biases, frequency_penalty=2.0)
    assert set(found.choices[0].text.split()) == {"w50", "w51"}
    found = client.completions.create(**options, n=1, best_of=3)
    assert len(found.choices) == 1 and found.choices[0].logprobs is None


def test_chats_by_openais_client(client):
    messages = [
        {"role": "system", "content": "w3 w4"},
        {"role": "user", "content": [{"type": "text", "text": "w8"}]},
    ]
    options = {"model": "tiny", "messages": messages, "seed": 2}
    found = client.chat.completions.create(
        **options, max_completion_tokens=8, logprobs=True, top_logprobs=2
    )
    same = client.completions.create(model="tiny", prompt="w3 w4 w8 w5", max_tokens=8, seed=2)
    choice = found.choices[0]
    assert choice.message.content == same.choices[0].text and choice.message.role == "assistant"
    assert len(choice.logprobs.content) == found.usage.completion_tokens
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    stream = client.chat.completions.create(**options, max_tokens=8, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[0].delta.role == "assistant" and chunks[-1].finish_reason
    assert "".join(chunk.delta.content or "" for chunk in chunks) == choice.message.content


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", {"prompt": "w5", "model": "gpt-4"}, 404, "'gpt-4' does not exist"),
        ("completions", {}, 400, "you must provide a prompt"),
        ("completions", {"prompt": "w5", "max_tokens": 64}, 400, "64 tokens, but 65 tokens"),
        ("completions", {"prompt": [5, 96]}, 400, "token 96 is outside of the vocabulary of 96"),
        ("completions", {"prompt": "w5", "temperature": 2.5}, 400, "greater than the maximum of 2"),
        ("completions", {"prompt": "w5", "n": "2"}, 400, "'2' is not of type 'integer' - 'n'"),
        ("completions", {"prompt": "w5", "foo": 1}, 400, "Unrecognized request argument"),
        ("completions", {"prompt": "w5", "suffix": "w6"}, 400, "suffix is not served"),
        ("completions", {"prompt": "w5", "n": 13}, 400, "more than the 12 that the server takes"),
        ("completions", {"prompt": "w5", "logit_bias": {"x": 1}}, 400, "'x' is no token id"),
        ("completions", b"{", 400, "could not parse the JSON body"),
        ("completions", b"[" * 3000, 400, "could not parse the JSON body"),
        ("completions", b'"' + b"a" * 4000 + b'"', 413, "longer than 4000 bytes"),
        ("completions", [1], 400, "must be a JSON object"),
        ("chat/completions", {"messages": []}, 400, "at least one message"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 400, "text as content"),
        ("nowhere", {}, 404, "Invalid URL (POST /v1/nowhere)"),
        ("models", {}, 405, "Not allowed to POST"),
    ],
)
def test_mistakes_are_told_as_openai_does(running, path, body, status, words):
    found, answer = call(running.address, "POST", f"/v1/{path}", body)
    assert found == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert words in answer["error"]["message"], answer


def test_megatrons_form(running):
    def put(**body):
        return call(running.address, "PUT", "/api", body)

    def drawn(seed):
        options = {"random_seed": seed, "top_p": 0.9, "tokens_to_generate": 9}
        return put(prompts=["w5"], **options)[1]["text"]

    options = {"tokens_to_generate": 14, "top_k": 1, "stop_token": 0}
    status, found = put(prompts=[PROMPT, PROMPT], **options)
    assert status == 200 and found["text"] == [f"{PROMPT} {ANSWER}"] * 2
    assert found["segments"][0] == [*PROMPT.split(), *ANSWER.split()] and not found["logprobs"]
    status, found = put(prompts=[PROMPT], **options, logprobs=True)
    assert [len(row) for row in found["logprobs"]] == [19]
    seeded = [drawn(4) for _ in range(2)]
    assert seeded[0] == seeded[1] and seeded[0] != drawn(5)
    status, found = put(prompts=[PROMPT], tokens_to_generate=4, beam_width=3)
    assert (
        status == 200
        and len(found["text"]) == 3
        and found["scores"] == sorted(found["scores"], reverse=True)
    )
    for body, words in (
        ({}, "prompts argument required"),
        (
            {"prompts": ["w5"], "max_len": 3},
            "max_len is no longer used.  Replace with tokens_to_generate",
        ),
        ({"prompts": "w5"}, "prompts is not a list of strings"),
        (
            {"prompts": ["w5"], "top_k": 3, "top_p": 0.5},
            "cannot set both top-k and top-p samplings.",
        ),
        ({"prompts": [""]}, "Empty prompts require add_BOS=true"),
        (
            {"prompts": ["w5", "w6"], "beam_width": 2},
            "When doing beam_search, batch size must be 1",
        ),
        (
            {"prompts": ["w5"], "tokens_to_generate": 64},
            "Length of prompt + tokens_to_generate longer than allowed",
        ),
    ):
        assert put(**body) == (400, words)


def _gauge(address, name):
    text = call(address, "GET", "/metrics")[1]
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def _until(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_client_that_leaves_frees_its_slot_and_a_full_queue_says_so(running, client):
    where = urlsplit(running.address)
    body = json.dumps({"prompt": "w5", "max_tokens": 60, "n": 12, "stream": False} | NO_END)
    text = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    left = _gauge(running.address, "mindspeed_ms_requests_cancelled_total")
    full = 0
    for _ in range(20):  # until the second comes while the first is at work
        with socket.create_connection((where.hostname, where.port)) as first:
            first.sendall(text.encode())
            time.sleep(0.003)
            status, answer = call(running.address, "POST", "/v1/completions", body.encode())
        if status == 503:
            assert answer["error"]["code"] == "queue_full"
            full += 1
            break
    assert full
    _until(lambda: _gauge(running.address, "mindspeed_ms_requests_cancelled_total") > left)
    _until(lambda: _gauge(running.address, "mindspeed_ms_sequences_running") == 0)
    assert client.completions.create(model="tiny", prompt="w5", max_tokens=2).choices


def test_many_clients_at_a_time_get_their_own_answers(client):
    def ask(seed):
        found = client.completions.create(
            model="tiny", prompt=f"w{seed} w5", max_tokens=3 + seed, seed=seed, echo=True
        )
        return found.choices[0].text

    alone = [ask(seed) for seed in range(10, 18)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(10, 18))) == alone


def test_the_page_in_a_browser(running, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    words = PROMPT.replace(" ", "+")
    with Page(browser, tmp_path) as page:

        def shown(fragment, wanted):
            text = page.shown(f"{running.address}/#{fragment}", wanted)
            assert wanted in text
            return text

        answer = f'<div class="text" data-done="yes">{PROMPT} '
        text = shown(f"prompt={words}&tokens=14&temperature=0&send=1", answer)
        assert '<h1 id="model">tiny</h1>' in text
        assert " ".join(ANSWER.split()[:3]) in text
        answer = '<div class="assistant" data-done="yes"> w'
        text = shown("form-kind=chat&prompt=w8&tokens=4&send=1", answer)
        assert '<div class="user">w8</div>' in text
        shown("prompt=w8&tokens=100&send=1", "64 tokens, but 101 tokens are requested")


def test_keys(folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n", encoding="utf-8")
    with server(folder, "--api-key-file", str(keys)) as process:
        for key, status in ((None, 401), ("third", 401), ("fir", 401), ("second", 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            found, answer = call(process.address, "GET", "/v1/models", headers=headers)
            assert found == status
            assert status == 200 or answer["error"]["code"] == "invalid_api_key"
        assert call(process.address, "PUT", "/api", {})[0] == 401
        assert call(process.address, "GET", "/metrics")[0] == 401
        assert call(process.address, "GET", "/health") == (200, {"status": "ok"})


def test_megatrons_tool_with_its_flags(folder):
    flags = ("--tensor-model-parallel-size", "1", "--micro-batch-size", "1", "--seed", "42")
    flags += ("--inference-max-requests", "2", "--inference-max-seq-length", "32", "--num-layers")
    flags += ("2", "--max-tokens-to-oom", "50", "--inference-logging-step-interval", "4")
    with server(folder, *flags, program=MEGATRONS) as process:
        body = {"prompts": [PROMPT], "tokens_to_generate": 14, "top_k": 1, "stop_token": 0}
        status, found = call(process.address, "PUT", "/api", body)
        assert status == 200 and found["text"] == [f"{PROMPT} {ANSWER}"]
        status, found = call(process.address, "PUT", "/api", body | {"prompts": [PROMPT] * 3})
        assert (status, found) == (400, "Too many tokens.  60 is greater than 50")
        assert call(process.address, "GET", "/v1/models")[1]["data"][0]["max_model_len"] == 32
        os.kill(process.pid, signal.SIGTERM)
        assert "step 4: 1 running, 0 waiting" in process.stdout.read()


def test_two_ranks_serve_and_finish_what_runs(folder):
    flags = ("--tensor-model-parallel-size", "2")
    launcher = (shutil.which("mpiexec"), "-n", "2", sys.executable)
    with server(folder, *flags, launcher=launcher) as process:
        client = openai.OpenAI(base_url=f"{process.address}/v1", api_key="none", max_retries=0)
        options = {"model": folder.name, "temperature": 0, "extra_body": NO_END}
        found = client.completions.create(prompt=PROMPT, max_tokens=14, **options)
        assert found.choices[0].text == f" {ANSWER}"
        stream = client.completions.create(prompt=PROMPT, max_tokens=58, stream=True, **options)
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == 3:
                os.kill(_rank(process.pid, 0), signal.SIGTERM)
        assert len(chunks) == 58 and chunks[-1].choices[0].finish_reason == "length"
        process.wait(60)


def test_a_rank_that_dies_ends_the_job(folder):
    module = "mindspeed_ms.backend.torchrun.run"
    launcher = (sys.executable, "-m", module, "--nproc_per_node", "2")
    with server(
        folder, "--tensor-model-parallel-size", "2", launcher=launcher, status=137
    ) as process:
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        process.wait(60)
        time.sleep(0.2)
        assert "rank 1" in "".join(process.errors)


def _rank(root, number):
    """The process of a rank, below its launcher."""
    for line in subprocess.run(
        ["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        pid, _, words = line.strip().partition(" ")
        if "mindspeed_ms.toolkit.serve" not in words or int(pid) == root:
            continue
        with open(f"/proc/{pid}/environ", "rb") as file:
            names = dict(part.split(b"=", 1) for part in file.read().split(b"\0") if b"=" in part)
        rank = names.get(b"PMI_RANK", names.get(b"RANK", names.get(b"PMIX_RANK")))
        if rank == str(number).encode() and os.getpgid(int(pid)) is not None:
            if _is_below(int(pid), root):
                return int(pid)
    raise AssertionError(f"rank {number} is not there")


def _is_below(pid, root):
    while pid > 1:
        if pid == root:
            return True
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return False
