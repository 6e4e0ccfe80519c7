"""Run a script whose imports of bert4keras and Keras are served by Hanmo: with Keras only where it is needed."""

import importlib
import importlib.metadata
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from hanmo.compat.bert4keras._check import Finding, find_uses, line_of_import, scripts_beside
from hanmo.compat.bert4keras._modules import PLAIN, Face, read_script
from hanmo.errors import HanmoError, MissingExtra, Unsupported

KERAS = ("keras>=3.10,<4", (3, 10), (4,))
"""The versions of Keras that `hanmo[keras]` installs: as a requirement, from, and below."""


def run_script(path: Path, arguments: Sequence[str] = (), *, keras: bool | None = None) -> None:
    """Run a script as `python PATH ARGUMENTS` does, but with `served` imports; its errors are not caught.

    keras: whether Keras is used; None: where the script, or one that it imports from its folder, needs it.
    Raises MissingFile, and MissingExtra where Keras is needed and missing.
    """
    read_script(path)
    face = choose_face(path) if keras is None else keras_face() if keras else PLAIN
    before = sys.argv, sys.path[:]
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with ExitStack() as inside:
            if face.keras:
                inside.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", category=UserWarning, module=r"keras\.src\.")
            inside.enter_context(served(face))
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def check_script(path: Path, *, keras: bool | None = None) -> list[Finding]:
    """List what a script uses, by line, and whether it is supported; for keras and errors see `run_script`.

    What is not supported in the files that it imports from its folder is listed at the line of the import.
    Raises Unsupported for what is not Python 3.
    """
    try:
        face = choose_face(path) if keras is None else keras_face() if keras else PLAIN
    except MissingExtra:
        if keras:
            raise
        face = PLAIN
    found = find_uses(path, face)
    for beside in scripts_beside(path)[1:]:
        line = line_of_import(path, beside.stem)
        uses = [each for each in find_uses(beside, face) if not each.supported]
        found += [each._replace(line=line, text=f"{beside.name}:{each.line}: {each.text}") for each in uses]
    return sorted(found)


def choose_face(path: Path) -> Face:
    """Return the face that a script needs: without Keras unless it uses what Keras alone has."""
    try:
        scripts = scripts_beside(path)
    except Unsupported:  # no Python 3: running it shows where
        return PLAIN
    for script in scripts:
        for use in find_uses(script, PLAIN):
            if use.of_keras:
                return keras_face(f"{script}:{use.line}: {use.text.split(':')[0]}")
    return PLAIN


def keras_face(user: str = "this") -> Face:
    """Return the face with Keras; user: what needs it, for the error. Raises MissingExtra without a fitting Keras."""
    requirement, first, end = KERAS
    try:
        version = importlib.metadata.version("keras")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra(f"{user} needs Keras; pip install 'hanmo[keras]'") from None
    if not first <= tuple(int(number) for number in version.split(".")[:2]) < end:
        raise MissingExtra(f"{user} needs {requirement}; {version} is installed: pip install 'hanmo[keras]'")
    os.environ["KERAS_BACKEND"] = "torch"
    return importlib.import_module("hanmo.compat.bert4keras.graph.modules").FACE


def frames_of(path: Path, trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames before those of a script; None if it has none, as for a syntax error."""
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return trace


def line_of(path: Path, trace: TracebackType | None) -> int | None:
    """Return the line of the innermost frame of a script."""
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == str(path)]
    return lines[-1] if lines else None


def own_error(error: BaseException) -> HanmoError | None:
    """Return the error of Hanmo's that a script met, also where Keras raised one of its own over it; else None."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = any("/keras/src/" in Path(frame.filename).as_posix() for frame in frames)
    found = error if isinstance(error, HanmoError) else None
    before = error.__cause__ or error.__context__
    while before is not None and inside:
        found = before if isinstance(before, HanmoError) else found
        before = before.__cause__ or before.__context__
    return found


@contextmanager
def served(face: Face = PLAIN) -> Iterator[None]:
    """Make `import bert4keras`, `keras` and the like give the modules of a face, whatever is installed."""
    importer = _Importer(face)
    hidden = importer.remove()
    sys.meta_path.insert(0, importer)
    try:
        yield
    finally:
        sys.meta_path.remove(importer)
        importer.remove()
        sys.modules.update(hidden)


class _Importer(MetaPathFinder, Loader):
    """Imports the modules of a face themselves, so that a class is the same object under both names."""

    def __init__(self, face: Face) -> None:
        self.face = face

    def _serves(self, name: str) -> bool:
        # What Keras is made of stays: a second copy would be another Keras.
        return name.split(".")[0] in self.face.served and not name.startswith(("keras.src", "keras.api"))

    def remove(self) -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if self._serves(name)}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not self._serves(fullname):
            return None
        return ModuleSpec(fullname, self, is_package="." not in fullname)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = self.face.find(spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has replaced it
