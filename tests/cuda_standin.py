"""A CUDA device that isn't there: tensors that say `cuda:0`, compute on the CPU, and are as strict as real ones.

    with cuda_standin() as cuda:
        policy = cuda.module(policy)
        ...

What a GPU would refuse is refused: tensors of two devices in one operation, and, while a graph is recorded, whatever the host
has a part in. What it would forgive and be slow at is counted: `cuda.waits`. A graph is what a graph is: recording computes
nothing; replaying does the recorded operations on the recorded tensors, whatever Python would do by now, and what other graphs
of the same memory pool have left in between is lost.

How: tensors are wrappers around CPU tensors (`__torch_dispatch__`), a mode sees to functions that make tensors from nothing,
and PyTorch's table of device guards gets for CUDA the meta device's, which does nothing: a build without CUDA has none, and
refuses to index or copy. Numbers are the CPU's. What it can't show: whether a kernel takes a type or a shape, how much memory
there is, races, speed, and gradients, which autograd computes for devices that are there only.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)

DEVICE = torch.device("cuda:0")
ModuleType = TypeVar("ModuleType", bound=nn.Module)

_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_CUDA, _META = 1, 14  # c10::DeviceType

_aten = torch.ops.aten
_COPY, _TO = _aten.copy_.default, _aten._to_copy.default
_LOOKS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
}
"""The host must know their result, or its size."""
_BY_INDEX = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
"""They take indices from the host, too."""


class CudaTensor(Tensor):
    """Says that it is on `cuda:0`; its numbers are in `numbers`, on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> CudaTensor:
        made: CudaTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers = numbers
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CudaTensor({self.numbers})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = CudaTensor(self.numbers.clone())
        if isinstance(self, nn.Parameter):
            made = nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _standins[-1].run(function, args, kwargs or {})


class Recording:
    """What stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []
        """Functions, what they took, and what they made, if they did not write into something that was there."""
        self.written: list[tuple[Tensor, Tensor]] = []
        """What was written to, and how it was before."""
        self.pool: Any = None

    @property
    def launches(self) -> int:
        """How many operations; most are one kernel."""
        return len(self.calls)

    def replay(self) -> None:
        """Do it all again."""
        with _disable_current_modes(), torch.no_grad():
            for graph in _standins[-1].graphs:
                if graph.pool is self.pool:
                    graph.spoil()
            for function, args, kwargs, made in self.calls:
                found = function(*args, **kwargs)
                for old, new in zip(made, _tensors_in(found) if made else [], strict=True):
                    old.copy_(new)

    def spoil(self) -> None:
        """Let nothing be left of what was made in between."""
        for *_, made in self.calls:
            for tensor in made:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


class OnCuda:
    """What tests ask of a device, whether it is there or not."""

    device = DEVICE

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the device."""
        return {key: value.to(DEVICE) if isinstance(value, Tensor) else value for key, value in batch.items()}


class CudaStandin(OnCuda, TorchDispatchMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """What made the host wait for the device."""
        self.graphs: list[Recording] = []
        self.recording: Recording | None = None

    def module(self, module: ModuleType) -> ModuleType:
        """`module.to("cuda:0")`, with tied weights still tied."""
        moved: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None and id(weight) not in moved:
                    moved[id(weight)] = nn.Parameter(weight.detach().to(DEVICE), weight.requires_grad)
                part._parameters[name] = None if weight is None else moved[id(weight)]
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else buffer.to(DEVICE)
        return module

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation."""
        tensors = _tensors_in((args, kwargs))
        reads = any(isinstance(tensor, CudaTensor) for tensor in tensors)
        target = kwargs.get("device")
        gives = reads if target is None else torch.device(target).type == "cuda"
        if not reads and not gives:
            return function(*args, **kwargs)
        if function is _COPY:
            gives = isinstance(args[0], CudaTensor)
        self._check(function, tensors, reads, gives)

        plain_args, plain_kwargs = _mapped(_numbers_of, args), _mapped(_numbers_of, kwargs)
        if target is not None:
            plain_kwargs["device"] = torch.device("cpu")
        compute = _INSTEAD.get(function, function)
        if self.recording is not None:
            self._remember(function, plain_args, plain_kwargs)
        result = compute(*plain_args, **plain_kwargs)
        if self.recording is not None and not _is_view(function):
            made = [] if _writes(function) else _tensors_in(result)
            self.recording.calls.append((compute, plain_args, plain_kwargs, made))
        if not gives:
            return args[0] if function is _COPY else result
        wrapped = _mapped(CudaTensor, result)
        return return_and_correct_aliasing(function, args, kwargs, wrapped)

    def _check(self, function: Any, tensors: list[Tensor], reads: bool, gives: bool) -> None:
        here = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
        is_move = function in (_COPY, _TO)
        brought = bool(here) if is_move else any(tensor.ndim > 0 for tensor in here)
        if reads and brought and not is_move and function not in _BY_INDEX:
            raise RuntimeError(f"{function}: expected all tensors on one device, found cuda:0 and cpu")
        counts = function is _aten.index.Tensor and any(index.dtype == torch.bool for index in tensors[1:])
        waits = function in _LOOKS or counts or (reads and is_move and not gives)
        if waits:
            self.waits.append(str(function))
        if self.recording is not None and (waits or brought):
            raise RuntimeError(f"{function}: the host has a part in it, and a graph is being recorded")

    def _remember(self, function: Any, args: Any, kwargs: Any) -> None:
        """What is to be written to, as it is before."""
        assert self.recording is not None
        for number, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                tensor = args[number] if number < len(args) else kwargs[argument.name]
                self.recording.written.append((tensor, tensor.clone()))


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """With each tensor in what an operation takes or gives replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(function, one) for one in value)
    if isinstance(value, dict):
        return {key: _mapped(function, one) for key, one in value.items()}
    return value


def _numbers_of(tensor: Tensor) -> Tensor:
    return tensor.numbers if isinstance(tensor, CudaTensor) else tensor


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for one in value for tensor in _tensors_in(one)]


def _is_view(function: Any) -> bool:
    if function is _aten._unsafe_view.default:  # one that does not say so
        return True
    aliases = [one.alias_info for one in function._schema.returns if one.alias_info is not None]
    return any(not alias.is_write for alias in aliases)


def _writes(function: Any) -> bool:
    return any(one.alias_info is not None for one in function._schema.returns)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the fused kernel of a GPU gives: rows before heads in memory."""
    made = _plain_attention(query, key, value, bias, dropout, causal, scale=scale)
    seed = torch.zeros((), dtype=torch.int64)
    sums = query.new_zeros(query.shape[:3], dtype=torch.float32)
    return made.transpose(1, 2).contiguous().transpose(1, 2), sums, seed, seed.clone()


_plain_attention = F.scaled_dot_product_attention
_FUSED = _aten._scaled_dot_product_efficient_attention.default
_INSTEAD: dict[Any, Any] = {_FUSED: _attend}


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor:
    """As a GPU chooses; its fused kernel knows no groups of heads."""
    if not isinstance(query, CudaTensor):
        return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, **settings)
    if settings.get("enable_gqa"):
        # Called by its name: a CUDA build of PyTorch would ask the driver which kernel is best.
        plain: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, **settings
        )[0]
        return plain
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    made: Tensor = _FUSED(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=settings.get("scale")
    )[0]
    return made


_standins: list[CudaStandin] = []


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        _standins[-1].waits.append("synchronize")


@contextlib.contextmanager
def _recording(graph: Recording, pool: Any = None, **_: Any) -> Iterator[None]:
    standin = _standins[-1]
    assert standin.recording is None, "a graph in a graph"
    standin.recording, graph.pool = graph, object() if pool is None else pool
    standin.graphs.append(graph)
    try:
        yield
    finally:
        standin.recording = None
        with _disable_current_modes(), torch.no_grad():
            for tensor, before in reversed(graph.written):
                tensor.copy_(before)
            graph.spoil()


@contextlib.contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _first_here(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A maker of tensors that goes to the device where no mode sees it."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(data, *args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def _enter_without_gradients(self: Any) -> None:
    """Inference mode's own views are not for wrappers."""
    self.instead = torch.no_grad() if self.mode else contextlib.nullcontext()
    self.instead.__enter__()


@contextlib.contextmanager
def cuda_standin() -> Iterator[CudaStandin]:
    """Within it there is a device `cuda:0`; skips the test where PyTorch's table of guards is not to be found."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        guards = (ctypes.c_void_p * (_META + 1)).in_dll(ctypes.CDLL(str(library)), _GUARDS)
    except (OSError, ValueError) as error:
        pytest.skip(f"no table of device guards: {error}")
    standin, before = CudaStandin(), guards[_CUDA]
    guards[_CUDA] = guards[_META]
    _standins.append(standin)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper has no `data` to set
    try:
        with pytest.MonkeyPatch.context() as patch, standin:
            cuda: Any = torch.cuda
            patch.setattr(cuda, "_lazy_init", lambda: None)
            patch.setattr(cuda, "is_available", lambda: True)
            patch.setattr(cuda, "device_count", lambda: 1)
            patch.setattr(cuda, "is_bf16_supported", lambda including_emulation=True: True)
            patch.setattr(cuda, "device", _nothing)
            patch.setattr(cuda, "stream", _nothing)
            patch.setattr(cuda, "Stream", _Stream)
            patch.setattr(cuda, "current_stream", lambda *_: _Stream())
            patch.setattr(cuda, "synchronize", lambda *_: standin.waits.append("synchronize"))
            patch.setattr(cuda, "graph_pool_handle", object)
            patch.setattr(cuda, "CUDAGraph", Recording)
            patch.setattr(cuda, "graph", _recording)
            patch.setattr(torch.inference_mode, "__enter__", _enter_without_gradients)
            patch.setattr(torch.inference_mode, "__exit__", lambda self, *_: self.instead.__exit__(*_))
            patch.setattr(F, "scaled_dot_product_attention", _fused_attention)
            for maker in ("tensor", "as_tensor"):
                patch.setattr(torch, maker, _first_here(getattr(torch, maker)))
            yield standin
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        _standins.pop()
        guards[_CUDA] = before


class RealCuda(OnCuda):
    """The same face, of a device that is there."""

    def module(self, module: ModuleType) -> ModuleType:
        """On the device."""
        return module.to(DEVICE)
