"""Adapters in an object store: a real server of the S3 protocol over HTTP, two machines as two data directories."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterword.errors import AdapterError, ConfigError, StoreError
from afterword.store.artifacts import Artifacts, file_hashes
from afterword.store.files import MANIFEST

PATH = "adapters/cand-1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of the server and the folder in which it keeps its buckets."""
    folder = tmp_path_factory.mktemp("objects")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = subprocess.Popen(
        [sys.executable, "-m", "localbucket", str(folder), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        running.terminate()
        running.wait()


@pytest.fixture
def bucket(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty bucket of this test; its folder on the server."""
    address, folder = server
    name = f"test-{zlib.crc32(request.node.name.encode())}"
    (folder / name).mkdir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return folder / name


@pytest.fixture
def two(bucket: Path, tmp_path: Path) -> tuple[Artifacts, Artifacts]:
    """Two machines; the first has an adapter."""
    url = f"s3://{bucket.name}/team"
    folder = tmp_path / "one" / PATH
    (folder / "sub").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 4_000)
    (folder / "sub" / "notes.json").write_text("{}")
    (folder / MANIFEST).write_text("{}")
    return Artifacts(tmp_path / "one", url), Artifacts(tmp_path / "two", url)


def test_another_machine_gets_the_same_bytes(two: tuple[Artifacts, Artifacts], bucket: Path) -> None:
    one, other = two
    assert not other.exists(PATH) and not other.folder(PATH).exists()
    one.keep(PATH)
    one.keep(PATH)
    assert other.exists(PATH)
    found = other.folder(PATH)
    assert found == other.directory / PATH
    assert file_hashes(found) == file_hashes(one.directory / PATH)
    named = json.loads((bucket / "team" / PATH / "files.json").read_text())
    assert named == file_hashes(found)
    assert {p.name for p in (bucket / "team" / PATH).iterdir()} == {"files.json", *named.values()}


def test_an_adapter_without_its_index_is_not_there(two: tuple[Artifacts, Artifacts], bucket: Path) -> None:
    """As after a kill within an upload: the index is written last."""
    one, other = two
    one.keep(PATH)
    (bucket / "team" / PATH / "files.json").unlink()
    assert not other.exists(PATH) and not other.folder(PATH).exists()
    one.keep(PATH)
    assert other.folder(PATH).is_dir()


@pytest.mark.parametrize("damage", [b"", b"other bytes"])
def test_a_damaged_object_is_never_loaded(two: tuple[Artifacts, Artifacts], bucket: Path, damage: bytes) -> None:
    one, other = two
    one.keep(PATH)
    digest = file_hashes(one.directory / PATH)["adapter_model.safetensors"]
    (bucket / "team" / PATH / digest).write_bytes(damage)
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors.*was changed or cut"):
        other.folder(PATH)
    assert list((other.directory / "adapters").glob("*cand-1*")) == []  # nothing half is left


@pytest.mark.parametrize("index", ["no json", "[]", "{}", '{"../../escape": "a"}', '{"/etc/passwd": "a"}', '{"a": 1}'])
def test_a_damaged_index_is_refused(two: tuple[Artifacts, Artifacts], bucket: Path, index: str) -> None:
    one, other = two
    one.keep(PATH)
    (bucket / "team" / PATH / "files.json").write_text(index)
    with pytest.raises(AdapterError, match=r"files\.json"):
        other.folder(PATH)


def test_what_is_not_what_was_released_is_not_loaded(two: tuple[Artifacts, Artifacts]) -> None:
    one, other = two
    one.keep(PATH)
    signed = file_hashes(one.directory / PATH)
    with pytest.raises(AdapterError, match="is not what was released"):
        other.folder(PATH, {**signed, "sub/notes.json": "0" * 64})
    assert other.folder(PATH, signed).is_dir()


def test_a_release_writes_its_proof_into_the_manifest_everywhere(two: tuple[Artifacts, Artifacts]) -> None:
    one, other = two
    one.keep(PATH)
    other.folder(PATH)
    (one.directory / PATH / MANIFEST).write_text('{"report": "rep-1"}')
    one.keep(PATH)
    signed = file_hashes(one.directory / PATH)
    assert (other.folder(PATH, signed) / MANIFEST).read_text() == '{"report": "rep-1"}'
    assert file_hashes(other.directory / PATH) == signed


def test_two_deployments_with_one_place_are_told_apart(two: tuple[Artifacts, Artifacts], bucket: Path) -> None:
    one, other = two
    one.keep(PATH)
    shutil.copytree(one.directory / PATH, other.directory / PATH)
    (other.directory / PATH / "adapter_model.safetensors").write_bytes(b"theirs")
    with pytest.raises(AdapterError, match=r"two deployments write to one place.*store\.artifacts"):
        other.keep(PATH)
    shutil.rmtree(other.directory / PATH)
    assert file_hashes(other.folder(PATH)) == file_hashes(one.directory / PATH)


def test_removing_leaves_no_object_and_copies_go_too(two: tuple[Artifacts, Artifacts], bucket: Path) -> None:
    one, other = two
    one.keep(PATH)
    other.folder(PATH)
    assert one.remove(PATH) and not one.remove(PATH)
    assert [p for p in (bucket / "team").rglob("*") if p.is_file()] == []
    other.drop_copy(PATH)
    assert not (other.directory / PATH).exists()
    one.drop_copy(PATH)  # no copy: the one that was trained there
    assert (one.directory / PATH).is_dir()


def test_an_object_store_that_is_away_loses_nothing(
    two: tuple[Artifacts, Artifacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("afterword.store.artifacts._RETRIES", {"max_retries": 0})
    with pytest.raises(StoreError, match=r"object store s3://.* failed.*Nothing is lost") as raised:
        one.keep(PATH)
    assert "hidden-secret" not in raised.value.message
    assert one.folder(PATH).is_dir()  # what is here needs no object store


@pytest.mark.parametrize("url", ["nowhere://x", "s3:", "words"])
def test_a_url_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.artifacts is '.*Examples"):
        Artifacts(tmp_path, url).exists(PATH)


def test_without_a_url_the_data_directory_is_all(tmp_path: Path) -> None:
    alone = Artifacts(tmp_path)
    alone.keep(PATH)
    assert not alone.exists(PATH) and not alone.remove(PATH) and alone.folder(PATH) == tmp_path / PATH
