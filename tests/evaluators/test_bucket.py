"""Models in buckets, read from a real S3 server on this machine: the package moto."""

from __future__ import annotations

import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

import tiny
from skipsearch.evaluators.remote import bucket
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.errors import ModelError
from skipsearch.search.init.read_model import read_model

NAME = "s3://models/group/llama"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server():
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def files(model, server, monkeypatch, tmp_path):
    """The bucket of a new server, with the model, as AWS's own environment variables name it."""
    given = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }  # fmt: skip
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    made = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    if made.exists("models"):
        made.rm("models", recursive=True)
    made.mkdir("models")
    for file in model.iterdir():
        made.put_file(str(file), f"models/group/llama/{file.name}")
    bucket.fetch.cache_clear()
    yield made
    bucket.fetch.cache_clear()


def downloads(caplog, name="model.safetensors"):
    return sum(f"GET /models/group/llama/{name}" in record.getMessage() for record in caplog.records)


def test_a_model_of_a_bucket_is_the_model_and_is_downloaded_once(files, model, caplog):
    caplog.set_level(logging.INFO, logger="werkzeug")
    ids = torch.tensor([[5, 6, 7, 8]])
    found, local = (load_subject(ModelSpec(id=str(name), device="cpu")) for name in (NAME, model))
    assert torch.equal(found.model(ids).logits, local.model(ids).logits)
    assert len(found.commit) == 40 and local.commit is None
    assert downloads(caplog) == 1
    bucket.fetch.cache_clear()  # As in another process.
    place = bucket.fetch(NAME)
    assert place.name == found.commit and downloads(caplog) == 1
    assert {file.name for file in place.iterdir()} == {file.name for file in model.iterdir()}


def test_processes_of_one_machine_download_once(files, caplog):
    caplog.set_level(logging.INFO, logger="werkzeug")
    with ThreadPoolExecutor(4) as pool:
        places = [*pool.map(bucket.fetch.__wrapped__, [NAME] * 4)]
    assert len({*places}) == 1 and downloads(caplog) == 1


def test_a_changed_file_is_another_revision_and_a_study_keeps_its_own(files, model, monkeypatch, tmp_path):
    first = bucket.fetch(NAME).name
    files.pipe_file("models/group/llama/generation_config.json", b"{}")
    bucket.fetch.cache_clear()
    second = bucket.fetch(NAME).name
    assert second != first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # Nothing answers there: the cache has both.
    assert bucket.fetch(NAME, first).name == first and bucket.fetch(NAME, second).name == second


def test_a_revision_that_is_gone_is_refused(files):
    first = bucket.fetch(NAME)
    shutil.rmtree(first)
    files.pipe_file("models/group/llama/generation_config.json", b"{}")
    bucket.fetch.cache_clear()
    with pytest.raises(ModelError, match="has changed") as error:
        load_subject(ModelSpec(id=NAME, revision=first.name, device="cpu"))
    assert f"expected {first.name}" in error.value.details[0] and "--name" in error.value.hint


def test_a_download_that_was_cut_short_begins_anew(files, model):
    revision = bucket.fetch(NAME).name
    place = bucket.cache_folder() / "models/group/llama"
    (place / revision).rename(place / f".{revision}.part")
    (place / f".{revision}.part" / "model.safetensors").write_bytes(b"cut")
    bucket.fetch.cache_clear()
    weights = Path("model.safetensors")
    assert (bucket.fetch(NAME) / weights).read_bytes() == (model / weights).read_bytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [(f"{NAME}/nothing", "found no files in it"), ("s3://nowhere/llama", "FileNotFoundError")],
)
def test_what_is_not_there_is_refused(files, name, told):
    with pytest.raises(ModelError, match="cannot be read") as error:
        load_subject(ModelSpec(id=name, device="cpu"))
    assert told in error.value.details[0] and "aws s3 ls" in error.value.hint


def test_a_space_is_not_begun_for_a_bucket_that_cannot_be_read(files):
    with pytest.raises(ModelError, match="cannot be read") as error:
        read_model(ModelSpec(id="s3://nowhere/llama"))
    assert "aws s3 ls" in error.value.hint


def test_missing_credentials_are_told(files, monkeypatch):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    with pytest.raises(ModelError, match="cannot be read") as error:
        bucket.fetch(NAME)
    assert "redentials" in error.value.details[0]


def test_without_s3fs_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    bucket.fetch.cache_clear()
    with pytest.raises(ModelError, match="needs s3fs, which is not installed") as error:
        load_subject(ModelSpec(id=NAME, device="cpu"))
    assert error.value.hint == "pip install 'skipsearch[s3]'"
