"""What has to stay as it was, and what is equal to the last bit."""

import torch
from networks import convolutional, quantized
from torch import nn

FLAGS = [getattr(torch.backends.mkldnn, part) for part in ("matmul", "conv", "rnn")]
FLAGS += [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]


def network(bits):
    """A network with everything that could be disturbed: mixed modes, some gradients, a delta that is not zero."""
    model = nn.Sequential(*(quantized(bits) if bits else convolutional()), nn.Dropout(0.5)).train()
    model[1].eval()
    model[4].momentum = None
    model[0].weight.grad = torch.ones_like(model[0].weight)
    if bits:
        model[3].delta.fill_(0.01)
    return model


def state(model):
    """Return everything that must stay, as comparable values."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    kept = {name: (id(t), t._version, t.requires_grad, t.detach().clone()) for name, t in tensors.items()}
    grads = {name: (id(p.grad), None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    modes = [(module.training, getattr(module, "momentum", None)) for module in model.modules()]
    flags = [flag.fp32_precision for flag in FLAGS] + [torch.get_float32_matmul_precision()]
    flags += [torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    return kept, grads, modes, flags, attributes, torch.get_rng_state()


def assert_same(before, after):
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert_same(a, b)
    else:
        assert before == after


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7e77), b.nan_to_num(7e77))
    if hasattr(a, "about"):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def tour(count):
    """Return a closed walk through the numbers below count that takes every ordered pair of them exactly once."""
    pairs = {state: [other for other in range(count) if other != state] for state in range(count)}
    stack, walk = [0], []
    while stack:  # Hierholzer
        stack.append(pairs[stack[-1]].pop()) if pairs[stack[-1]] else walk.append(stack.pop())
    return walk[::-1]
