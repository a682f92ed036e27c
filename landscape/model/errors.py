"""PyTorch's errors from inside a network, explained: which module, why, and what to do."""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections.abc import Iterator
from types import FrameType

import torch
from torch import nn

_KINDS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
# what PyTorch says → why, and what to do
_REASONS = {
    r"derivative for '?(?:aten::)?_?(?P<op>\w+?)(?:_backward|_double_backward)*'? is not implemented": (
        "PyTorch has no second derivative of {op}: put plain operations in its place, take differences of gradients, "
        "landscape.Hessian(…, products='difference'), or measure what needs no second derivative (surfaces, sharpness)"
    ),
    r"(use_reentrant|[Cc]heckpointing is not compatible)": (
        "torch.utils.checkpoint with use_reentrant=True hands out no derivatives here: pass use_reentrant=False, or "
        "switch checkpointing off"
    ),
    r"(aot_autograd|torch\.compile).*double backward": (
        "a compiled part has no second derivative: measure the network before it is compiled, or take differences of "
        "gradients, landscape.Hessian(…, products='difference')"
    ),
    r"cudnn RNN backward|_cudnn_rnn_backward": (
        "cuDNN's recurrent layers have no such derivative: wrap the call in torch.backends.cudnn.flags(enabled=False)"
    ),
    r"differentiated twice|once_differentiable": (
        "an autograd.Function is marked once_differentiable and has no second derivative: take differences of "
        "gradients, landscape.Hessian(…, products='difference')"
    ),
    r"Inference tensors": (
        "a tensor was made under torch.inference_mode(), which keeps no derivatives: clone it, or use torch.no_grad()"
    ),
    r"not appear to have been used|does not require grad|does not have a grad_fn": (
        "the loss depends on nothing that varies: is it computed from the model's output, without detach or .data?"
    ),
    r"'(tuple|list|dict|\w*Output)' object has no attribute|argument 'input'.* must be Tensor, not": (
        "a container came where a tensor belongs: pass data of tensors; if it is what the network returns, say which "
        "part with output="
    ),
    r"[Ss]parse": "sparse tensors are not supported here: pass sparse=False, or a dense tensor",
    r"Expected more than 1 value per channel": (
        "BatchNorm has no statistics of a single sample: pass a loader with drop_last=True, or another batch size"
    ),
    r"SyncBatchNorm expected input tensor to be on GPU": "SyncBatchNorm works on GPUs alone: use batchnorm='fixed'",
    r"meta tensor|'meta'|[Uu]ninitialized": (
        "weights are not there yet (meta or lazy): run the network once, or load them"
    ),
    r"argument #1 'indices'": (
        "it looks rows up by whole numbers (tokens) and was given others: pass inputs of dtype int64"
    ),
    r"(mat1 and mat2|should be the same|same dtype|expected scalar type|dtype)": (
        "data and weights do not fit in dtype or shape: call the network yourself on a batch of these data first"
    ),
    r"(shape|size|dimension|must match|Expected .*D|invalid for input)": (
        "data and network, or output and targets, do not fit in shape: call both yourself on a batch of these data"
    ),
}


@contextlib.contextmanager
def translated(what: str, model: nn.Module) -> Iterator[None]:
    """Explain an error of PyTorch, with the module in which it happened; errors raised on purpose pass.

    Args:
        what: was being done.
        model: whose modules may be named.

    Raises:
        ValueError: with the module, the reason and what to do; the original is its cause.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _KINDS as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        if not frames or _is_on_purpose(*frames[-1]):
            raise
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        matches = ((re.search(pattern, message), advice) for pattern, advice in _REASONS.items())
        known = (advice.format(**match.groupdict()) for match, advice in matches if match)
        why = next(known, "call the network yourself on a batch of these data")
        raise ValueError(f"{what} failed{_where(frames, model)}: {why} (PyTorch said: {message})") from error


def _is_on_purpose(frame: FrameType, line_number: int) -> bool:
    """Return whether code that is not PyTorch's raised the error by a statement of its own."""
    path = frame.f_code.co_filename.replace("\\", "/")
    line = linecache.getline(path, line_number).strip()
    return "/torch/" not in path and line.startswith("raise")


def _where(frames: list[tuple[FrameType, int]], model: nn.Module) -> str:
    """Return the innermost module at work, by its name in the model."""
    names = {id(module): name for name, module in model.named_modules()}
    for frame, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            return f" in {names[id(module)]} ({type(module).__name__})"
    return ""
