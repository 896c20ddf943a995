"""Averages of a model's weights: exponential over training, or the mean of the last k.

The exponential average (EMA) states its decay in samples, not in steps, so it means the same at
any batch size, and warms up by itself. The mean of checkpoints reads them tensor by tensor from
safetensors files and holds one copy of the model, however many there are.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ringrift_pipeline.enhancements.argument_checks import (
    check_choice,
    check_device,
    check_flag,
    check_keys,
    check_number,
    check_type,
    check_whole,
    whole_state,
)
from ringrift_pipeline.enhancements.checkpoint_files import (
    CheckpointReader,
    average_checkpoints,
    check_match,
    checked_dtypes,
    checked_tensors,
    mean_of_checkpoints,
    widened,
    write_checkpoint,
)
from ringrift_pipeline.enhancements.model_views import nonfinite_tensor

logger = logging.getLogger(__name__)

_STATE_KEYS = ("ema", "dtypes", "updates", "samples_seen", "window")


class CheckpointAverager:
    """Exponential average by :meth:`update`, and mean of the last k by :meth:`add_checkpoint`.

    The two are independent; :meth:`get_averaged_state_dict` gives the exponential average once
    there is one, or the one asked for.

    **EMA**: after a step on ``b`` samples, ``average = d * average + (1 - d) * weights`` with
    ``d = 0.5 ** (b / h)`` and ``h = min(half_life_samples, warmup_fraction * samples_seen)``; the
    first update copies. It is kept in float32 (float64 for float64) by torch's ``AveragedModel``,
    so bfloat16 weights do not swallow small changes; integer and boolean buffers are the newest.

    **Mean**: kept on disk unless ``keep_on_disk=False``, which holds k copies in memory instead.
    Files of its own are copied with the object; one that somebody removed is dropped from the
    window with a warning.

    Args:
        num_checkpoints: k, at least 1.
        checkpoint_dir: folder of the k files, which stay there until :meth:`cleanup`; None makes a
            temporary one, which goes with the object.
        keep_on_disk: whether the k checkpoints are files.
        half_life_samples: samples after which a weight's share in the EMA has halved.
        warmup_fraction: bound of the half-life as a share of the samples seen, in (0, 1].
        device: where the EMA lives; None: where the model is.

    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        num_checkpoints: int = 5,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        keep_on_disk: bool = True,
        *,
        half_life_samples: float = 25_000.0,
        warmup_fraction: float = 0.1,
        device: str | torch.device | None = None,
    ) -> None:
        self.num_checkpoints = check_whole("num_checkpoints", num_checkpoints, 1)
        self.half_life_samples = check_number(
            "half_life_samples", half_life_samples, 0.0, above=True
        )
        self.warmup_fraction = check_number(
            "warmup_fraction", warmup_fraction, 0.0, 1.0, above=True
        )
        self.keep_on_disk = check_flag("keep_on_disk", keep_on_disk)
        if checkpoint_dir is not None:
            check_type("checkpoint_dir", checkpoint_dir, (str, os.PathLike))
        self.checkpoint_dir = Path(checkpoint_dir) if checkpoint_dir is not None else None
        self.device = check_device("device", device) if device is not None else None
        self.samples_seen = 0
        self._own_dir: Path | None = None
        self._remove_own: weakref.finalize[Any, Any] | None = None
        self._window: list[Path | dict[str, Tensor]] = []
        self._ema: AveragedModel | None = None
        self._dtypes: dict[str, torch.dtype] = {}  # of the model's own state, by name
        self._layout: tuple[Any, Any] = ([], [])  # of the averaged parameters and buffers
        self._decay = 0.0
        self._pending: dict[str, Any] | None = None  # loaded before there was a model

    # The exponential average.

    def decay(self, num_samples: int) -> float:
        """Share of the old average that the next update on ``num_samples`` samples keeps."""
        seen = self.samples_seen + check_whole("num_samples", num_samples, 1)
        half_life = min(self.half_life_samples, self.warmup_fraction * seen)
        return 0.5 ** (num_samples / half_life)

    @torch.no_grad()
    def update(self, model: nn.Module, num_samples: int = 1, *, check_finite: bool = True) -> None:
        """Take the model's weights into the EMA, after an optimizer step.

        Args:
            model: always the same architecture; compiled and data-parallel wrappers are seen
                through.
            num_samples: samples of that step, at least 1.
            check_finite: refuse weights or buffers that are not finite, which would stay in the
                average for ever. It reads the weights once more and the device once; switch it
                off only where they have been checked already.

        Raises:
            ValueError: ``num_samples``, weights that are not finite, by name, or a model that does
                not fit the average; no change.
        """
        samples = check_whole("num_samples", num_samples, 1)
        check_type("model", model, nn.Module)
        inner = _unwrap(model)
        if check_flag("check_finite", check_finite):
            bad = nonfinite_tensor(inner)
            if bad is not None:
                raise ValueError(f"model: {bad} is not finite")
        if self._ema is None:
            self._start(inner)
        ema = self._ema
        assert ema is not None
        current = _Widened(inner)
        if _layout(current) != self._layout:
            raise ValueError("model does not have the parameters and buffers of the averaged one")
        self._decay = self.decay(samples)
        ema.update_parameters(cast(nn.Module, current))
        self.samples_seen += samples

    def _start(self, model: nn.Module) -> None:
        dtypes = {name: value.dtype for name, value in _tensors(model.state_dict()).items()}
        ema = AveragedModel(model, device=self.device, multi_avg_fn=self._blend, use_buffers=True)
        ema.module.requires_grad_(False).eval()
        for tensor in (*ema.module.parameters(), *ema.module.buffers()):
            tensor.data = widened(tensor.data)
        if self._pending is not None:
            _load_exactly(ema.module, self._pending["tensors"])
            ema.n_averaged.fill_(self._pending["updates"])
            dtypes = self._pending["dtypes"]
            self._pending = None
        self._ema, self._dtypes = ema, dtypes
        self._layout = _layout(ema.module)

    def _blend(self, average: Any, current: Any, _: Any) -> None:
        """AveragedModel's callback: one list a device and dtype."""
        if average[0].is_floating_point() or average[0].is_complex():
            torch._foreach_lerp_(average, current, 1.0 - self._decay)
        else:
            torch._foreach_copy_(average, current)

    @property
    def num_updates(self) -> int:
        """EMA updates so far."""
        if self._ema is not None:
            return int(self._ema.n_averaged)
        return self._pending["updates"] if self._pending else 0

    @property
    def averaged_model(self) -> nn.Module | None:
        """The EMA as a module in eval mode, float32, updated in place.

        None before the first update, and after loading until ``build_loaded`` or an update.
        """
        return None if self._ema is None else self._ema.module

    # The mean of the last k.

    def add_checkpoint(self, state_dict: Mapping[str, Any], epoch: int | None = None) -> None:
        """Take a model's ``state_dict`` into the window; the oldest beyond k is dropped.

        Args:
            state_dict: name -> tensor.
            epoch: only for the file's name; files never replace one another.

        Raises:
            ValueError: a tensor that is not finite, or names and shapes that differ from those in
                the window; no change.
        """
        check_type("state_dict", state_dict, Mapping)
        tensors = _tensors(state_dict)
        if not tensors:
            raise ValueError("state_dict holds no tensors")
        if not all(isinstance(name, str) for name in tensors):
            raise ValueError("state_dict must hold tensors by name")
        label = "checkpoint" if epoch is None else f"epoch{check_whole('epoch', epoch, 0):06d}"
        for name, tensor in tensors.items():
            if tensor.device.type == "meta":
                raise ValueError(f"state_dict[{name!r}] is on the meta device, which holds no data")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"state_dict[{name!r}] is not finite")
        self._drop_missing()
        if self._window:
            shapes = CheckpointReader(self._window[-1]).shapes()
            check_match(shapes, {name: tuple(t.shape) for name, t in tensors.items()})
        if self.keep_on_disk:
            path = self._folder() / f"{label}-{uuid.uuid4().hex}.safetensors"
            write_checkpoint(path, tensors)
            self._window.append(path)
        else:
            self._window.append({k: v.detach().clone() for k, v in tensors.items()})
        while len(self._window) > self.num_checkpoints:
            self._drop(self._window.pop(0))

    @property
    def num_stored(self) -> int:
        """Checkpoints in the window, at most k."""
        return len(self._window)

    def cleanup(self) -> None:
        """Forget the window and remove its files (and the folder, if it was temporary)."""
        for entry in self._window:
            self._drop(entry)
        self._window = []
        if self._remove_own is not None:
            self._remove_own()
        self._own_dir = self._remove_own = None

    def get_averaged_state_dict(
        self, kind: Literal["ema", "mean"] | None = None
    ) -> dict[str, Tensor]:
        """A fresh state dict of averaged weights, in the model's own dtypes.

        Args:
            kind: ``ema``, ``mean``, or None for the EMA if there is one and else the mean.

        Returns:
            name -> tensor, of the names, shapes and dtypes of the model's own ``state_dict``; the
            EMA on the average's device, the mean on the CPU or where the checkpoints are.

        Raises:
            ValueError: there is nothing of that kind yet.
        """
        if kind is not None:
            check_choice("kind", kind, ("ema", "mean"))
        if kind == "ema" or (kind is None and self.num_updates):
            if not self.num_updates:
                raise ValueError("no exponential average yet: call update() first")
            tensors, dtypes = self._ema_tensors()
            return {name: t.clone().to(dtypes.get(name, t.dtype)) for name, t in tensors.items()}
        self._drop_missing()
        if not self._window:
            raise ValueError("nothing to average yet: call update() or add_checkpoint() first")
        return mean_of_checkpoints(self._window)

    def _ema_tensors(self) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
        if self._ema is not None:
            return _tensors(self._ema.module.state_dict()), self._dtypes
        assert self._pending is not None
        return self._pending["tensors"], self._pending["dtypes"]

    # State.

    def state_dict(self) -> dict[str, Any]:
        """``ema``: name -> float32 tensor; ``window``: a list of name -> tensor; plain values.

        All tensors are copies. A window on disk is read into it, so that a state needs no file of
        the run that saved it.
        """
        ema: dict[str, Tensor] = {}
        dtypes: dict[str, torch.dtype] = {}
        if self.num_updates:
            tensors, dtypes = self._ema_tensors()
            ema = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return {
            "ema": ema,
            "dtypes": {name: str(d).removeprefix("torch.") for name, d in dtypes.items()},
            "updates": self.num_updates,
            "samples_seen": self.samples_seen,
            "window": self._copies(),
        }

    @whole_state
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict`; works before the first :meth:`update` as well.

        Of a window larger than ``num_checkpoints`` the newest are kept. On disk they become files
        of this object, and those it had are removed.

        Raises:
            ValueError: something missing or not finite, or tensors that do not fit the model or
                one another; no change.
        """
        updates, seen, newest, tensors, dtypes = self._read_state(state_dict)
        if self._ema is not None and updates:
            _check_fit(self._ema.module, tensors)
        window: list[Path | dict[str, Tensor]] = list(newest)
        if self.keep_on_disk:
            window = self._written(newest)
        if self._ema is not None and updates:
            _load_exactly(self._ema.module, tensors)
            self._ema.n_averaged.fill_(updates)
            self._dtypes = dtypes
        else:
            self._ema = None
            pending = {"tensors": tensors, "dtypes": dtypes, "updates": updates}
            self._pending = pending if updates else None
        for old in self._window:
            self._drop(old)
        self.samples_seen, self._window = seen, window

    def check_state(self, state_dict: Mapping[str, Any], model: nn.Module) -> None:
        """Check a :meth:`state_dict` before it is loaded; changes nothing.

        Raises:
            ValueError: as :meth:`load_state_dict`, or an EMA of another model than this.
        """
        check_type("state_dict", state_dict, Mapping)
        check_type("model", model, nn.Module)
        tensors = self._read_state(state_dict)[3]
        if tensors:
            _check_fit(_unwrap(model), tensors)

    def _read_state(
        self, state_dict: Mapping[str, Any]
    ) -> tuple[int, int, list[dict[str, Tensor]], dict[str, Tensor], dict[str, torch.dtype]]:
        """Updates, samples seen, window, EMA and its dtypes, checked; the tensors are copies."""
        check_keys(state_dict, _STATE_KEYS, "CheckpointAverager")
        updates = check_whole("updates", state_dict["updates"], 0)
        seen = check_whole("samples_seen", state_dict["samples_seen"], 0)
        check_type("window", state_dict["window"], (list, tuple))
        newest = [
            checked_tensors(f"window[{number}]", entry)
            for number, entry in enumerate(state_dict["window"])
        ][-self.num_checkpoints :]
        for entry in newest[1:]:
            check_match(CheckpointReader(newest[0]).shapes(), CheckpointReader(entry).shapes())
        tensors = checked_tensors("ema", state_dict["ema"], may_be_empty=True)
        if bool(tensors) != bool(updates) or (updates and not seen):
            raise ValueError(
                f"updates ({updates}) and samples_seen ({seen}) do not fit an ema of "
                f"{len(tensors)} tensors"
            )
        dtypes = checked_dtypes("dtypes", state_dict["dtypes"], tensors)
        return updates, seen, newest, tensors, dtypes

    def _written(self, entries: list[dict[str, Tensor]]) -> list[Path | dict[str, Tensor]]:
        """The entries as new files, all or none."""
        written: list[Path | dict[str, Tensor]] = []
        try:
            for entry in entries:
                path = self._folder() / f"checkpoint-{uuid.uuid4().hex}.safetensors"
                write_checkpoint(path, entry)
                written.append(path)
        except BaseException:
            for path_written in written:
                self._drop(path_written)
            raise
        return written

    def _folder(self) -> Path:
        if self.checkpoint_dir is not None:
            self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
            return self.checkpoint_dir
        if self._own_dir is None or not self._own_dir.is_dir():
            self._own_dir = Path(tempfile.mkdtemp(prefix="checkpoint-average-"))
            self._remove_own = weakref.finalize(self, _remove, self._own_dir, os.getpid())
        return self._own_dir

    def _drop_missing(self) -> None:
        """Forget checkpoints whose files somebody removed, with a warning."""
        missing = [e for e in self._window if isinstance(e, Path) and not e.is_file()]
        for entry in missing:
            self._window.remove(entry)
            logger.warning("checkpoint %s is gone: the mean goes on without it", entry)

    def _copies(self) -> list[dict[str, Tensor]]:
        self._drop_missing()
        return [CheckpointReader(entry).copies() for entry in self._window]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: with the window's tensors, as files belong to one object."""
        return {**self.__dict__, "_window": self._copies(), "_own_dir": None, "_remove_own": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.keep_on_disk:
            self._window = self._written(state["_window"])

    @staticmethod
    def _drop(entry: Path | dict[str, Tensor]) -> None:
        if isinstance(entry, Path):
            entry.unlink(missing_ok=True)


def _remove(folder: Path, process: int) -> None:
    """Remove a temporary folder, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


class _Widened:
    """A model whose low-precision tensors read as float32, as ``AveragedModel`` needs them."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters, self._buffers = (
            [t if t.dtype == torch.float32 else widened(t.detach()) for t in tensors]
            for tensors in (model.parameters(), model.buffers())
        )

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def buffers(self) -> list[Tensor]:
        return self._buffers


def _layout(model: nn.Module | _Widened) -> tuple[Any, Any]:
    """Shape of each parameter and buffer, and whether it is averaged or copied."""
    parameters, buffers = (
        [(t.shape, t.dtype.is_floating_point or t.dtype.is_complex) for t in tensors]
        for tensors in (model.parameters(), model.buffers())
    )
    return parameters, buffers


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, without what ``get_extra_state`` may have put there."""
    return {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside of ``torch.compile``'s and data-parallel wrappers."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


@torch.no_grad()
def build_loaded(averager: CheckpointAverager, model: nn.Module) -> None:
    """Build the ``averaged_model`` of a loaded state now, not at the next update.

    Args:
        averager: without a loaded average that waits for its model nothing happens.
        model: of the averaged architecture; its weights do not count.

    Raises:
        ValueError: a model that does not fit the average; no change.
    """
    if averager._pending is not None:
        averager._start(_unwrap(model))


def _check_fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    check_match(
        {name: tuple(tensor.shape) for name, tensor in _tensors(module.state_dict()).items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        "ema",
    )


def _load_exactly(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    _check_fit(module, tensors)
    with torch.no_grad():
        for name, tensor in _tensors(module.state_dict()).items():
            tensor.copy_(tensors[name])


__all__ = ["CheckpointAverager", "average_checkpoints"]
