"""Peak compute, memory and bandwidth of accelerators, as published by their vendors.

Keys are `jax.Device.device_kind`. All FLOP/s are for dense products, without the doubling for
structured sparsity, and per JAX device, which is one chip for every kind here. Kinds without
published numbers that we trust are left out.
"""

from typing import NamedTuple


class Peak(NamedTuple):
    flops: float  # FLOP/s of bfloat16 products
    # FLOP/s of float32 products at XLA's default precision (`jax.lax.Precision.DEFAULT`): tensor
    # cores of a GPU round the factors to TF32, the matrix unit of a TPU to bfloat16.
    flops_float32: float
    memory: float  # bytes
    bandwidth: float  # bytes/s of device memory


class Tpu(NamedTuple):
    clock: float  # Hz
    link: float  # bytes/s that a chip sends over all its links to other chips


# Google, cloud.google.com/tpu/docs/{v4,v5p,v5e,v6e}, "Key chip specifications".
_V4 = Peak(275e12, 275e12, 32 * 2**30, 1200e9)
_V5P = Peak(459e12, 459e12, 95e9, 2765e9)
_V5E = Peak(197e12, 197e12, 16e9, 819e9)
_V6E = Peak(918e12, 918e12, 32e9, 1638e9)

PEAKS: dict[str, Peak] = {
    "TPU v4": _V4,  # its two cores are one device
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    # NVIDIA A100 Tensor Core GPU data sheet.
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 156e12, 40e9, 1555e9),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 156e12, 40e9, 1555e9),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 156e12, 80e9, 2039e9),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 156e12, 80e9, 1935e9),
    # NVIDIA H100 and H200 Tensor Core GPU data sheets; their FLOP/s, with sparsity, are halved.
    "NVIDIA H100 80GB HBM3": Peak(989e12, 494e12, 80e9, 3350e9),
    "NVIDIA H100 PCIe": Peak(756e12, 378e12, 80e9, 2000e9),
    "NVIDIA H200": Peak(989e12, 494e12, 141e9, 4800e9),
    # NVIDIA L4 Tensor Core GPU data sheet, halved too.
    "NVIDIA L4": Peak(121e12, 60e12, 24e9, 300e9),
}

# By the name of the generation in a topology, such as v5e:4x4.
# Clocks: the peak of bfloat16 products divided by the products of the matrix units in a cycle, of
# 128 x 128 each: v4 and v5p have 8, v5e 4, v6e as many as 16 (4 of 256 x 256).
# Links: the same pages, "Interchip Interconnect BW" per chip: 2,400, 4,800, 1,600 and 3,584 Gbit/s.
TPUS = {
    "v4": Tpu(1.05e9, 300e9),
    "v5p": Tpu(1.75e9, 600e9),
    "v5e": Tpu(1.5e9, 200e9),
    "v6e": Tpu(1.75e9, 448e9),
}
