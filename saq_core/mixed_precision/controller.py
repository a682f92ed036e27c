"""The recurrent controller that proposes bits layer by layer, and REINFORCE, which trains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.checking import seed_of

HIDDEN = 64
INITIAL = 0.1  # all parameters start in ± this


class Controller(nn.Module):
    """Draw one candidate per layer, given those before: LSTM -> linear -> softmax -> draw -> embedding -> LSTM.

    The paper's generator. It stays on the CPU: its draws decide which modules compute, so that the host needs them.

    Args:
        decisions: Layers, in the order of the network.
        candidates: For each of them.
        seed: Of its parameters and its draws.

    Source: Liu et al., Sharpness-aware Quantization, first version (2021), released code (64 hidden units, ± 0.1).
    """

    def __init__(self, decisions: int, candidates: int, *, seed: int = 0) -> None:
        super().__init__()
        self.decisions, self.candidates = decisions, candidates
        self.random = torch.Generator().manual_seed(seed_of(seed))
        with torch.random.fork_rng(devices=[]):
            self.cell = nn.LSTMCell(HIDDEN, HIDDEN)
            self.head = nn.Linear(HIDDEN, candidates)
            self.embedding = nn.Embedding(candidates, HIDDEN)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INITIAL, INITIAL, generator=self.random)

    def get_extra_state(self) -> Tensor:
        """Return the state of the draws, which a state dict must carry beside the tensors."""
        return self.random.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Load the state of the draws."""
        self.random.set_state(state)

    def forward(self, n: int = 1, choices: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw n choices; return them (n, decisions), their log-probabilities (n,) and entropies (n,).

        With `choices` (n, decisions) nothing is drawn: those are scored. The entropy of a choice is the sum over its
        steps of the entropy of the distribution drawn from.
        """
        n = n if choices is None else len(choices)
        x = self.head.weight.new_zeros(n, HIDDEN)
        state = (x, x)
        drawn, log_probability, entropy = [], x.new_zeros(n), x.new_zeros(n)
        for step in range(self.decisions):
            state = self.cell(x, state)
            logs = self.head(state[0]).log_softmax(1)
            probabilities = logs.exp()
            if choices is None:
                pick = torch.multinomial(probabilities.detach(), 1, generator=self.random)
            else:
                pick = choices[:, step, None]
            drawn.append(pick[:, 0])
            log_probability = log_probability + logs.gather(1, pick)[:, 0]
            entropy = entropy - (probabilities * logs).sum(1)
            x = self.embedding(pick[:, 0])
        return torch.stack(drawn, 1), log_probability, entropy


class Reinforce:
    """Train a controller: ``∇ [log π(choice)·(cost - baseline) - entropy_weight·H]``, cost and baseline constant.

    Args:
        controller: To be trained.
        lr: Of Adam with betas (0.5, 0.999).
        weight_decay: Of Adam.
        entropy_weight: Keeps the draws from settling early.
        memory: Share of the old value in the baseline, a moving average of the costs.

    Source: as `Controller`. Departures: the baseline, without which every draw is discouraged because every cost is
    positive; the cost is detached from the network's graph (theirs leaves gradients in the network).
    """

    def __init__(
        self, controller: Controller, *, lr: float, weight_decay: float, entropy_weight: float, memory: float
    ) -> None:
        self.controller, self.entropy_weight, self.memory = controller, entropy_weight, memory
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=lr, betas=(0.5, 0.999), weight_decay=weight_decay)
        self.baseline: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed search needs, beside the controller."""
        return {"optimizer": self.optimizer.state_dict(), "baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline = state["baseline"]

    def loss(self, log_probability: Tensor, entropy: Tensor, cost: Tensor) -> Tensor:
        """Return the surrogate loss, the mean over choices; all arguments (n,)."""
        cost = cost.detach()
        baseline = cost.mean() if self.baseline is None else self.baseline
        return (log_probability * (cost - baseline) - self.entropy_weight * entropy).mean()

    def update_(self, log_probability: Tensor, entropy: Tensor, cost: Tensor) -> None:
        """Make one step, then update the baseline."""
        self.optimizer.zero_grad()
        self.loss(log_probability, entropy, cost).backward()
        self.optimizer.step()
        mean = cost.detach().mean()
        self.baseline = mean if self.baseline is None else self.memory * self.baseline + (1 - self.memory) * mean
