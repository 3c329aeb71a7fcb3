"""Arithmetic on a processor whose result for one picture depends neither on its batch nor on the number of threads.

The kernels that torch calls on a CPU sum in another order when the batch or the number of threads is another: in its last
bits a picture made among seven others differs from the same picture made alone. Measured operator by operator (torch 2.13,
oneDNN and MKL, AVX-512), three kinds do so: convolutions, whose kernel is chosen by the batch; 1 × 1 convolutions, whose
kernel is chosen by the number of threads; and matrix products of fewer than 16 rows. Here each picture's convolution is
called by itself, those of 1 × 1 are matrix products, and short products are filled up to 16 rows. All else goes together.
On a GPU other kernels are at work and nothing of this applies.
"""

from __future__ import annotations

from typing import Any

ROWS = 16
"""From this many rows on, a row of a matrix product does not depend on how many others there are."""


def exact(model: Any) -> Any:
    """Make a torch module (float32, on the CPU) exact in this sense, in place; gives it back."""
    import torch

    kinds: dict[type, Any] = {
        torch.nn.Linear: _linear, torch.nn.Conv2d: _convolution, torch.nn.ConvTranspose2d: _one_by_one_picture,
    }
    for module in model.modules():
        if wrap := next((wrap for kind, wrap in kinds.items() if isinstance(module, kind)), None):
            module.forward = wrap(module, module.forward)
    return model


def _linear(module: Any, plain: Any) -> Any:
    def forward(x: Any) -> Any:
        rows = x.numel() // x.shape[-1]
        if not 0 < rows < ROWS:
            return plain(x)
        filled = x.new_zeros(ROWS, x.shape[-1])
        filled[:rows] = x.reshape(rows, x.shape[-1])
        return plain(filled)[:rows].reshape(*x.shape[:-1], module.out_features)

    return forward


def _convolution(module: Any, plain: Any) -> Any:
    each = _one_by_one_picture(module, plain)
    unit = (1, 1)
    if not (module.kernel_size == module.stride == module.dilation == unit and module.groups == 1 and not any(module.padding)):
        return each

    import torch

    def product(x: Any) -> Any:
        # The weight is looked up at each call: a model may be moved or cast after it was loaded.
        weight = module.weight.reshape(module.out_channels, module.in_channels)
        bias = module.bias[:, None] if module.bias is not None else weight.new_zeros(1, 1)
        made = [torch.addmm(bias, weight, picture.reshape(module.in_channels, -1)) for picture in x]
        return torch.stack(made).reshape(len(x), module.out_channels, *x.shape[2:])

    return product


def _one_by_one_picture(module: Any, plain: Any) -> Any:
    import torch

    def forward(x: Any, *more: Any) -> Any:
        return plain(x, *more) if len(x) == 1 else torch.cat([plain(picture, *more) for picture in x.split(1)])

    return forward
