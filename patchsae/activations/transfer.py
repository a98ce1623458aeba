"""Tensors on their way to a device while it computes something else."""

from __future__ import annotations

import torch
from torch import Tensor


class Uploads:
    """Copies from the host to one device. On CUDA: through pinned memory, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def pinned(self) -> bool:
        """Whether what is copied had better lie in page-locked memory."""
        return self._stream is not None

    def begin(self, tensor: Tensor) -> Upload:
        """Start to copy; may be called from another thread than the one that computes."""
        if self._stream is None:
            return Upload(tensor.to(self._device), None)
        with torch.cuda.stream(self._stream):
            sent = tensor.pin_memory().to(self._device, non_blocking=True)
            return Upload(sent, self._stream.record_event())


class Upload:
    """One tensor on its way."""

    def __init__(self, tensor: Tensor, ready: torch.cuda.Event | None) -> None:
        self._tensor, self._ready = tensor, ready

    def arrived(self) -> Tensor:
        """The tensor on the device, for what is queued there from now on; the host does not wait."""
        if self._ready is not None:
            current = torch.cuda.current_stream(self._tensor.device)
            current.wait_event(self._ready)
            # Or the allocator could hand the memory to the next copy, on its own stream, while it is still read here
            self._tensor.record_stream(current)
        return self._tensor
