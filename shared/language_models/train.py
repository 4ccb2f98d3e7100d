"""Training small models of the GPT-2 architecture on the embedded corpus.

Towards Monosemanticity (section "Problem Setup"): one attention and one MLP block, residual width
128, 512 ReLU neurons, Adam; A and B differ in their seed alone. The paper names no number of heads,
context, vocabulary or learning rate.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.corpus.shards import Contexts
from shared.errors import Diverged
from shared.experiment import Config
from shared.files import atomic, write_json
from shared.memory import keep_freed_memory
from shared.progress import progress
from shared.provenance import content_hash

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

CHECKPOINT_EVERY = 500
BETAS = (0.9, 0.98)
CLIP = 1.0


class ModelConfig(Config):
    """The shape of a model and how it trains."""

    layers: int = Field(ge=1)
    d_model: int = Field(ge=1)
    d_mlp: int = Field(ge=1)
    heads: int = Field(ge=1)
    activation: str
    tied: bool
    """Whether the unembedding is the embedding (GPT-2), or has weights of its own."""
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1)
    """Contexts in a batch."""
    lr: float = Field(2e-3, gt=0)
    warmup: int = 200
    weight_decay: float = 0.01
    seed: int


def create(config: ModelConfig, vocabulary: int, length: int) -> GPT2LMHeadModel:
    """Return an untrained model; its weights depend on `config.seed` alone."""
    from transformers import GPT2Config, GPT2LMHeadModel  # seconds: only what makes a model does

    shape = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=config.d_model,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=config.d_mlp,
        activation_function=config.activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=config.tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return GPT2LMHeadModel(shape)


def batch_indices(seed: int, contexts: int, batch: int, step: int) -> Int[np.ndarray, " batch"]:
    """Return the contexts of a step: a fresh permutation for every epoch, by seed."""
    per_epoch = contexts // batch
    epoch, at = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(contexts)
    return order[at * batch : (at + 1) * batch]


def learning_rate(config: ModelConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to a tenth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)


def next_token_losses(
    model: torch.nn.Module, tokens: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length-1"]:
    """Return the loss, in nats, of predicting each token from those before it."""
    logits = model(tokens).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).view(len(tokens), -1)


@torch.inference_mode()
def mean_loss(model: torch.nn.Module, contexts: Contexts, batch: int = 64) -> float:
    """Return the mean loss over all predicted tokens of `contexts`, in nats."""
    device = next(model.parameters()).device
    total = 0.0
    for at in range(0, len(contexts), batch):
        tokens = torch.from_numpy(contexts.tokens[at : at + batch].astype(np.int64)).to(device)
        total += float(next_token_losses(model, tokens).double().sum())
    return total / (len(contexts) * (contexts.tokens.shape[1] - 1))


def train_model(
    config: ModelConfig, contexts: Contexts, vocabulary: int, checkpoint: Path, label: str
) -> GPT2LMHeadModel:
    """Train a model, going on from `checkpoint` where a run of the same settings was stopped.

    Matrix products run in bfloat16, weights and losses stay in float32.

    Args:
        contexts: the training split.
        vocabulary: tokens that the model knows.
        checkpoint: a folder for the state of an unfinished run.
        label: shown with the progress.

    Raises:
        Diverged: the loss is not finite.
    """
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = create(config, vocabulary, contexts.tokens.shape[1])  # transformers has no types
    model.to(device)
    decayed: list[Tensor] = [weight for weight in model.parameters() if weight.dim() > 1]
    others: list[Tensor] = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
    weights = [*decayed, *others]
    done = _resume(checkpoint, config, weights, optimizer)
    with progress(label, config.steps) as advance:
        if done:
            advance(done)
        for step in range(done, config.steps):
            index = batch_indices(config.seed, len(contexts), config.batch, step)
            tokens = torch.from_numpy(contexts.tokens[index].astype(np.int64)).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            with torch.autocast(device, torch.bfloat16):
                logits = model(tokens).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens[:, 1:].flatten()
            )
            if not bool(loss.isfinite()):
                raise Diverged(f"{label}: the loss is {loss.item()} at step {step}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            advance()
            if (step + 1) % CHECKPOINT_EVERY == 0:
                _save(checkpoint, config, weights, optimizer, step + 1)
    trained: GPT2LMHeadModel = model
    return trained


def _state(weights: list[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for number, weight in enumerate(weights):
        state[f"{number}.weight"] = weight.detach()
        for key, value in optimizer.state[weight].items():
            state[f"{number}.{key}"] = value
    return state


def _save(
    folder: Path,
    config: ModelConfig,
    weights: list[Tensor],
    optimizer: torch.optim.Optimizer,
    done: int,
) -> None:
    metadata = {"config": content_hash(config.model_dump(mode="json")), "done": str(done)}
    with atomic(folder / "state.safetensors") as temporary:
        save_file(_state(weights, optimizer), temporary, metadata=metadata)


def _resume(
    folder: Path, config: ModelConfig, weights: list[Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Restore an unfinished run of the same settings; return the steps that it has done."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("config") != content_hash(config.model_dump(mode="json")):
        return 0
    state = load_file(path)
    with torch.no_grad():
        for number, weight in enumerate(weights):
            weight.copy_(state[f"{number}.weight"])
            optimizer.state[weight] = {
                key: state[f"{number}.{key}"].to("cpu" if key == "step" else weight.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return int(metadata["done"])


def save_model(model: GPT2LMHeadModel, folder: Path, record: dict[str, Any]) -> None:
    """Write config.json, model.safetensors (float16) and training.json, as Hugging Face has it."""
    half: Any = model
    half.half()
    tensors = {name: tensor.contiguous().cpu() for name, tensor in half.state_dict().items()}
    if half.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    config |= {
        key: value
        for key, value in half.config.to_diff_dict().items()
        if key not in ("transformers_version", "dtype", "torch_dtype")
    }
    write_json(folder / "config.json", config)
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "training.json", record)
