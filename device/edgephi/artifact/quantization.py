"""
Group-wise quantization: 4 bits, bit for bit what MLC-LLM's converter computes, and edgephi's own 3 bits.

Owns the numbers and their packing. Knows no file, and of tensors' names only which matrices get 3 bits.

One scale covers a group of 32 weights along k. Of 4-bit codes eight share a 32-bit word, lowest bits first along k:

    bits      31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
    element   k+7    k+6    k+5    k+4    k+3    k+2    k+1    k

    weight = (code - 7) * scale,  code 0 to 14,  scale = max|w| / 7

The 32 codes of 3 bits of a group are one string of 96 bits in three words; element k is at bits 3 * k to 3 * k + 2:

    weight = (code - 4) * scale,  code 0 to 7,  scale of either sign, the one of a few with the least squared error
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
Bits = Literal[3, 4]

GROUP_SIZE = 32
CODES_PER_WORD = 8
MAX_CODE = 14
ZERO_CODE = 7
MAX_CODE_Q3 = 7
ZERO_CODE_Q3 = 4

# Scales that are tried, as parts of the one that lets the group's largest weight be code 0. Six are within 1 % of the
# error of sixty on Gaussian weights (docs/decisions/0010).
_SCALE_PARTS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)


@dataclass(frozen=True, slots=True)
class Quantization:
    """
    One of the formats: MLC-LLM's of 4 bits, or edgephi's of 3.

    Attributes:
        name: As it stands in ``mlc-chat-config.json``.
        scale_dtype: Type of the scales and of the norms' weights.
        layout: Of linear layers: ``nk`` is q_weight (n, words along k), ``kn`` is (words along k, n). The embedding is
            always ``nk``.
        layer_bits: Bits of a code in the decoder layers' matrices. The embedding and the output projection always have
            4: they are one part in twenty of the bytes, and an error in them goes into the logits as it is.
    """

    name: str
    scale_dtype: ScaleType
    layout: Layout
    layer_bits: Bits = 4

    def bits(self, prefix: str) -> Bits:
        """Return the bits of a code in the matrix of that name, such as ``transformer.h.0.mixer.qkv_proj``."""
        return self.layer_bits if prefix.startswith("transformer.h.") else 4


# Source of the first three: mlc-llm python/mlc_llm/quantization/quantization.py. MLC-LLM does not read the last.
QUANTIZATIONS: tuple[Quantization, ...] = (
    Quantization("q4f16_1", "float16", "nk"),
    Quantization("q4f32_1", "float32", "nk"),
    Quantization("q4f16_0", "float16", "kn"),
    Quantization("q3f16_g32", "float16", "nk", layer_bits=3),
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


def quantize_q3(weight: npt.NDArray[np.floating]) -> tuple[U32Array, FloatArray]:
    """
    Quantize a matrix to 3 bits in groups of 32 along k.

    Eight levels cannot be symmetric around 0. They are -4 to 3, and the scale's sign lets the end with the extra level
    be where the group's largest weight is. The largest weight is clipped where that makes the squared error smaller.

    Args:
        weight: (n, k) float16 or float32, k a multiple of 32.

    Returns:
        The packed codes, (n, 3 * k // 32) uint32, and the scales, (n, k // 32) float16.

    Raises:
        ModelInvalid: If k is no multiple of 32, or a weight is not finite in float16.
    """
    n, k = weight.shape
    if k % GROUP_SIZE:
        raise ModelInvalid(f"a matrix of {n} x {k} cannot be quantized: {k} is not a multiple of {GROUP_SIZE}")
    with np.errstate(over="ignore", invalid="ignore"):
        groups = weight.astype(np.float32, copy=False).reshape(n * (k // GROUP_SIZE), GROUP_SIZE)
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
        if not np.isfinite(largest.astype(np.float16)).all():
            raise ModelInvalid("a weight is not a finite float16; the checkpoint is damaged")
    codes = np.full(groups.shape, ZERO_CODE_Q3, np.uint8)
    scales = np.zeros((len(groups), 1), np.float16)
    least = np.full((len(groups), 1), np.inf, np.float32)
    for part in _SCALE_PARTS:
        scale = (largest * np.float32(-part / ZERO_CODE_Q3)).astype(np.float16)
        step = scale.astype(np.float32)
        # Where the scale is zero, or rounded to zero, so is every weight.
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
        levels = np.clip(np.rint(groups * inverse), -ZERO_CODE_Q3, MAX_CODE_Q3 - ZERO_CODE_Q3)
        error = np.square(levels * step - groups).sum(axis=1, keepdims=True)
        better = error < least
        np.copyto(codes, (levels + ZERO_CODE_Q3).astype(np.uint8), where=better)
        np.copyto(scales, scale, where=better)
        np.minimum(least, error, out=least)
    return pack_codes_q3(codes.reshape(n, k)), scales.reshape(n, k // GROUP_SIZE)


def dequantize_q3(packed: U32Array, scale: FloatArray) -> F32Array:
    """
    Undo 3-bit quantization.

    Args:
        packed: (n, 3 * k // 32) uint32 as the module says.
        scale: (n, k // 32) float16; one per 32 weights along k.

    Returns:
        (n, k) float32 with value ``(code - 4) * scale``, exact.
    """
    codes = unpack_codes_q3(packed)
    n, k = codes.shape
    centred = codes.reshape(n, k // GROUP_SIZE, GROUP_SIZE).astype(np.float32) - np.float32(ZERO_CODE_Q3)
    centred *= scale.astype(np.float32)[..., None]
    return centred.reshape(n, k)


def pack_codes_q3(codes: U8Array) -> U32Array:
    """
    Pack 3-bit codes into words.

    Args:
        codes: (n, k) uint8, each at most 7, k a multiple of 32.

    Returns:
        (n, 3 * k // 32) uint32, lowest bits first along k.
    """
    n, k = codes.shape
    assert k % GROUP_SIZE == 0
    octets = codes.reshape(n, k // 8, 8)
    bits = np.zeros((n, k // 8), "<u4")  # the 24 bits of eight codes, in three of four bytes
    for index in range(8):
        bits |= octets[:, :, index].astype(np.uint32) << np.uint32(3 * index)
    return np.ascontiguousarray(bits.view(np.uint8).reshape(n, k // 8, 4)[:, :, :3]).reshape(n, -1).view("<u4")


def unpack_codes_q3(packed: U32Array) -> U8Array:
    """
    Unpack words into 3-bit codes.

    Args:
        packed: (n, w) uint32, w a multiple of 3, lowest bits first.

    Returns:
        (n, w * 32 // 3) uint8, each 0 to 7.
    """
    n, words = packed.shape
    padded = np.zeros((n, words * 4 // 3, 4), np.uint8)
    padded[:, :, :3] = np.ascontiguousarray(packed, dtype="<u4").view(np.uint8).reshape(n, -1, 3)
    bits = padded.reshape(n, -1).view("<u4")
    codes = np.empty((n, words * 4 // 3, 8), np.uint8)
    for index in range(8):
        codes[:, :, index] = (bits >> np.uint32(3 * index)) & np.uint32(7)
    return codes.reshape(n, -1)


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
