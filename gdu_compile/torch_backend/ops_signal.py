"""The operators of signal processing: Fourier transforms and mel filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.registry import operator


@operator("DFT", since=17)
def dft_17(
    x: Tensor, dft_length: Tensor | None = None, *, axis: int = 1, inverse: int = 0,
    onesided: int = 0,
) -> Tensor:  # fmt: skip
    """The first version: the axis is an attribute."""
    return _transform(x, None if dft_length is None else int(dft_length), axis, inverse, onesided)


@operator("DFT", since=20)
def dft(
    x: Tensor, dft_length: Tensor | None = None, axis: Tensor | None = None, *, inverse: int = 0,
    onesided: int = 0,
) -> Tensor:  # fmt: skip
    length = None if dft_length is None else int(dft_length)
    return _transform(x, length, -2 if axis is None else int(axis), inverse, onesided)


def _transform(x: Tensor, length: int | None, axis: int, inverse: int, onesided: int) -> Tensor:
    """The last dimension of ``x`` and of the result: the number, or its real and imaginary part."""
    axis %= x.ndim
    working = x.to(torch.promote_types(x.dtype, torch.float32))
    signal = working.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(working)
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(signal, length, axis)
        return real.unsqueeze(-1).to(x.dtype)
    spectrum = (torch.fft.ifft if inverse else torch.fft.fft)(signal, length, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
    return torch.view_as_real(spectrum).to(x.dtype)


@operator("STFT", since=17)
def stft(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    step, size = int(frame_step), signal.shape[1]
    length = int(frame_length) if frame_length is not None else size
    if window is not None and frame_length is None:
        length = len(window)
    frames = signal.unfold(1, length, step).transpose(2, 3)  # [N, frames, length, 1 or 2]
    if window is not None:
        frames = frames * window[:, None]
    return _transform(frames, length, 2, 0, onesided)


@operator("MelWeightMatrix", since=17)
def mel_weight_matrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    bins, rows = int(num_mel_bins), int(dft_length) // 2 + 1
    low, high = (2595 * math.log10(1 + float(edge) / 700)
                 for edge in (lower_edge_hertz, upper_edge_hertz))  # fmt: skip
    mels = torch.arange(bins + 2, dtype=torch.float64) * ((high - low) / (bins + 2)) + low
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = torch.floor((int(dft_length) + 1) * hertz / int(sample_rate))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    places = torch.arange(rows, dtype=torch.float64)[:, None]  # [rows, 1]
    rising = (places - left) / (centre - left).clamp(min=1)
    falling = (right - places) / (right - centre).clamp(min=1)
    inside = torch.where(places < centre, rising * (places >= left), falling * (places < right))
    peak = torch.where(places == centre, 1.0, inside)
    return peak.to(device=num_mel_bins.device, dtype=torch_dtype(output_datatype))
