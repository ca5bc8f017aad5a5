"""The peer's side of `training_speed`: `IdeficsForVisionText2Text` of transformers, trained as PyTorch is written.

It reads a task's `peer` folder and knows nothing of JAX, so that its memory is its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import IdeficsForVisionText2Text

from experiments.benchmarks.measuring import CORES, forget_peak, peak_bytes, runs_a_second

Inputs = dict[str, torch.Tensor]


class Peer:
    """A model and its optimizer, and one step of training."""

    def __init__(self, folder: Path):
        self.settings: dict[str, Any] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.model = IdeficsForVisionText2Text.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        ).train()
        decaying: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(self.settings["trains"])))
            if parameter.requires_grad:
                decays = name.startswith(tuple(self.settings["decays"])) and name.endswith("_proj.weight")
                (decaying if decays else others).append(parameter)
        self.trained = decaying + others
        groups = [
            {"params": decaying, "weight_decay": self.settings["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=tuple(self.settings["betas"]), eps=self.settings["eps"], fused=True
        )
        self.steps = 0

    def loss(self, batch: Inputs) -> torch.Tensor:
        """Mean cross entropy of the batch's answers, by the model's own loss function."""
        inputs = {name: array for name, array in batch.items() if name != "labels"}
        logits = self.model(**inputs, use_cache=False).logits
        # Given labels, the model itself would count its base vocabulary alone, and refuse logits of new tokens.
        return self.model.loss_function(logits=logits, labels=batch["labels"], vocab_size=logits.shape[-1])

    def step(self, batch: Inputs) -> float:
        """One step of training; its loss, before."""
        rates = self.settings["rates"]
        for group in self.optimizer.param_groups:
            group["lr"] = rates[min(self.steps, len(rates) - 1)]
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.settings["clip"], foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.item()


def read_batches(folder: Path) -> list[Inputs]:
    paths = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
    return [{name: torch.from_numpy(array) for name, array in np.load(path).items()} for path in paths]


def measure(task: str, seconds: float, examples: int) -> dict[str, float]:
    """Trains for so long, in whole passes over the task, after a first step that is not timed.

    Args:
      examples: of a batch, one of those that the task was cut into.
    """
    torch.set_num_threads(CORES)
    torch.set_num_interop_threads(1)
    folder = Path(task) / "peer"
    peer = Peer(folder)
    with torch.no_grad():
        loss = float(peer.loss(read_batches(folder / "first")[0]))
    batches = read_batches(folder / str(examples))
    peer.step(batches[0])
    forget_peak()
    rate = runs_a_second(lambda: [peer.step(batch) for batch in batches], seconds)
    answers = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    return {"loss": loss, "answers": rate * answers, "peak": peak_bytes()}
