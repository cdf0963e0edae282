"""Published files of PyTorch (.pt, .ckpt), which are pickles: read so that nothing in them but tensors and plain values
can come to life.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from ..errors import UserError
from .untrusted import real_file, show


def read_states(path: Path) -> dict[str, Any]:
    """The dictionary of a file; its tensors stay on disk until they are used.

    Raises:
        UserError: one line: no such file, no file of PyTorch, one with more than tensors and plain values in it, or no
            dictionary.
    """
    target = real_file(path)
    # megatron-core lets more classes through, for its own checkpoints.
    others = get_safe_globals()
    clear_safe_globals()
    try:
        # weights_only: an unpickler of its own, which makes tensors and plain containers and refuses all else.
        content = torch.load(target, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(target))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError) as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UserError(
                f"{path}: a pickle with more than tensors in it ({show(found[1])}), which could run code and is not "
                "loaded; save its state dict alone (torch.save of a dictionary of tensors) where you trust the file"
            ) from error
        reason = show(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise UserError(f"{path}: not a file of PyTorch with tensors, or a damaged one ({reason})") from error
    finally:
        add_safe_globals(others)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}; expected a dictionary of tensors")
    return content


def tensors_under(content: dict[str, Any], entries: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    """The tensors of the first of ``entries`` that a file's dictionary has, by key; of itself where it has none but
    tensors.  UserError, one line, where that are none.
    """
    held = next((content[name] for name in entries if name in content), content)
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        known = ", ".join(show(key) for key in list(content)[:5])
        raise UserError(f"{path}: no tensors under {' or '.join(entries)}; it has {known or 'nothing'}")
    return {str(key): value for key, value in held.items()}
