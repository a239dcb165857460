"""Kernels for a GPU, without one: triton compiles them for GPUs that are not here, and its interpreter runs them on a CPU.

PyTorch's CPU builds have no triton; install it by hand to run these (`pip install triton`, on Linux; torch does not mind).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.triton,
    # Of triton 3.9, about a change in 3.10 that makes no difference to these.
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]
triton = pytest.importorskip("triton", reason="triton is not installed (it comes with PyTorch's CUDA builds)")

INTERPRETED = ["interpreted_kernels.py", "smolandfast/interpreted_writer.py"]
HOPPER, ADA, AMPERE = 90, 89, 80


@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", INTERPRETED)
def test_in_the_interpreter_kernels_give_what_the_plain_way_gives(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(Path(__file__).parent / file),
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def compiled(
    kernel: Any, kinds: dict[str, str], constants: dict[str, Any], capability: int, **options: int
) -> Any:
    """The kernel for such a GPU; `kinds` of what it is given, of which strides are multiples of 16 as those of real shapes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    aligned = [name for name, kind in kinds.items() if kind != "fp32" and name not in ("rows", "length")]
    source = ASTSource(
        kernel,
        {name: kinds.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def product(capability: int, number: str, weight: str, width: int, **settings: Any) -> Any:
    """`multiply` for 50 rows, as an expert calls it."""
    from smolact.policies.inference import kernels

    pointers = {"x": number, "weight": weight, "out": number, "residual": number, "scale": "fp32"}
    kinds = {name: f"*{kind}" for name, kind in pointers.items()}
    kinds |= dict.fromkeys(("rows", "length", "outputs", "x_batch", "x_row", "x_head"), "i32") | {
        "eps": "fp32"
    }
    constants = {"bias": None, "NORMED": False, "GATED": False, "HEAD_WIDTH": 0, "WIDTH": width, **settings}
    constants |= {"OUT": kernels.BLOCK_OUT, "ROWS": kernels.MAX_ROWS, "IN": kernels.BLOCK_IN}
    absent = ({"scale"} if weight == number else set()) | (set() if "residual" in settings else {"residual"})
    constants |= dict.fromkeys(absent)
    constants.pop("residual" if "residual" in settings else "", None)
    kinds = {name: kind for name, kind in kinds.items() if name not in absent}
    return compiled(kernels._multiply, kinds, constants, capability, num_warps=4, num_stages=3)


USES: dict[str, dict[str, Any]] = {
    "queries, keys and values": {"width": 720, "NORMED": True},
    "output": {"width": 960, "HEAD_WIDTH": 64, "residual": True},
    "gate and up": {"width": 720, "NORMED": True, "GATED": True},
    "down": {"width": 2048, "residual": True},
}
"""The four products of an expert's layer, 450M."""


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("capability", "number", "weight"),
    [(HOPPER, "bf16", "fp8e4nv"), (ADA, "bf16", "fp8e4nv"), (HOPPER, "bf16", "bf16"), (AMPERE, "bf16", "bf16"), (AMPERE, "fp32", "fp32")],
)  # fmt: skip
def test_products_compile_for_gpus(capability: int, number: str, weight: str, use: str) -> None:
    built = product(capability, number, weight, **USES[use])
    text = built.asm["ptx"]
    assert f".target sm_{capability}" in text and len(built.asm["cubin"]) > 0
    assert ".local" not in text, "what a program holds does not fit into registers"
    assert "cp.async" in text, "weights are not fetched ahead"
    if number == "bf16":
        assert "mma.sync" in text, "matrix units are not used"
    assert ("e4m3" in text) == (weight == "fp8e4nv")
    assert built.metadata.shared <= 99 * 1024  # of the smallest of these GPUs


def test_float8_does_not_compile_for_older_gpus_which_is_why_they_are_refused() -> None:
    with pytest.raises(Exception, match="fp8e4nv"):
        product(AMPERE, "bf16", "fp8e4nv", **USES["down"])


@pytest.mark.parametrize(("queries", "keys"), [(15, 5), (15, 0), (0, 5)])
def test_splitting_compiles_for_gpus(queries: int, keys: int) -> None:
    from smolact.policies.inference import kernels

    pointers = dict.fromkeys(("projected", "queries", "keys", "values"), "*bf16") | dict.fromkeys(
        ("cosines", "sines"), "*fp32"
    )
    places = [name for name in kernels._split_and_rotate.arg_names if name.islower() and name not in pointers]
    constants = {"QUERIES": queries, "KEYS": keys, "HALF": 32, "HEADS_BLOCK": 32, "HALF_BLOCK": 32}
    built = compiled(
        kernels._split_and_rotate, pointers | dict.fromkeys(places, "i32"), constants, HOPPER, num_warps=4
    )
    assert len(built.asm["cubin"]) > 0 and ".local" not in built.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"fp8": True}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_an_engine_with_kernels_gives_what_it_gives_without(
    dtype: str, settings: dict[str, Any]
) -> None:
    import torch

    from tests.parity.recipe import difference
    from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    policy = tiny_policy().cuda()
    batch, noise = {key: value.cuda() for key, value in tiny_batch().items()}, tiny_noise().cuda()
    engine = policy.build_engine(dtype=getattr(torch, dtype), triton=True, capture=True, **settings)
    found = engine.predict_action_chunk(batch, noise)
    expected = policy.build_engine(dtype=getattr(torch, dtype)).predict_action_chunk(batch, noise)
    assert difference(found, expected) <= (2e-2 if settings or dtype == "bfloat16" else 1e-5)
    assert torch.equal(engine.predict_action_chunk(batch, noise), found)
