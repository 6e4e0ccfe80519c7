"""What every test may ask for: the shared vocabularies and goldens, where they are beside the clone."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Networks here are tiny: waking a second thread costs more than it does. Set before NumPy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiled modules are kept, whatever the environment says: the tests start some hundred processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Messages are compared in English, whatever the locale of the machine.
os.environ.pop("LC_ALL", None)
os.environ["LC_MESSAGES"] = "C"

# A shared machine may stall for longer than any example takes.
settings.register_profile("hanmo", deadline=None)
settings.load_profile("hanmo")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def nothing_is_flushed() -> Iterator[None]:
    """Leave out fsync, which makes each of some thousand small files wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real vocabularies, checkpoint indexes and corpus; not part of a clone."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"looked for the shared vocabularies and corpus in {folder}; they are not there")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the goldens that are part of the clone."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def indexes(shared: Path) -> Path:
    """Folder of the two published GPT2_ML checkpoints' `.index` files."""
    return shared / "checkpoints-index"
