"""A small OpenML on loopback: answers in the shape of the real one, for tables written here."""

import gc
import gzip
import hashlib
import http.server
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import pytest


@dataclass
class Published:
    """One table: ARFF attributes as (name, type), rows as text, and what the API says of it."""

    name: str
    attributes: list[tuple[str, str]]
    rows: list[str]
    target: str | None
    fields: dict[str, Any] = field(default_factory=dict)

    def arff(self) -> bytes:
        attributes = [f"@ATTRIBUTE {name} {kind}" for name, kind in self.attributes]
        lines = ["% written for a test", f"@RELATION {self.name}", "", *attributes, "", "@DATA"]
        return "\n".join([*lines, *self.rows, ""]).encode()

    def description(self, number: int) -> dict[str, Any]:
        said = {
            "id": str(number),
            "name": self.name,
            "version": "1",
            "description": "A table of the tests.",
            "format": "ARFF",
            "upload_date": "2014-04-06T23:19:20",
            "licence": "Public",
            "url": f"https://api.openml.org/data/v1/download/{number}/{self.name}.arff",
            "parquet_url": f"https://data.openml.org/datasets/0000/{number:04}/dataset.pq",
            "file_id": str(number),
            "visibility": "public",
            "status": "active",
            "md5_checksum": hashlib.md5(self.arff()).hexdigest(),
        }
        if self.target is not None:
            said["default_target_attribute"] = self.target
        return {"data_set_description": said | self.fields}

    def features(self) -> dict[str, Any]:
        listed = []
        for index, (name, kind) in enumerate(self.attributes):
            nominal = kind.startswith("{")
            said: dict[str, Any] = {
                "index": str(index),
                "name": name.strip("'"),
                "data_type": "nominal" if nominal else "numeric",
                "is_target": str(name == self.target).lower(),
                "is_ignore": "false",
                "is_row_identifier": "false",
                "number_of_missing_values": "0",
            }
            if nominal:
                said["nominal_value"] = kind.strip("{}").split(",")
            listed.append(said)
        return {"data_features": {"feature": listed}}

    def qualities(self) -> dict[str, Any]:
        counted = {"name": "NumberOfInstances", "value": f"{len(self.rows)}.0"}
        return {"data_qualities": {"quality": [counted]}}


@dataclass
class OpenML:
    """The stub: what it holds, what it was asked, and whether it is to fail."""

    tables: dict[int, Published]
    asked: list[str] = field(default_factory=list)
    broken: int = 0
    """A status to answer everything with."""

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        kind, number = path.rpartition("/")[0], path.rpartition("/")[2]
        if self.broken:
            return self.broken, b"<html>trouble</html>"
        if path.startswith("/data/v1/download/"):
            return 200, self.tables[int(path.split("/")[4])].arff()
        table = self.tables.get(int(number))
        if table is None:
            return 412, json.dumps(
                {"error": {"code": "111", "message": "Unknown dataset"}}
            ).encode()
        answers = {
            "/api/v1/json/data": table.description(int(number)),
            "/api/v1/json/data/features": table.features(),
            "/api/v1/json/data/qualities": table.qualities(),
        }
        return 200, json.dumps(answers[kind]).encode()


@contextmanager
def serving(openml: OpenML, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let scikit-learn find the stub where it looks for OpenML, and nothing else."""
    from sklearn.datasets import _openml

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = openml.answer(urlparse(self.path).path)
            content = gzip.compress(content)
            self.send_response(status)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = f"http://127.0.0.1:{server.server_address[1]}"

    def redirected(request: Request, *args: Any, **kwargs: Any) -> Any:
        there = urlparse(request.full_url)
        assert there.scheme == "https"
        assert there.hostname in ("www.openml.org", "api.openml.org")
        moved = Request(here + there.path, headers=dict(request.header_items()))
        return urlopen(moved, *args, **kwargs)

    monkeypatch.setattr(_openml, "urlopen", redirected)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        with warnings.catch_warnings():  # scikit-learn leaves the answer to a 412 open
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
