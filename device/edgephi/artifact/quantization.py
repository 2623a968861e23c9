"""
Group-wise 4-bit quantization, bit for bit what MLC-LLM's converter computes.

Owns the numbers and their packing. Knows no file and no tensor name.

Eight codes share a 32-bit word, lowest bits first along k; one scale covers 32 weights along k:

    bits      31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
    element   k+7    k+6    k+5    k+4    k+3    k+2    k+1    k

    weight = (code - 7) * scale,  code 0 to 14,  scale = max|w| / 7
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgephi.errors import ModelInvalid, UnsupportedModel

U8Array = npt.NDArray[np.uint8]
U32Array = npt.NDArray[np.uint32]
F32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Layout = Literal["nk", "kn"]
ScaleType = Literal["float16", "float32"]

GROUP_SIZE = 32
CODES_PER_WORD = 8
MAX_CODE = 14
ZERO_CODE = 7


@dataclass(frozen=True, slots=True)
class Quantization:
    """
    One of MLC-LLM's formats.

    Attributes:
        name: As MLC-LLM writes it in ``mlc-chat-config.json``.
        scale_dtype: Type of the scales and of the norms' weights.
        layout: Of linear layers: ``nk`` is q_weight (n, k // 8), ``kn`` is (k // 8, n). The embedding is always ``nk``.
    """

    name: str
    scale_dtype: ScaleType
    layout: Layout


# Source: mlc-llm python/mlc_llm/quantization/quantization.py.
QUANTIZATIONS: tuple[Quantization, ...] = (
    Quantization("q4f16_1", "float16", "nk"),
    Quantization("q4f32_1", "float32", "nk"),
    Quantization("q4f16_0", "float16", "kn"),
)


def find_quantization(name: str) -> Quantization:
    """
    Return the format of that name.

    Raises:
        UnsupportedModel: If it is not one of ``QUANTIZATIONS``.
    """
    for quantization in QUANTIZATIONS:
        if quantization.name == name:
            return quantization
    known = ", ".join(quantization.name for quantization in QUANTIZATIONS)
    raise UnsupportedModel(f"quantization is {name!r}; use one of {known}")


def quantize_q4(weight: npt.NDArray[np.floating], scale_dtype: ScaleType) -> tuple[U32Array, FloatArray]:
    """
    Quantize a matrix in groups of 32 along k.

    Every step is computed and rounded in ``scale_dtype``, as MLC-LLM does: the cast of the weight, the scale,
    the quotient, the addition of 7; then round half to even and clip to 0 to 14. A group of zeros gets scale 0
    and, where a quotient is undefined, code 0, which stands for 0 because the scale is 0.

    Args:
        weight: (n, k) float16 or float32, k a multiple of 32.
        scale_dtype: Type of the scales.

    Returns:
        The packed codes, (n, k // 8) uint32, and the scales, (n, k // 32) ``scale_dtype``.

    Raises:
        ModelInvalid: If k is no multiple of 32, or a weight is not finite in ``scale_dtype``.

    Source: MLC-LLM, quantization/group_quantization.py; the rounding was checked against its output.
    """
    n, k = weight.shape
    if k % GROUP_SIZE:
        raise ModelInvalid(f"a matrix of {n} x {k} cannot be quantized: {k} is not a multiple of {GROUP_SIZE}")
    dtype = np.dtype(scale_dtype)
    single = np.float32
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        groups = weight.astype(dtype, copy=False).astype(single, copy=False).reshape(n, k // GROUP_SIZE, GROUP_SIZE)
        scale = (np.abs(groups).max(axis=-1) / single(ZERO_CODE)).astype(dtype)
        if not np.isfinite(scale).all():
            raise ModelInvalid(f"a weight is not a finite {scale_dtype}; the checkpoint is damaged or needs float32")
        # float32 arithmetic rounded to float16 after each step is float16 arithmetic, and several times faster.
        quotient = (groups / scale.astype(single)[..., None]).astype(dtype, copy=False)
        shifted = (quotient.astype(single, copy=False) + single(ZERO_CODE)).astype(dtype, copy=False)
        rounded = np.rint(shifted.astype(single, copy=False))
        # fmax, unlike maximum, turns the undefined quotient of a group of zeros into 0.
        codes = np.minimum(np.fmax(rounded, single(0)), single(MAX_CODE)).astype(np.uint8)
    return pack_codes(codes.reshape(n, k)), scale


def dequantize_q4(packed: U32Array, scale: FloatArray) -> F32Array:
    """
    Undo group-wise 4-bit quantization.

    Args:
        packed: (n, k // 8) uint32, row-major; eight codes per word, lowest bits first.
        scale: (n, k // 32) float16 or float32; one per 32 weights along k.

    Returns:
        (n, k) float32 with value ``(code - 7) * scale``. With float16 scales the product is exact, and rounding it
        to float16 gives MLC-LLM's float16 weight.
    """
    codes = unpack_codes(packed)
    n, k = codes.shape
    centred = codes.reshape(n, k // GROUP_SIZE, GROUP_SIZE).astype(np.float32) - np.float32(ZERO_CODE)
    centred *= scale.astype(np.float32)[..., None]
    return centred.reshape(n, k)


def pack_codes(codes: U8Array) -> U32Array:
    """
    Pack codes into words.

    Args:
        codes: (n, k) uint8, each at most 15, k a multiple of 8.

    Returns:
        (n, k // 8) uint32, lowest bits first along k.
    """
    n, k = codes.shape
    assert k % CODES_PER_WORD == 0
    pairs = np.ascontiguousarray(codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4)))
    return pairs.view("<u4").reshape(n, k // CODES_PER_WORD)


def unpack_codes(packed: U32Array) -> U8Array:
    """
    Unpack words into codes.

    Args:
        packed: (n, w) uint32, lowest bits first.

    Returns:
        (n, w * 8) uint8, each 0 to 15.
    """
    n, words = packed.shape
    pairs = np.ascontiguousarray(packed, dtype="<u4").view(np.uint8).reshape(n, words * 4)
    codes = np.empty((n, words * CODES_PER_WORD), np.uint8)
    np.bitwise_and(pairs, np.uint8(15), out=codes[:, 0::2])
    np.right_shift(pairs, np.uint8(4), out=codes[:, 1::2])
    return codes
