# SPDX-License-Identifier: Apache-2.0
"""Answer OpenAI's and Megatron's requests for text with a model.

    mindspeed-ms serve --model FOLDER
    python -m mindspeed_ms.toolkit.serve --model FOLDER

Under mpiexec, torchrun or msrun the layout flags share the model out; the first rank listens.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.inference.engine import InferenceEngine, position_limit, refuse_layout
from mindspeed_ms.core.inference.kv_cache import FEWEST_TOKENS
from mindspeed_ms.files.regular_file import read_text, real_path
from mindspeed_ms.toolkit.generation.beam import beam_search
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.mixin import GenerationMixin
from mindspeed_ms.toolkit.generation.room import require_room
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.toolkit.models import layout_flags
from mindspeed_ms.toolkit.models.auto import AutoModelForCausalLM
from mindspeed_ms.toolkit.models.layout_flags import positive
from mindspeed_ms.toolkit.serve.batch import Beams, ContinuousBatch, Request
from mindspeed_ms.toolkit.serve.loop import Desk, run
from mindspeed_ms.toolkit.serve.metrics import Metrics
from mindspeed_ms.toolkit.serve.openai_forms import Served
from mindspeed_ms.toolkit.serve.patience import patient, room_for_connections
from mindspeed_ms.toolkit.tokenization import of_checkpoint
from mindspeed_ms.training.entry import user_errors

logger = logging.getLogger(__name__)
PACKAGES = ("starlette", "uvicorn", "prometheus_client")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a server is started with."""

    model: str
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    max_rows: int = 16
    max_queue: int = 256
    max_length: int | None = None
    needs_length: bool = False
    """A model with fewer positions than ``max_length`` is refused, else it has what it has."""
    max_step_tokens: int = 2048
    max_body: int = 8 * 2**20
    body_seconds: float = 60.0
    header_seconds: float = 20.0
    max_tokens_to_oom: int | None = None
    chat_template: str | None = None
    loading: Mapping[str, Any]
    """Keywords of ``from_pretrained``: layout, type."""
    access_log: bool = False
    max_cache_bytes: int | None = None
    """Of keys and values on a rank; fewer sequences run at a time if they need more."""
    log_interval: int = 0
    """Steps between two lines about the batch; 0: none."""


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = Parser.of(__doc__, alone="python -m mindspeed_ms.toolkit.serve")
    add = parser.add_argument
    add("--model", "--load", required=True, help="folder of the model, or of a checkpoint")
    add("--served-model-name", help="its name in requests (default: the folder's)")
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--api-key", action="append", default=[], help="a key that clients must send")
    add("--api-key-file", type=Path, help="a key per line")
    add("--max-batch-size", type=positive, default=16, help="sequences that run at a time")
    add("--max-queue", type=int, default=256, help="further sequences that may wait")
    add("--max-model-len", type=positive, help="tokens of a prompt and its answer")
    add("--max-batched-tokens", type=positive, default=2048, help="of prompts that join at a time")
    add("--max-body-bytes", type=positive, default=8 * 2**20, help="of a request")
    add("--max-header-seconds", type=positive, default=20, help="in which its headers arrive")
    add("--max-body-seconds", type=positive, default=60, help="in which a request's body arrives")
    add("--chat-template", type=Path, help="file with a Jinja template for chats")
    add("--access-log", action="store_true", help="a line per request on standard error")
    layout_flags.add_flags(parser)
    of_checkpoint.add_flags(parser)
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that flags name.

    Raises:
        ValueError: a file of them is empty.
        OSError: a file of them cannot be read.
    """
    keys = list(arguments.api_key)
    if arguments.api_key_file is not None:
        keys += read_text(arguments.api_key_file).split()
        if not keys:
            raise ValueError(f"{arguments.api_key_file} holds no key; write one per line")
    if "" in keys:
        raise ValueError("--api-key is empty; give a key, or leave the flag out")
    template = arguments.chat_template
    return Settings(
        model=arguments.model,
        name=arguments.served_model_name or real_path(arguments.model).name,
        host=arguments.host,
        port=arguments.port,
        api_keys=tuple(keys),
        max_rows=arguments.max_batch_size,
        max_queue=max(arguments.max_queue, 0),
        max_length=arguments.max_model_len,
        needs_length=True,
        max_step_tokens=arguments.max_batched_tokens,
        max_body=arguments.max_body_bytes,
        body_seconds=arguments.max_body_seconds,
        header_seconds=arguments.max_header_seconds,
        chat_template=None if template is None else read_text(template),
        loading=layout_flags.loading_options(arguments),
        access_log=arguments.access_log,
    )


def require_packages() -> None:
    """Refuse to begin without the web server's packages.

    Raises:
        ValueError: names them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the server needs {' and '.join(missing)}, which cannot be imported here; "
            'pip install "mindspeed_ms[serve]"'
        )


def serve(settings: Settings, tokenizer_flags: argparse.Namespace) -> None:
    """Listen, and answer until SIGTERM or SIGINT; what runs then is finished.

    Raises:
        ValueError: the model, the layout or the address does not do.

    Parallelism: collective over the world; rank 0 listens.
    """
    require_packages()
    model = AutoModelForCausalLM.from_pretrained(settings.model, **settings.loading)
    tokenizers = [_tokenizer(settings, tokenizer_flags) for _ in range(2)]  # one per thread
    model.build()
    refuse_layout(model.engine_config.model_config)
    rows = settings.max_rows
    if settings.max_cache_bytes is not None:
        rows = rows_within(settings.max_cache_bytes, settings, model)
    fix = "lower --max-batch-size (or the requests at a time)"
    require_room(model.engine_config, rows, FEWEST_TOKENS, fix)
    with model.active(), model.inference_engine(rows) as engine:
        served = _served(settings, model, engine, tokenizers[0])
        batch = ContinuousBatch(
            engine,
            tokenizers[1],
            max_rows=rows,
            max_tokens=settings.max_step_tokens,
            search=_Beams(model),
        )
        if comm.get_rank() == 0:
            _listen(settings, served, batch)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first rank says when it is over
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            run(batch, None)


def longest(settings: Settings, model: GenerationMixin) -> int:
    """Tokens that a prompt and its answer may have.

    Raises:
        ValueError: more are asked for than the model has positions.
    """
    config = model.engine_config.model_config
    natural = position_limit(config) or config.max_position_embeddings or config.seq_length
    if settings.needs_length and (settings.max_length or 0) > natural:
        raise ValueError(
            f"--max-model-len is {settings.max_length}, but the model has {natural} positions; "
            "lower it, or leave it out"
        )
    return min(settings.max_length or natural, natural)


def rows_within(num_bytes: int, settings: Settings, model: GenerationMixin) -> int:
    """How many sequences at a time have room in so many bytes of a rank's cache.

    Raises:
        ValueError: not one has.

    Parallelism: collective over the world; stages with more layers decide.
    """
    with model.active(), model.inference_engine() as engine:
        engine.free(engine.add([[0]])[0])
        of_token = engine.cache.num_bytes / engine.cache.room
        engine.cache.reserve(longest(settings, model))
        needed = max(comm.all_gather_object(int(of_token * engine.cache.room)))
    fitting = num_bytes // max(needed, 1)
    if not fitting:
        raise ValueError(
            f"the cache may have {num_bytes} bytes, but one sequence needs {needed}; raise "
            "--inference-dynamic-batching-buffer-size-gb, or lower --inference-max-seq-length"
        )
    return min(settings.max_rows, fitting)


def _tokenizer(settings: Settings, flags: argparse.Namespace) -> Any:
    found = of_checkpoint.tokenizer_of(flags, Path(settings.model))
    if settings.chat_template is not None:
        if not hasattr(found, "apply_chat_template"):
            raise ValueError(
                "--chat-template needs a tokenizer of Hugging Face's form; give --tokenizer FOLDER"
            )
        found.chat_template = settings.chat_template
    return found


def _served(
    settings: Settings, model: GenerationMixin, engine: InferenceEngine, tokenizer: Any
) -> Served:
    own = model.generation_config
    options = own if isinstance(own, GenerationConfig) else GenerationConfig(**own)
    ends = list(options.end_tokens)
    if not ends and tokenizer.eos_token_id is not None:
        ends = [tokenizer.eos_token_id]
    begin = getattr(tokenizer, "bos_token_id", None)
    return Served(
        name=settings.name,
        tokenizer=tokenizer,
        vocab_size=engine.vocab_size,
        max_length=longest(settings, model),
        end_tokens=tuple(ends),
        begin_token=options.bos_token_id if begin is None else begin,
        max_open=settings.max_rows + settings.max_queue,
        created=int(time.time()),
        max_tokens_to_oom=settings.max_tokens_to_oom,
    )


class _Beams:
    """Searches beams with a cache of its own, while the other sequences stand still."""

    def __init__(self, model: GenerationMixin) -> None:
        self._model = model

    def __call__(self, request: Request) -> Beams:
        """The beams of a request."""
        output = self._model.generate(
            [list(request.prompt)],
            generation_config=request.config,
            logits_processor=request.rules,
            return_dict_in_generate=True,
            output_scores=True,
            search=beam_search,  # of one beam, too
        )
        rows = memory.as_numpy(output.sequences)[:, len(request.prompt) :].tolist()
        scores = memory.as_numpy(output.sequences_scores).tolist()
        return Beams(request.number, tuple(map(tuple, rows)), tuple(scores))


def _listen(settings: Settings, served: Served, batch: ContinuousBatch) -> None:
    """The first rank: a web server in a thread, the steps in this one."""
    uvicorn: Any = importlib.import_module("uvicorn")
    app: Any = importlib.import_module("mindspeed_ms.toolkit.serve.app")
    desk = Desk(served.max_open, Metrics())
    limits = app.Limits(
        max_body=settings.max_body,
        body_seconds=settings.body_seconds,
        api_keys=settings.api_keys,
    )
    protocols: Any = importlib.import_module("uvicorn.protocols.http.auto")
    config = uvicorn.Config(
        app.App(served, desk, limits).starlette(),
        http=patient(protocols.AutoHTTPProtocol, settings.header_seconds, room_for_connections()),
        log_level="info" if settings.access_log else "warning",
        access_log=settings.access_log,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    server = uvicorn.Server(config)
    with _socket(settings.host, settings.port) as listening:
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="web", daemon=True
        )
        previous = _stop_on_signals(desk)
        thread.start()
        _announce(settings, listening.getsockname()[1])
        try:
            gc.freeze()  # the model stays; the collector need not look at it
            run(batch, desk, settings.log_interval)
        except BaseException as error:
            desk.fail(f"the server has failed: {error}")
            raise
        finally:
            server.should_exit = True
            thread.join(timeout=40)
            for number, handler in previous.items():
                signal.signal(number, handler)


def _socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen at {host} port {port}: {error}; choose another --host or --port"
        ) from None


def _stop_on_signals(desk: Desk) -> dict[int, Any]:
    """Finish running requests at the first signal, end at once at the second."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        desk.stop()

    return {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}


def _announce(settings: Settings, port: int) -> None:
    if settings.host not in LOOPBACK and not settings.api_keys:
        logger.warning(
            "WARNING: %s can be reached from other machines and asks for no key; give --api-key",
            settings.host,
        )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    sys.stdout.write(f"serving {settings.name} at http://{host}:{port}\n")
    sys.stdout.flush()


def main(words: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the status.

    Args:
        words: of the command line; None: those of the process.
    """
    arguments = make_parser().parse_args(words)
    with user_errors():
        serve(settings_of(arguments), arguments)
    return 0
