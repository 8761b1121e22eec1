"""Where a run runs: one device in this process, or several processes joined by Lightning Fabric (DDP).

Fabric is imported only when it is asked for, so one device needs nothing but PyTorch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ipt_triton.cpu import cpu_flags, has_bf16
from ipt_triton.errors import IptError
from ipt_triton.train.errors import RuntimeUnavailable, TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """One process on one device.

    Attributes:
        device: of the model and the data.
        rank, processes: which of how many processes this is.
        agree_every: steps between two agreements of all processes about the clock.
        launch: of which torchrun the processes are; the same when it has started them again. Empty without one.
    """

    device: torch.device
    rank: int = 0
    processes: int = 1
    agree_every: int = 1
    launch: str = ""

    @property
    def precision(self) -> str:
        """`bf16` where the device multiplies matrices in it, else `fp32`; a CPU without it takes nine times as long."""
        if self.device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if has_bf16(cpu_flags()) else "fp32"

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module that a step must call, with its gradients averaged over the processes."""
        return module

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """While accumulating, gradients need not be averaged before the last micro-batch."""
        return nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        return values

    def from_first(self, value: Callable[[], T]) -> T:
        """What `value` gives in the first process, in all of them."""
        return value()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        return [value]

    def in_all(self, work: Callable[[], T]) -> T:
        """What `work` gives in this process, once it has been done in all of them.

        Raises:
            IptError, OSError: of `work`, or of another process, which is named: none waits for one that has ended.
        """
        made: list[T] = []
        own: Exception | None = None
        try:
            made.append(work())
        except (IptError, OSError) as error:
            own = error
        told = self.gather(own and (socket.gethostname(), own))
        if own:
            raise own
        for rank, failure in enumerate(told):
            if failure:
                host, of_other = failure
                kind = type(of_other) if isinstance(of_other, IptError) else TrainingError
                raise kind(f"process {rank} of {self.processes}, on {host}: {of_other}")
        return made[0]


@dataclass(frozen=True)
class FabricRuntime(Runtime):
    """Several processes joined by Lightning Fabric."""

    fabric: Any = None

    def wrap(self, module: nn.Module) -> nn.Module:
        return self.fabric.setup_module(module)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def no_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        return self.fabric.no_backward_sync(module, enabled=enabled)

    def mean(self, values: Tensor) -> Tensor:
        return self.fabric.all_reduce(values, reduce_op="mean")

    def from_first(self, value: Callable[[], T]) -> T:
        return self.fabric.broadcast(value() if self.rank == 0 else None)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(values, value)
        return values


def open_runtime(device: str, devices: int) -> Runtime:
    """The runtime for `devices` devices of a type on each machine; joins or launches the other processes.

    Under torchrun its processes are joined, `devices` of them on each machine; otherwise Fabric launches them by
    running the same command again.

    Raises:
        RuntimeUnavailable: no such device here, or Fabric is needed and not installed.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise RuntimeUnavailable(f"--device {device} is not a device; write cpu, cuda or cuda:1") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailable(f"--device {device}: this PyTorch sees no CUDA device; use --device cpu")
    machines = 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's; Fabric's own launcher sets WORLD_SIZE alone
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ["WORLD_SIZE"]) // devices
    if devices * machines == 1:
        return Runtime(chosen, launch=_launch())
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError as error:
        raise RuntimeUnavailable(
            f"several devices need Lightning Fabric ({error}): pip install lightning-fabric, or train on one device"
        ) from None
    fabric = Fabric(
        accelerator=chosen.type,
        devices=devices,
        num_nodes=machines,
        strategy=DDPStrategy(find_unused_parameters=True),  # a step uses the heads and tails of its tasks alone
    )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        _join_again("nccl" if chosen.type == "cuda" else "gloo")
    fabric.launch()
    return FabricRuntime(fabric.device, fabric.global_rank, fabric.world_size, 10, _launch(), fabric)


def _join_again(backend: str) -> None:
    """Join the processes that torchrun has started again.

    It keeps the store in which they find one another (PyTorch 2.13), so addresses of the dead would be found there.
    Each machine counts its own starts: several need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, with which the store is new.
    """
    store, rank, processes = next(torch.distributed.rendezvous("env://"))
    attempt = torch.distributed.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    torch.distributed.init_process_group(backend, store=attempt, rank=rank, world_size=processes)


def _launch() -> str:
    """The id that torchrun was given or has made; where there is none, the torchrun of this machine."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if run == "none" else run
