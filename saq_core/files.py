"""Files that are written whole or not at all, and read without executing anything."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.files import atomic, is_sealed, unsealed

FORMAT = "saq_core checkpoint 1"


def write(path: str | Path, kind: str, content: dict[str, Any]) -> None:
    """Write tensors and primitives to `path`: a temporary file beside it, renamed when complete."""
    with atomic(Path(path), sealed=True) as temporary:
        torch.save({"format": FORMAT, "kind": kind, "sealed": True, **content}, temporary)


def read(path: str | Path, kinds: str | tuple[str, ...], map_location: Any = "cpu") -> dict[str, Any]:
    """Read what `write` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or cut short, is not one of ours, or is of another kind.
    """
    content = read_any(path, map_location)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a saq_core checkpoint: it was written by something else")
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if content["kind"] not in kinds:
        raise ValueError(f"{path} must hold a {kinds[0]}, got a {content['kind']}")
    return content


def read_any(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a dict that torch.save wrote, ours or not; see `read`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on a foreign file; the error below says it
            content = torch.load(io.BytesIO(unsealed(path)), map_location=map_location, weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        if content.get("sealed") and not is_sealed(path):
            raise ValueError("its checksum is gone")
    except Exception as error:  # what a damaged file raises differs
        if isinstance(error, OSError) and error.filename is not None:  # from opening; a cut archive's has no name
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is cut short or not a saq_core checkpoint: {reason}") from error
    return content


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(Path(path)) as temporary:
        temporary.write_text(text)


def storable(value: Any) -> Any:
    """Return `value` if a checkpoint can hold it (tensors, primitives, lists and dicts of them), else its text."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): storable(item) for key, item in value.items()}
    return repr(value)


def check_same_settings(path: str | Path, stored: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """Raise unless a checkpoint was written under the same settings; `what` they are of."""
    changed = {name: stored.get(name) for name in expected | stored if stored.get(name) != expected.get(name)}
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        shown = f"{dict(list(changed.items())[:3])}{more}"
        raise ValueError(f"checkpoint {path} must come from the same {what}, got other {shown}: delete it or set these")


def check_same_network(model: nn.Module, state: dict[str, Any], path: str | Path) -> None:
    """Raise, before anything is changed, if the stored state does not fit the model."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        here, there = expected[name], state[name]
        if isinstance(here, Tensor) and here.shape != there.shape:
            problems.append(f"{name} has shape {tuple(there.shape)} there, {tuple(here.shape)} here")
        elif isinstance(here, dict) and here.get("bits") != there.get("bits"):
            problems.append(f"{name} has {there.get('bits')} bits there, {here.get('bits')} here")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path} holds another network: {'; '.join(problems[:3])}{more}")
