"""Serving a model under a policy over HTTP: OpenAI's API, by the server of transformers."""

import logging
import socket
import threading
from collections.abc import Callable
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any

import transformers
from torch import nn

from ..policies.apply import apply_policy
from ..policies.errors import ExportError, RunError, SkipsearchError, UsageError
from ..policies.policy import Policy
from .batching import BATCHING_LOG, Batching
from .target import Source

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.utils import GenerationState

# fastapi, uvicorn and transformers' server are imported where they are used: they are optional.
PACKAGES = ("fastapi", "openai", "uvicorn")
# An answer that is being generated when a signal ends the server may take this long.
GRACE_SECONDS = 5
LOADER = "load_model_and_processor"


def refuse_missing() -> None:
    """Check that the packages of the server are installed.

    Raises:
        ExportError: naming the missing ones, with the command that installs them.
    """
    missing = " ".join(name for name in PACKAGES if find_spec(name) is None)
    if missing:
        raise ExportError(f"serving needs packages that are not installed: pip install {missing}")


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; requests wait there until the server takes them.

    Args:
        host: A name or an address of this machine.
        port: The port; 0 takes a free one.

    Raises:
        UsageError: the address is in use or is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as cause:
        hint = "name another one with --port or --host; port 0 takes a free one"
        raise UsageError(f"cannot listen on port {port} of {host}", [str(cause)], hint) from None


def serve(
    policy: Policy, source: Source, listener: socket.socket, batching: Batching | None, ready: Callable[[], None]
) -> None:
    """Serve a model under a policy until a signal ends it.

    Args:
        policy: The policy.
        source: The model with its tokenizer or processor; requests name it by its `id`, or name none.
        listener: Where to listen; see `listen`.
        batching: How requests are batched continuously; None answers one after the other.
        ready: Called when the model is ready, before the first request.

    Raises:
        PolicyMismatch: the policy was made for another model.
        ExportError: continuous batching cannot run this policy or model, or this release of transformers serves models
            in another way.
    """
    with apply_policy(source.model, policy):
        if batching is not None:
            batching.refuse_unbatchable(source)
        app, state = application(source, batching)
        ready()
        try:
            run_until_signal(app, source.model, listener)
        finally:
            state.shutdown()


def run_until_signal(app: "FastAPI", model: nn.Module, listener: socket.socket) -> None:
    """Run the application until a signal ends it; answers that are not ready in time then end with an error.

    Without that, the server would abandon them after a time, while the model went on with its computation.
    """
    import uvicorn

    late = threading.Event()

    def refuse_late(*_: Any) -> None:
        if late.is_set():
            for name in (BATCHING_LOG, "uvicorn.error"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            raise RunError("the server has ended", ["the answer was not complete"])

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            timer = threading.Timer(GRACE_SECONDS, late.set)
            timer.daemon = True
            timer.start()
            super().handle_exit(sig, frame)

    hook = model.register_forward_pre_hook(refuse_late)
    try:
        # Without `log_config`, nothing but warnings is logged, and to standard error.
        Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])
    finally:
        hook.remove()


def application(source: Source, batching: Batching | None) -> "tuple[FastAPI, GenerationState]":
    """The server's application, and the state of its generation.

    Raises:
        ExportError: this release of transformers serves models in another way.
    """
    try:
        from transformers.cli.serving.chat_completion import ChatCompletionHandler
        from transformers.cli.serving.completion import CompletionHandler
        from transformers.cli.serving.response import ResponseHandler
        from transformers.cli.serving.server import build_server
        from transformers.cli.serving.systemone import SystemOneHandler
        from transformers.cli.serving.transcription import TranscriptionHandler
        from transformers.cli.serving.utils import GenerationState

        state = GenerationState() if batching is None else batching.generation_state(source.model.device)
        shared: dict[str, Any] = {"model_manager": pinned_model(source), "generation_state": state}
        app = build_server(
            shared["model_manager"],
            ChatCompletionHandler(**shared),
            completion_handler=CompletionHandler(**shared),
            response_handler=ResponseHandler(**shared),
            transcription_handler=TranscriptionHandler(**shared),
            systemone_handler=SystemOneHandler(**shared),
            generation_state=state,
        )
    except (ImportError, AttributeError, TypeError) as cause:
        raise changed(f"{type(cause).__name__}: {cause}") from cause
    app.add_exception_handler(SkipsearchError, refused_request)
    return app, state


def refused_request(_: "Request", error: Exception) -> "JSONResponse":
    """The response to a request that the policy refuses, such as one with an unsupported option of `generate`.

    Its status is 400, and 503 where the server ends.
    """
    from fastapi.responses import JSONResponse

    return JSONResponse({"error": {"message": str(error)}}, status_code=503 if isinstance(error, RunError) else 400)


def pinned_model(source: Source) -> "ModelManager":
    """The server's source of models: it hands out the given model and refuses every other.

    The server loads models through `load_model_and_processor` alone, which is replaced here.

    Raises:
        ExportError: this release of transformers loads models in another way.
    """
    from fastapi import HTTPException
    from transformers.cli.serving.model_manager import ModelManager

    name, calls = source.id or type(source.model).__name__, []

    class PinnedModel(ModelManager):
        def load_model_and_processor(
            self,
            model_id_and_revision: str,
            progress_callback: Callable[[Any], None] | None = None,
            tqdm_class: Any = None,
            gguf_file: str | None = None,
        ) -> Any:
            calls.append(model_id_and_revision)
            if model_id_and_revision != self.process_model_name(name) or gguf_file is not None:
                found = f"this server serves {name}, and the request names {model_id_and_revision}"
                raise HTTPException(status_code=400, detail=found)
            if progress_callback is not None:
                progress_callback({"status": "ready", "model": name, "cached": True})
            return source.model, source.processor

    manager = PinnedModel(force_model=name)
    # What the server lists; by default every model on the disk.
    vars(manager)["get_gen_models"] = lambda: [{"id": name, "object": "model", "created": 0, "owned_by": "skipsearch"}]
    # The server asks for its model once when it starts. If it did not ask here, it would load a dense one elsewhere.
    if LOADER not in vars(ModelManager) or len(calls) != 1:
        raise changed(f"ModelManager.{LOADER} does not load the model")
    return manager


def changed(found: str) -> ExportError:
    """The error for a release of transformers whose server is built in another way."""
    hint = "pip install 'transformers==5.23.*'"
    return ExportError(f"transformers {transformers.__version__} serves models in another way than 5.23", [found], hint)
