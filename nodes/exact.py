"""Arithmetic on a processor whose result for one picture does not depend on the others in its batch.

The kernels that torch calls on a CPU sum in another order when the batch is another: in its last bits a picture made among
seven others differs from the same picture made alone. Measured operator by operator (torch 2.13 with oneDNN and MKL,
AVX-512, one thread), three kinds do so: convolutions, whose kernel is chosen by the batch; transposed convolutions; and
matrix products of fewer than 16 rows. Here a convolution's weights are laid out once, which settles its kernel (and is quicker:
torch lays them out at each call); a transposed one is called picture by picture; and short products are filled up to 16 rows.
The number of threads matters too, so that such a model always works on one (see `Place.spread`). On a GPU other kernels are
at work and nothing of this applies.
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
    import torch

    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or not onednn:
        return _one_by_one_picture(module, plain)
    pointwise, lay_out = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._reorder_convolution_weight
    how = [list(each) for each in (module.padding, module.stride, module.dilation)]
    laid_out: dict[tuple[int, ...], Any] = {}

    def forward(x: Any) -> Any:
        side = tuple(x.shape[2:])
        if side not in laid_out:
            laid_out[side] = lay_out(module.weight.detach(), *how, module.groups, [1, *x.shape[1:]])
        x = x.contiguous(memory_format=torch.channels_last)
        return pointwise(x, laid_out[side], module.bias, *how, module.groups, "none", [], "")

    return forward


def _one_by_one_picture(module: Any, plain: Any) -> Any:
    import torch

    def forward(x: Any, *more: Any) -> Any:
        return plain(x, *more) if len(x) == 1 else torch.cat([plain(picture, *more) for picture in x.split(1)])

    return forward
