"""Encoders on a hub: a small server that speaks as the real one does."""

import hashlib
import json
import re
import sys
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pytest
import torch

from summarymixing import Wav2Vec2Encoder
from summarymixing.cli import main
from summarymixing.errors import UserError
from summarymixing.lobes.encoders import open_encoder
from summarymixing.pretrained import digest_of_folder, save_encoder

constants = pytest.importorskip("huggingface_hub.constants")

API = r"/api/models/(?P<name>[\w.-]+/[\w.-]+)"
OLD, NEW = "0" * 40, "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Models as {name: {revision: {file: bytes}}}; "main" names a revision."""

    models, private, requests = {}, set(), []

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self):
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.command, path))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if not self.headers.get("Authorization"):
                return self.answer(401, {"error": "no token"})
            if name in self.models:
                return self.answer(
                    409, {"url": f"http://{self.headers['Host']}/{name}"}
                )
            self.models[name] = {"main": OLD, OLD: {}}
            if "private" in (wanted.get("visibility"), *wanted):
                self.private.add(name)
            return self.answer(
                200, {"url": f"http://{self.headers['Host']}/{name}"}
            )
        for pattern, method in (
            (f"{API}/preupload/main", self.preupload),
            (f"{API}/commit/main", self.commit),
            (f"{API}/tree/(?P<revision>[^/]+)", self.tree),
            (f"{API}/revision/(?P<revision>[^/]+)", self.info),
            (API, self.info),
            (r"/(?P<name>.+?/.+?)/resolve/(?P<revision>.+?)/(?P<file>.+)",)
            + (self.file,),
        ):
            if found := re.fullmatch(pattern, path):
                groups = found.groupdict()
                name = groups.pop("name")
                if name not in self.models:
                    return self.answer(
                        401, {"error": "?"}, X_Error_Code="RepoNotFound"
                    )
                model = self.models[name]
                revision = groups.pop("revision", "main")
                revision = model.get("main") if revision == "main" else revision
                if revision not in model:
                    return self.answer(
                        404, {"error": "?"}, X_Error_Code="RevisionNotFound"
                    )
                return method(name, model, revision, body=body, **groups)
        return self.answer(404, {"error": path})

    do_GET = do_HEAD = do_POST = route

    def info(self, name, model, revision, **_):
        self.answer(
            200,
            {
                "id": name,
                "sha": revision,
                "private": name in self.private,
                "siblings": [{"rfilename": file} for file in model[revision]],
            },
        )

    def tree(self, name, model, revision, **_):
        entries = [
            {"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
            for file, data in model[revision].items()
        ]
        self.answer(200, entries)

    def file(self, name, model, revision, file, **_):
        if file not in model[revision]:
            return self.answer(
                404,
                {"error": "?"},
                X_Error_Code="EntryNotFound",
                X_Repo_Commit=revision,
            )
        data = model[revision][file]
        return self.answer(
            200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=revision
        )

    def preupload(self, name, model, revision, body):
        files = [
            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def commit(self, name, model, revision, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = [e["value"] for e in lines if e["key"] == "file"]
        model[NEW] = {f["path"]: b64decode(f["content"]) for f in files}
        model["main"] = NEW
        url = f"http://{self.headers['Host']}/{name}/commit/{NEW}"
        self.answer(200, {"commitUrl": url, "commitOid": NEW, "success": True})


def _oid(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Serve nothing but what a test adds to `models`."""
    handler = type(
        "Handler", (Hub,), {"models": {}, "private": set(), "requests": []}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    return save_encoder(make_encoder(), tmp_path / "encoder")


def make_encoder():
    return Wav2Vec2Encoder(
        num_layers=1, d_model=8, d_ffn=8, num_mels=20, front_end_channels=6
    )


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def serve(hub, folder, tmp_path):
    """Serve another encoder as the old version, the folder as the new one."""
    old = read(save_encoder(make_encoder(), tmp_path / "old"))
    new = {**read(folder), "setup.py": b"raise SystemExit", "a.bin": b"?" * 99}
    hub.models["me/mine"] = {"main": NEW, NEW: new, OLD: old}


def equal(encoder, other):
    ours, theirs = encoder.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_three_files_are_fetched_once_and_no_other(hub, folder, tmp_path):
    serve(hub, folder, tmp_path)
    encoder = Wav2Vec2Encoder.from_pretrained("me/mine")
    assert equal(encoder, Wav2Vec2Encoder.from_pretrained(folder))
    fetched = {
        path.rsplit("/", 1)[1]
        for method, path in hub.requests
        if method == "GET" and "/resolve/" in path
    }
    assert fetched == {"README.md", "encoder.json", "encoder.safetensors"}
    hub.requests.clear()
    Wav2Vec2Encoder.from_pretrained("me/mine")
    assert not any("/resolve/" in path for _, path in hub.requests)


def test_a_version_is_pinned_by_revision_and_digest(hub, folder, tmp_path):
    serve(hub, folder, tmp_path)
    digest = digest_of_folder(folder)
    both = (folder / "encoder.json").read_bytes()
    both += (folder / "encoder.safetensors").read_bytes()
    assert digest == hashlib.sha256(both).hexdigest()
    load = Wav2Vec2Encoder.from_pretrained
    assert equal(load("me/mine", revision=OLD), load(tmp_path / "old"))
    assert equal(load("me/mine", digest=digest), load(folder, digest=digest))
    with pytest.raises(
        UserError, match=f"is {digest_of_folder(tmp_path / 'old')}"
    ):
        load("me/mine", revision=OLD, digest=digest)
    with pytest.raises(UserError, match="no revision v9"):
        load("me/mine", revision="v9")
    with pytest.raises(UserError, match="for names on the hub"):
        load(folder, revision=OLD)


def test_a_folder_comes_first(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    folder.rename("me/mine")
    assert Wav2Vec2Encoder.from_pretrained("me/mine").d_model == 8
    assert not hub.requests


def test_probes_and_encode_take_both_kinds_of_names(hub, folder, tmp_path):
    serve(hub, folder, tmp_path)
    assert isinstance(open_encoder("me/mine"), Wav2Vec2Encoder)
    hub.models["me/theirs"] = {"main": OLD, OLD: {"config.json": b"{}"}}
    with pytest.raises(UserError, match="HuggingFace cannot load it"):
        open_encoder("me/theirs")
    with pytest.raises(UserError, match="hub has no such name"):
        open_encoder("me/nothing")


def test_no_network(hub, folder, tmp_path, monkeypatch):
    serve(hub, folder, tmp_path)
    Wav2Vec2Encoder.from_pretrained("me/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert isinstance(open_encoder("me/mine"), Wav2Vec2Encoder)
    with pytest.raises(UserError, match="hub cannot be reached"):
        Wav2Vec2Encoder.from_pretrained("me/other")


def test_no_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "summarymixing\[hub\]"'):
        Wav2Vec2Encoder.from_pretrained("me/mine")


def push(*words):
    """Return the exit status."""
    with pytest.raises(SystemExit) as caught:
        main(["push", *map(str, words)])
    return caught.value.code


def test_what_is_pushed_is_loaded_by_the_line_that_is_printed(
    hub, folder, capsys
):
    assert push(folder, "me/mine", "--private") == 0
    assert hub.private == {"me/mine"}
    line = capsys.readouterr().out.split("\n", 2)[2]
    assert equal(
        eval(line, {"Wav2Vec2Encoder": Wav2Vec2Encoder}),
        Wav2Vec2Encoder.from_pretrained(folder),
    )
    files = hub.models["me/mine"][NEW]
    assert files.keys() == read(folder).keys()
    assert b'from_pretrained("me/mine")' in files["README.md"]


def test_what_is_public_is_not_taken_for_private(hub, folder, capsys):
    hub.models["me/mine"] = {"main": OLD, OLD: {}}
    assert push(folder, "me/mine", "--private") == 2
    assert "is public" in capsys.readouterr().err
    assert NEW not in hub.models["me/mine"]


def test_push_without_a_login(hub, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    assert push(folder, "me/mine") == 2
    assert "hf auth login" in capsys.readouterr().err


def test_a_damaged_encoder_is_not_pushed(hub, folder, capsys):
    (folder / "encoder.safetensors").write_bytes(b"half")
    assert push(folder, "me/mine") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert push(folder, "mine") == 2
    assert "give it as user/name" in capsys.readouterr().err
    assert not hub.requests
