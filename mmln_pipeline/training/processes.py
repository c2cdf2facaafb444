"""Training on several processes: torchrun's share each step, each with pairs of its own; others are refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Literal, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor

from mmln_pipeline.machine.devices import has_fast_bfloat16
from mmln_pipeline.training.config import TrainConfig

PROCESS_COUNTS = {
    "WORLD_SIZE": "a starter of PyTorch's",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}
"""Environment variables by which a starter of several processes tells each of them how many there are."""
PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which packs and validates; torchrun ends them when one of them dies."""
LEAST_BFLOAT16 = 5
"""Voxels along each side of the coarsest features that a CPU takes in bfloat16: with two along the first axis, PyTorch
2.13 (oneDNN, AVX-512) leaves gradients of weights to whatever the memory held."""


def check_starter(device: torch.device) -> None:
    """Refuse to be one of several processes that know nothing of each other: all would write the same files.

    Parameters
    ----------
    device : torch.device
        What was asked for.

    Raises
    ------
    ValueError
        When the environment tells of several processes and not of torchrun, or their GPUs are too few.
    """
    if _is_shared():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if device.type == "cuda" and (device.index is not None or here > torch.cuda.device_count()):
            raise ValueError(
                f"training: {here} processes of torchrun on this machine want a GPU each, found {device} of "
                f"{torch.cuda.device_count()}: give --device cuda, and --nproc-per-node at most as many"
            )
        return
    for variable, starter in PROCESS_COUNTS.items():
        count = os.environ.get(variable, "1")
        if count.isdigit() and int(count) > 1:
            raise ValueError(
                f"training: expected one process, or several of torchrun, found {count} ({variable} of {starter}): "
                f"start one, or torchrun --nproc-per-node {count} --no-python mmln train CONFIG.toml"
            )


def start_fabric(device: torch.device, config: TrainConfig) -> Fabric:
    """Start what computes: one process on a device, or this one's part of torchrun's.

    Parameters
    ----------
    device : torch.device
        Of several processes each takes a GPU of its own, by its number on the machine.
    config : TrainConfig
        How large the volumes are.

    Returns
    -------
    Fabric
        Launched.
    """
    is_gpu = device.type == "cuda"
    coarsest = min(config.network.grid) >> (config.data.halvings + config.network.levels)
    is_half = has_fast_bfloat16(device) and (is_gpu or coarsest >= LEAST_BFLOAT16)
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if is_half else "32-true"
    if _is_shared():
        backend = "nccl" if is_gpu else "gloo"
        _connect(backend)
        fabric = Fabric(
            accelerator="gpu" if is_gpu else "cpu",
            strategy=DDPStrategy(process_group_backend=backend),
            devices=int(os.environ["LOCAL_WORLD_SIZE"]),
            num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
            precision=precision,
            plugins=[TorchElasticEnvironment()],
        )
    else:
        fabric = Fabric(
            accelerator="gpu" if is_gpu else "cpu",
            devices=[device.index or 0] if is_gpu else 1,
            precision=precision,
            plugins=[LightningEnvironment()],  # one process, also in a job of several tasks
        )
    fabric.launch()
    return fabric


def _connect(backend: str) -> None:
    """Let torchrun's processes find each other; Fabric takes what it finds connected.

    In PyTorch 2.13 those that torchrun starts again find the addresses of the dead ones: its store stays, and so do its
    keys. Here each start has keys of its own.
    """
    store, rank, size = next(torch.distributed.rendezvous("env://"))
    own = torch.distributed.PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=PATIENCE)


def share_gradients(fabric: Fabric, weights: Iterable[Tensor]) -> None:
    """Replace the gradients of weights by their mean over all processes."""
    if fabric.world_size > 1:
        slopes = [weight.grad for weight in weights if weight.grad is not None]
        mean = mean_over_all(fabric, torch.cat([slope.flatten() for slope in slopes]))  # one message
        for slope, own in zip(slopes, mean.split([slope.numel() for slope in slopes]), strict=True):
            slope.copy_(own.view(slope.shape))


def mean_over_all(fabric: Fabric, numbers: Tensor) -> Tensor:
    """Return the mean of what each process has."""
    return cast(Tensor, fabric.all_reduce(numbers, reduce_op="mean"))


def is_so_everywhere(fabric: Fabric, is_so: bool) -> bool:
    """Tell whether something holds in every process."""
    return bool(mean_over_all(fabric, torch.tensor(float(is_so), device=fabric.device)) == 1)


def _is_shared() -> bool:
    """Tell whether torchrun started this process and others."""
    return TorchElasticEnvironment.detect() and int(os.environ["WORLD_SIZE"]) > 1
