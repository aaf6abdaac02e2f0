"""A real registry for tests: Debian's docker-registry on loopback, from a configuration written here.

    with LocalRegistry(tmp_path / "registry") as registry:               # plain http
        image = registry.put_image("library/busybox", "latest", [layer])  # layers: bytes of gzipped tars
        registry.address                                                  # "127.0.0.1:PORT"
        f"{registry.address}/library/busybox:latest"                      # what clients name

    LocalRegistry(folder, htpasswd=True)       # NAME and PASSWORD below
    authority = Authority(tmp_path / "ca")     # makes a CA; authority.certificate is its file
    LocalRegistry(folder, tls=authority)       # https; authority.host_dir(tmp_path / "certs.d", registry)
    LocalRegistry(folder, tls=authority, client_certificates=True)
    with TokenServer(authority) as tokens, LocalRegistry(folder, tokens=tokens) as registry:
        tokens.asked                           # what was asked: method, scopes, form or name
        tokens.lasts = 60                      # seconds of the tokens given from now on

A registry that is stopped and entered again on the same folder has what it had, at the same address. A
seeding test that wants faults puts `tests.support.fault_proxy.FaultProxy(registry.address)` in front.
`collect()` runs the registry's own garbage collector on the folder.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import http.server
import io
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAME, PASSWORD = "ann", "a secret"
REFRESH_TOKEN = "refresh-token-of-ann"
# bcrypt of PASSWORD, the only form that the registry reads.
_HTPASSWD = f"{NAME}:$2b$05$l/2eRq8SeUEpbqCdfGPopeHVjk4W8cEcnJLKv.2i2JzG2dqPJI/wi\n"
_STARTS = 10.0  # seconds
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Descriptor = dict[str, Any]


class LocalRegistry:
    """A registry process below `folder`, while the block lasts."""

    def __init__(
        self,
        folder: Path,
        *,
        htpasswd: bool = False,
        tokens: TokenServer | None = None,
        tls: Authority | None = None,
        client_certificates: bool = False,
    ) -> None:
        self.folder = folder
        self.log = folder / "registry.log"
        self._tls = tls
        self._basic = htpasswd
        self._tokens = tokens
        folder.mkdir(parents=True, exist_ok=True)
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        listens: dict[str, Any] = {"addr": self.address}
        if tls is not None:
            certificate, key = tls.issue("registry", "127.0.0.1")
            listens["tls"] = {"certificate": str(certificate), "key": str(key)}
            if client_certificates:
                listens["tls"]["clientcas"] = [str(tls.certificate)]
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(folder / "data")},
                "delete": {"enabled": True},
            },
            "http": listens,
        }
        if htpasswd:
            (folder / "htpasswd").write_text(_HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        if tokens is not None:
            config["auth"] = {"token": tokens.config()}
        self._config = folder / "config.yml"  # JSON is YAML
        self._config.write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalRegistry:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [_binary(), "serve", self._config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _STARTS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"the registry does not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; the data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def collect(self) -> str:
        """What the registry's garbage collector says; it fails on an image that is not whole."""
        done = subprocess.run(
            [_binary(), "garbage-collect", self._config],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    # Seeding, and looking at what clients have pushed, by the standard library's client.

    def put_image(
        self,
        repository: str,
        tag: str,
        layers: Sequence[bytes],
        platform: tuple[str, str] = ("linux", "amd64"),
    ) -> Descriptor:
        """Push an image; the descriptor of its manifest. `layers` are gzipped tar archives; the tag may be
        empty, for an image of an index."""
        config = {
            "os": platform[0],
            "architecture": platform[1],
            "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [
                    f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}" for layer in layers
                ],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **self.put_blob(repository, json.dumps(config).encode())},
            "layers": [{"mediaType": OCI_LAYER, **self.put_blob(repository, layer)} for layer in layers],
        }
        return self.put_manifest(repository, tag, manifest)

    def put_index(self, repository: str, tag: str, images: Sequence[tuple[Descriptor, str]]) -> Descriptor:
        """Push an index of images that are there, each with its architecture; its descriptor."""
        listed = [
            {**image, "platform": {"os": "linux", "architecture": architecture}}
            for image, architecture in images
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        return self.put_manifest(repository, tag, index)

    def put_manifest(self, repository: str, tag: str, document: dict[str, Any]) -> Descriptor:
        """Push a document as it is; its descriptor."""
        data = json.dumps(document).encode()
        kind, digest = str(document["mediaType"]), _digest(data)
        self.request("PUT", f"/v2/{repository}/manifests/{tag or digest}", data, {"Content-Type": kind})
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def put_blob(self, repository: str, data: bytes) -> Descriptor:
        """Push a blob; digest and size."""
        location = self.request("POST", f"/v2/{repository}/blobs/uploads/")[1]["location"]
        parts = urllib.parse.urlsplit(location)
        target = f"{parts.path}?{parts.query}&digest={_digest(data)}"
        self.request("PUT", target, data, {"Content-Type": "application/octet-stream"})
        return {"digest": _digest(data), "size": len(data)}

    def manifest(self, repository: str, reference: str) -> tuple[str, dict[str, Any]]:
        """Media type and document that the registry has."""
        accept = f"{OCI_INDEX}, {OCI_MANIFEST}, application/vnd.docker.distribution.manifest.v2+json"
        body, headers = self.request(
            "GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": accept}
        )
        return headers["content-type"], json.loads(body)

    def blob(self, repository: str, digest: str) -> bytes:
        return self.request("GET", f"/v2/{repository}/blobs/{digest}")[0]

    def request(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """One request with the rights to do all; fails for an error."""
        sent = dict(headers or {})
        if self._basic:
            sent["Authorization"] = "Basic " + base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
        if self._tokens is not None:
            repository = target.split("/v2/")[1].split("/blobs/")[0].split("/manifests/")[0]
            sent["Authorization"] = f"Bearer {self._tokens.token([f'repository:{repository}:pull,push'])}"
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(self.address, timeout=30, context=self._tls.context())
        else:
            connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, target, body, sent)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status < 400, f"{method} {target}: {answer.status} {data[:500]!r}"
        return data, {name.lower(): value for name, value in answer.getheaders()}


class Authority:
    """A CA in a folder, made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def issue(self, name: str, address: str = "") -> tuple[Path, Path]:
        """Files of a certificate and its key: a server's at an IP address, or else a client's."""
        key, asked, made = (self.folder / f"{name}.{end}" for end in ("key", "csr", "cert"))
        _openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", asked
        )
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName=IP:{address}\n" if address else "extendedKeyUsage=clientAuth\n"
        )
        _openssl(
            *("x509", "-req", "-in", asked, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", "2", "-extfile", extensions, "-out", made),
        )
        return made, key

    def host_dir(self, folder: Path, registry: LocalRegistry, *, client: bool = False) -> Path:
        """A certs.d as Docker has it, in which the registry is known."""
        place = folder / registry.address
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.certificate, place / "ca.crt")
        if client:
            certificate, key = self.issue("client")
            shutil.copy(certificate, place / "client.cert")
            shutil.copy(key, place / "client.key")
        return folder

    def context(self) -> ssl.SSLContext:
        """For a client that trusts this authority."""
        return ssl.create_default_context(cafile=self.certificate)


@dataclass
class Asked:
    """One question to the token server. form: what was posted; name: by which Basic asked."""

    method: str
    scopes: list[str]
    form: dict[str, str] = field(default_factory=dict)
    name: str = ""
    status: int = 200


class TokenServer:
    """A token server (distribution: Token Authentication, OAuth2): everybody may pull what begins with
    `public/`, NAME with PASSWORD or REFRESH_TOKEN may do all."""

    def __init__(self, authority: Authority, *, only_get: bool = False) -> None:
        self.asked: list[Asked] = []
        self.lasts = 300.0
        self._only_get = only_get
        self._certificate, self._key = authority.issue("tokens", "127.0.0.1")
        self._authority = authority
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                given = self.headers.get("Authorization", "").removeprefix("Basic ")
                name, _, password = base64.b64decode(given).decode().partition(":")
                self._answer(Asked("GET", query.get("scope", []), name=name), name, password == PASSWORD)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {key: value[0] for key, value in urllib.parse.parse_qs(body).items()}
                asked = Asked("POST", form.get("scope", "").split(), form=form)
                if server._only_get:
                    self._send(asked, 404, {})
                    return
                by_password = (form.get("username"), form.get("password")) == (NAME, PASSWORD)
                by_token = form.get("refresh_token") == REFRESH_TOKEN
                self._answer(asked, "someone", by_password or by_token)

            def _answer(self, asked: Asked, name: str, known: bool) -> None:
                if name and not known:
                    self._send(asked, 401, {"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]})
                    return
                scopes = asked.scopes if known else [each for each in asked.scopes if ":public/" in each]
                token = server.token(scopes)
                self._send(
                    asked, 200, {"access_token": token, "token": token, "expires_in": int(server.lasts)}
                )

            def _send(self, asked: Asked, status: int, document: dict[str, Any]) -> None:
                asked.status = status
                server.asked.append(asked)
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def config(self) -> dict[str, str]:
        """What a registry has to know of it."""
        bundle = str(self._authority.certificate)
        return {"realm": self.url, "service": "test", "issuer": "test", "rootcertbundle": bundle}

    def token(self, scopes: Sequence[str]) -> str:
        """A signed token for the scopes (distribution: JWT)."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        moment = int(time.time())
        claims = {"iss": "test", "sub": NAME, "aud": "test", "nbf": moment - 60, "iat": moment - 60}
        claims |= {"exp": moment + int(self.lasts), "jti": str(time.monotonic_ns()), "access": access}
        body = ssl.PEM_cert_to_DER_cert(self._certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(body).decode()]}
        signed = f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(claims).encode())}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self._key],
            input=signed.encode(),
            capture_output=True,
            check=True,
        ).stdout
        return f"{signed}.{_base64(signature)}"


def layer_of(files: dict[str, bytes]) -> bytes:
    """A gzipped layer with these files, the same bytes each time."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(archive.getvalue(), 1, mtime=0)


def _binary() -> str:
    own = Path(__file__).parents[2] / ".venv/bin/docker-registry"
    found = shutil.which("docker-registry") or (str(own) if own.exists() else "")
    assert found, "docker-registry is missing: deploy/setup --tests brings it"
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)
