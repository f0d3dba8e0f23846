"""`poad train --watch` serves the report while it trains, ends by itself, and changes nothing."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from forked import poad

from poad.cli.main import main
from poad.runs import Run

SMALL = (
    "--env",
    "poad/TomatoSalad-v0",
    "--streams",
    "4",
    "--horizon",
    "16",
    "--eval.episodes",
    "0",
)


def ask(url: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_report_is_served_while_training_and_the_run_is_the_same(tmp_path: Path):
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    command = ["train", "--run", str(watched), "--watch", "--quiet", *SMALL, "--steps", "2048"]
    training = poad(*command)
    match = re.match(r"Watch it at (http://127\.0\.0\.1:\d+/)", training.line())
    assert match
    status, page = ask(match[1], "/")
    assert status == 200
    assert b"poad/TomatoSalad-v0 by poad" in page
    status, data = ask(match[1], "/data")
    assert status in (200, 503)  # 503 while a line is being written
    assert status == 503 or len(json.loads(data)["runs"]) == 1
    assert ask(match[1], "/", "evil.example")[0] == 403
    assert training.wait() == 0
    assert main(["train", "--run", str(alone), "--quiet", *SMALL, "--steps", "2048"]) == 0
    timing = re.compile(r"seconds|per_second")
    runs = [
        [{k: v for k, v in m.items() if not timing.search(k)} for m in Run.open(path).metrics()]
        for path in (watched, alone)
    ]
    assert str(runs[0]) == str(runs[1])


def test_a_port_without_watch_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["train", "--run", str(tmp_path / "r"), "--port", "8000", *SMALL]) == 2
    assert "--port belongs to --watch" in capsys.readouterr().err
    assert main(["train", "--run", str(tmp_path / "r"), "--watch", "--port", "99999", *SMALL]) == 2
    assert "Port 99999 does not exist" in capsys.readouterr().err
