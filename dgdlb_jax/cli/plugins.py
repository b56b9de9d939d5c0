"""Code of the user's own that registers policies, curves, topologies, demands or measures before a command starts."""

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

loaded: list[str] = []
"""What has been imported so far: it may have replaced anything."""


def load(name: str) -> None:
    """Import a module by its name (the current folder counts), or a file by its path ending in `.py`.

    **Raises:** `InputError` when there is no such module, or when it cannot be imported.
    """
    from dgdlb_jax.numerics.results import InputError

    try:
        if name.endswith(".py"):
            _load_file(Path(name))
        else:
            sys.path.insert(0, str(Path.cwd()))
            importlib.import_module(name)
        loaded.append(name)
    except InputError:
        raise
    except Exception as error:  # the module is the user's: whatever goes wrong in it is told in one sentence
        raise InputError(
            f"--import {name}: {type(error).__name__}: {error}; give a module that can be imported, or the path of a .py file."
        ) from error


def for_workers() -> Callable[[], None] | None:
    """What loads in another process what has been loaded here: files as they are, modules by their names; None where nothing was."""
    sources = [(name, Path(name).read_text() if name.endswith(".py") else None) for name in loaded]
    return partial(_load_sent, tuple(sources)) if sources else None


_sent: dict[str, str | None] = {}


def _load_sent(sources: tuple[tuple[str, str | None], ...]) -> None:
    from dgdlb_jax.numerics.results import InputError

    for name, text in sources:
        if name in _sent:
            if _sent[name] != text:
                raise InputError(f"a worker has imported another {name} before: restart the workers.")
        elif text is None:
            load(name)
        else:
            with tempfile.TemporaryDirectory(prefix="dgdlb-") as folder:
                file = Path(folder) / Path(name).name
                file.write_text(text)
                load(str(file))
        _sent[name] = text


def _load_file(path: Path) -> None:
    from dgdlb_jax.numerics.results import InputError

    if not path.is_file():
        raise InputError(f"--import {path}: there is no such file; check the path.")
    sys.path.append(str(path.resolve().parent))  # what it imports may lie beside it, and hides no library there
    name = f"dgdlb_import_{path.stem}"  # of its own: a file called json.py must not take the place of a library
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look a module up by its name
    spec.loader.exec_module(module)
