"""The server: answers over HTTP equal `generate` under the policy, and what it cannot serve is refused at the start."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import tiny
from skipsearch import apply_policy
from skipsearch.exports.batching import Batching
from skipsearch.exports.serve import application, listen, refuse_missing
from skipsearch.exports.target import Source
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.errors import ExportError, UsageError
from skipsearch.policies.policy import Policy
from skipsearch.search.cli import main

pytest.importorskip("fastapi")
pytest.importorskip("openai")
pytest.importorskip("uvicorn")
from starlette.testclient import TestClient  # noqa: E402

SKIP = Policy(layers={1: LayerChoice(ffn="skip"), 2: LayerChoice(attention="skip"), 3: LayerChoice(wiring="parallel")})
PHASE = Policy(layers={1: LayerChoice(ffn="skip", phase="decode"), 3: LayerChoice(attention="skip", phase="decode")})
IMAGE = Policy(layers={1: LayerChoice(token_ratio=0.3), 2: LayerChoice(attention="skip")})
PROMPTS = [f"w{first} w{first + 3} w{2 * first} w5" for first in range(1, 7)]
TOKENS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("tiny"))


def source(subject):
    return Source(subject.model, subject.processor, subject.spec.id)


def asked(prompt, **more):
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, **more}


def told(answer):
    """The text of an answer and its number of tokens."""
    assert "choices" in answer, answer
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def generated(subject, inputs):
    """The same by `generate`, alone and without a server."""
    out = subject.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return subject.tokenizer.decode(out, skip_special_tokens=True), len(out)


def expected(subject, policy, prompts=PROMPTS):
    with apply_policy(subject.model, policy):
        return [generated(subject, subject.tokenizer(prompt, return_tensors="pt")) for prompt in prompts]


@pytest.mark.parametrize(
    ("policy", "batching"),
    [(SKIP, None), (PHASE, None), (SKIP, Batching(2048))],
    ids=["skip", "phase", "continuous batching"],
)
def test_answers_equal_generate(world, policy, batching):
    subject = world.llama
    reference, dense = (expected(subject, one) for one in (policy, Policy()))
    assert reference != dense
    attention = subject.model.config._attn_implementation
    with apply_policy(subject.model, policy):
        if batching:
            batching.refuse_unbatchable(source(subject))
        app, state = application(source(subject), batching)
        with TestClient(app) as client, ThreadPoolExecutor(len(PROMPTS)) as pool:
            posts = pool.map(lambda prompt: client.post("/v1/completions", json=asked(prompt)).json(), PROMPTS)
            found = [told(answer) for answer in posts]
        state.shutdown()
    subject.model.set_attn_implementation(attention)
    assert found == reference


def test_an_answer_about_an_image_equals_generate(world):
    subject = world.llava
    template = "{% for m in messages %}{% for c in m.content %}{{ '<image> ' if c.type == 'image' else c.text }}"
    subject.processor.chat_template = template + "{% endfor %}{% endfor %} w3"
    pixels = np.random.default_rng(4).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.save(file, format="png")
    inputs = subject.processor(images=picture, text="<image> w7 w9 w3", return_tensors="pt")
    with apply_policy(subject.model, Policy()):
        dense = generated(subject, inputs)
    with apply_policy(subject.model, IMAGE):
        reference = generated(subject, inputs)
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "w7 w9"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0}
        with TestClient(application(source(subject), None)[0]) as client:
            answer = client.post("/v1/chat/completions", json=body).json()
    assert (answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]) == reference
    assert answer["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert reference != dense


def test_other_models_and_settings_are_refused(world):
    with apply_policy(world.llama.model, PHASE), TestClient(application(source(world.llama), None)[0]) as client:
        name = world.llama.spec.id
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [name]
        assert client.post("/v1/completions", json=asked("w1", model=name)).status_code == 200
        assert client.post("/v1/completions", json=asked("w1", model="gpt2")).status_code == 400
        assert '"error"' in client.post("/load_model", json={"model": "gpt2"}).text
        assert client.post("/reset").status_code == 200
        uncached = json.dumps({"guidance_scale": 2.0, "use_cache": False, "max_new_tokens": 4})
        answer = client.post("/v1/completions", json=asked("w1", generation_config=uncached))
        assert answer.status_code == 400
        assert "guidance_scale without a cache cannot be used under this policy" in answer.json()["error"]["message"]


def test_continuous_batching_refuses_settings_that_differ_from_the_first(world):
    attention = world.llama.model.config._attn_implementation
    app, state = application(source(world.llama), Batching(2048))
    sampled = json.dumps({"do_sample": True, "max_new_tokens": 4})
    with TestClient(app) as client:
        answers = [
            client.post("/v1/completions", json=asked("w1 w2", **more))
            for more in ({}, {"max_tokens": 3}, {"stop": ["w4"]}, {"generation_config": sampled, "temperature": 0.9})
        ]
    state.shutdown()
    world.llama.model.set_attn_implementation(attention)
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400]
    assert answers[1].json()["usage"]["completion_tokens"] == 3
    assert "do_sample: found True, expected None" in answers[3].json()["error"]["message"]


def test_what_continuous_batching_cannot_run_is_refused_at_the_start(world):
    attention = world.llama.model.config._attn_implementation
    with apply_policy(world.llama.model, PHASE), pytest.raises(ExportError, match="does not say which token is which"):
        Batching().refuse_unbatchable(source(world.llama))
    assert world.llama.model.config._attn_implementation == attention
    with pytest.raises(ExportError, match="text models alone"):
        Batching().refuse_unbatchable(source(world.llava))


def test_another_server_in_transformers_is_refused(world, monkeypatch):
    from transformers.cli.serving import model_manager

    loader = model_manager.ModelManager.load_model_and_processor
    monkeypatch.delattr(model_manager.ModelManager, "load_model_and_processor")
    monkeypatch.setattr(model_manager.ModelManager, "load", loader, raising=False)
    with pytest.raises(ExportError, match=r"serves models in another way than 5\.23"):
        application(source(world.llama), None)
    monkeypatch.undo()
    monkeypatch.setattr("transformers.cli.serving.server.build_server", lambda manager: None)
    with pytest.raises(ExportError, match="unexpected keyword argument"):
        application(source(world.llama), None)


def test_missing_packages_and_addresses(monkeypatch):
    with listen("localhost", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on port {port}"):
            listen("localhost", port)
    monkeypatch.setattr("skipsearch.exports.serve.find_spec", lambda name: None if name == "openai" else True)
    with pytest.raises(ExportError, match="not installed: pip install openai$"):
        refuse_missing()


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--device", "qpu"], "--device names no device"), (["--cache-tokens", "9"], "an option of --continuous-batching"),
     (["--port", "70000"], "cannot listen on port 70000"), (["--policy", "none.yaml"], "none.yaml does not exist")],
    ids=lambda part: part[0][2:] if isinstance(part, list) else "",
)  # fmt: skip
def test_wrong_commands_exit_with_2(more, message, tmp_path, capsys):
    SKIP.save(tmp_path / "policy.yaml")
    assert main(["serve", "some/model", "--policy", str(tmp_path / "policy.yaml"), *more]) == 2
    assert message in capsys.readouterr().err


def test_the_command_serves_until_it_is_told_to_end(world, tmp_path):
    reference = expected(world.llama, PHASE)[:2]
    PHASE.save(tmp_path / "policy.yaml")
    command = [sys.executable, "-m", "skipsearch", "serve", world.llama.spec.id, "--port", "0", "--device", "cpu",
               "--policy", str(tmp_path / "policy.yaml"), "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            ready = json.loads(server.stdout.readline())
            assert (ready["model"], ready["policy"]) == (world.llama.spec.id, PHASE.fingerprint)
            found = []
            for prompt in PROMPTS[:2]:
                data = json.dumps(asked(prompt)).encode()
                headers = {"Content-Type": "application/json"}
                with urlopen(Request(f"{ready['url']}/completions", data, headers), timeout=60) as answer:
                    found.append(told(json.load(answer)))
            server.send_signal(signal.SIGTERM)
            rest, log = server.communicate(timeout=60)
        finally:
            server.kill()
    assert found == reference
    assert (server.returncode, rest) == (0, "")
    assert "Traceback" not in log
    with pytest.raises(OSError):
        socket.create_connection(("localhost", int(ready["url"].split(":")[2].split("/")[0])), timeout=5)
