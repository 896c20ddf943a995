"""Random streams that never collide, from one seed.

Every stream is a child of numpy's ``SeedSequence``, told apart by its path from the root and not
by arithmetic on the seed, so a fork, a worker and a generator of the same number have nothing in
common. torch's CPU generator looks at 32 bits of a seed only; ours get their whole state instead.
"""

from __future__ import annotations

import base64
import functools
import os
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.argument_checks import (
    LARGEST_SEED,
    check_device,
    check_flag,
    check_keys,
    check_type,
    check_whole,
    whole_state,
)

# The first word of each step of a stream's path. Paths are (domain, position, number) triples.
_GLOBAL, _WORKER, _TORCH, _NUMPY, _FORK, _LOADER = range(6)
_WORD = 2**32

_MT19937_WORDS = 624
_TORCH_STATE_BYTES = 5056  # seed, left, seeded, next, 624 words of 8 bytes, cached normals
_TORCH_WORDS_AT = 24


def _sequence(seed: int, path: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=path)


@functools.cache
def _torch_template() -> bytes | None:
    """A fresh state of torch's CPU generator, None if this torch lays it out in another way."""
    raw = torch.Generator().manual_seed(5).get_state().numpy()
    if raw.size != _TORCH_STATE_BYTES:
        return None
    words = raw[_TORCH_WORDS_AT : _TORCH_WORDS_AT + 8 * _MT19937_WORDS].view(np.uint64)
    known: Any = np.random.RandomState(5).get_state(legacy=False)
    same = raw[:8].view(np.uint64)[0] == 5
    same = same and np.array_equal(words, known["state"]["key"].astype(np.uint64))
    return raw.tobytes() if same else None


def _torch_seed(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


def _torch_generator_state(sequence: np.random.SeedSequence) -> torch.Tensor | None:
    """State of torch's CPU generator with all 19,937 bits from the sequence, if that is known.

    Its ``initial_seed``, which data sets derive other generators from, is the sequence's as well.
    """
    template = _torch_template()
    if template is None:
        return None
    raw = np.frombuffer(template, np.uint8).copy()
    key: Any = np.random.MT19937(sequence).state
    words = raw[_TORCH_WORDS_AT : _TORCH_WORDS_AT + 8 * _MT19937_WORDS].view(np.uint64)
    words[:] = key["state"]["key"].astype(np.uint64)
    raw[:8].view(np.uint64)[0] = _torch_seed(sequence)
    return torch.from_numpy(raw)


def _seed_torch(generator: torch.Generator, sequence: np.random.SeedSequence) -> None:
    generator.manual_seed(_torch_seed(sequence))
    if generator.device.type == "cpu":
        state = _torch_generator_state(sequence)
        if state is not None:
            generator.set_state(state)


def _seed_process(sequence: np.random.SeedSequence) -> None:
    """Seed the global generators of Python, numpy and torch (all devices), each its own child."""
    for_python, for_numpy, for_torch = sequence.spawn(3)
    random.seed(int.from_bytes(for_python.generate_state(8, np.uint32).tobytes(), "little"))
    np.random.seed(for_numpy.generate_state(8, np.uint32))
    torch.manual_seed(_torch_seed(for_torch))  # devices as well, lazily
    state = _torch_generator_state(for_torch)
    if state is not None:
        torch.set_rng_state(state)


@dataclass(frozen=True)
class WorkerSeeder:
    """Seeds a ``DataLoader`` worker; picklable, as worker processes that are spawned need it.

    Inside a loader, the loader's own base seed of the epoch goes in too, so that workers which
    are started anew each epoch do not repeat the last one.
    """

    seed: int
    path: tuple[int, ...]
    position: int

    def __call__(self, worker_id: int) -> None:
        worker = check_whole("worker_id", worker_id, 0, _WORD)
        path = (*self.path, _WORKER, self.position, worker)
        info = torch.utils.data.get_worker_info()
        if info is not None:
            base = (int(info.seed) - int(info.id)) % 2**64
            path = (*path, _LOADER, base % _WORD, base // _WORD)
        _seed_process(_sequence(self.seed, path))


class SeedManager:
    """One seed for a whole run: global generators, workers, generators and forks.

    Args:
        seed: in ``[0, LARGEST_SEED)``; None draws one from the operating system.
        deterministic: :meth:`set_global_seed` makes torch use deterministic algorithms only, on
            any device, and raise where there is none.
        benchmark: cuDNN may try algorithms out; off when ``deterministic``.

    Raises:
        ValueError: a seed that is not a whole number in range.
    """

    def __init__(
        self, seed: int | None = None, deterministic: bool = False, benchmark: bool = True
    ) -> None:
        chosen = secrets.randbits(64) if seed is None else seed
        self.seed = check_whole("seed", chosen, 0, LARGEST_SEED)
        self.deterministic = check_flag("deterministic", deterministic)
        self.benchmark = check_flag("benchmark", benchmark)
        self._path: tuple[int, ...] = ()
        self._position = 0

    def seed_sequence(self, offset: int = 0) -> np.random.SeedSequence:
        """The stream behind :meth:`get_numpy_generator`, to spawn from."""
        return self._stream(_NUMPY, "offset", offset)

    def set_global_seed(self) -> None:
        """Seed Python's, numpy's and torch's global generators and set torch's determinism."""
        if self.deterministic:
            # read by cuBLAS when its first handle is made
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = self.benchmark and not self.deterministic
        _seed_process(self._stream(_GLOBAL, "offset", 0))

    def get_worker_init_fn(self) -> WorkerSeeder:
        """``worker_init_fn`` of a ``DataLoader``: a stream of its own for every worker."""
        return WorkerSeeder(self.seed, self._path, self._position)

    def get_generator(self, offset: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
        """A torch generator on its own stream, the same for the same ``offset`` and position.

        Raises:
            ValueError: ``offset`` outside of ``[0, 2**32)``, or a ``device`` that is not here.
        """
        device = check_device("device", device)
        sequence = self._stream(_TORCH, "offset", offset)
        generator = torch.Generator(device=device)
        _seed_torch(generator, sequence)
        return generator

    def get_numpy_generator(self, offset: int = 0) -> np.random.Generator:
        """A numpy generator on its own stream, the same for the same ``offset`` and position."""
        return np.random.default_rng(self.seed_sequence(offset))

    def fork(self, offset: int = 1) -> SeedManager:
        """A manager whose streams share nothing with ours or with those of another ``offset``.

        Raises:
            ValueError: ``offset`` outside of ``[0, 2**32)``.
        """
        number = check_whole("offset", offset, 0, _WORD)
        child = SeedManager(self.seed, self.deterministic, self.benchmark)
        child._path = (*self._path, _FORK, self._position, number)
        return child

    def advance(self, steps: int = 1) -> None:
        """Move on: all streams asked for from now on are new ones.

        Raises:
            ValueError: ``steps`` negative, or the position beyond ``2**32``; nothing changes.
        """
        position = self._position + check_whole("steps", steps, 0)
        if position >= _WORD:
            raise ValueError(
                f"steps must leave the position below {_WORD}, it is {self._position}, got {steps!r}"
            )
        self._position = position

    def _stream(self, domain: int, name: str, number: int) -> np.random.SeedSequence:
        number = check_whole(name, number, 0, _WORD)
        return _sequence(self.seed, (*self._path, domain, self._position, number))

    def get_seed_info(self) -> dict[str, Any]:
        """What a run's record needs to be repeated."""
        cuda = torch.cuda.is_available()
        return {
            "initial_seed": self.seed,
            "current_seed": self.seed,
            "fork_path": list(self._path),
            "position": self._position,
            "deterministic": self.deterministic,
            "benchmark": self.benchmark,
            "cuda_available": cuda,
            "cuda_version": torch.version.cuda if cuda else None,
            "cudnn_version": torch.backends.cudnn.version() if cuda else None,
            "pytorch_version": torch.__version__,
            "numpy_version": np.__version__,
        }

    def save_state(self) -> dict[str, Any]:
        """The manager and all global generators, as plain values that JSON keeps exactly.

        CUDA generators are included once CUDA is in use.
        """
        version, words, gauss = random.getstate()
        legacy: Any = np.random.get_state(legacy=False)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "seed": self.seed,
            "path": list(self._path),
            "position": self._position,
            "deterministic": self.deterministic,
            "benchmark": self.benchmark,
            "python": [version, list(words), gauss],
            "numpy": {
                "key": legacy["state"]["key"].tolist(),
                "pos": int(legacy["state"]["pos"]),
                "has_gauss": int(legacy["has_gauss"]),
                "gauss": float(legacy["gauss"]),
            },
            "torch": _encode(torch.get_rng_state()),
            "cuda": [_encode(state) for state in cuda],
        }

    @whole_state
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore manager and global generators; the next draw is the one that would have come.

        CUDA generators are restored for the devices that are here.

        Raises:
            ValueError: a part is missing or malformed, by name; nothing changes.
        """
        parts = ("seed", "path", "position", "deterministic", "benchmark", "python", "numpy")
        check_keys(state, (*parts, "torch", "cuda"), "SeedManager")
        forms.record(
            path=forms.listed(forms.whole(0, _WORD)),
            python=forms.listed(lambda *_: None, exactly=3),
            numpy=forms.record(
                key=forms.numbers(624, low=0, whole=True),
                pos=forms.whole(0, 625),
                has_gauss=forms.whole(0, 2),
                gauss=forms.number(),
            ),
            torch=forms.text,
            cuda=forms.listed(forms.text),
        )("", state)
        forms.optional(forms.number())("python[2]", state["python"][2])
        seed = check_whole("seed", state["seed"], 0, LARGEST_SEED)
        path = tuple(check_whole("path", word, 0, _WORD) for word in state["path"])
        position = check_whole("position", state["position"], 0, _WORD)
        check_type("deterministic", state["deterministic"], bool)
        check_type("benchmark", state["benchmark"], bool)
        part = "python"
        try:
            version, words, gauss = state["python"]
            python_state = (version, tuple(words), gauss)
            random.Random().setstate(python_state)
            part = "numpy"
            saved = state["numpy"]
            key = np.array(saved["key"], dtype=np.uint32)
            numpy_state = ("MT19937", key, saved["pos"], saved["has_gauss"], saved["gauss"])
            np.random.RandomState().set_state(numpy_state)
            part = "torch"
            torch_state = _decode(state["torch"])
            torch.Generator().set_state(torch_state)
            part = "cuda"
            cuda_states = [_decode(text) for text in state["cuda"]]
        except (TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
            raise ValueError(f"{part} state is malformed: {error}") from error
        self.seed, self._path, self._position = seed, path, position
        self.deterministic = state["deterministic"]
        self.benchmark = state["benchmark"]
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states and torch.cuda.is_available():
            here = torch.cuda.device_count()
            for device, cuda_state in enumerate(cuda_states[:here]):
                torch.cuda.set_rng_state(cuda_state, device)

    def state_dict(self) -> dict[str, Any]:
        """Same as :meth:`save_state`."""
        return self.save_state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Same as :meth:`load_state`."""
        self.load_state(state_dict)

    def __repr__(self) -> str:
        fork = f", fork_path={list(self._path)}" if self._path else ""
        return (
            f"SeedManager(seed={self.seed}{fork}, deterministic={self.deterministic}, "
            f"benchmark={self.benchmark})"
        )


def set_reproducible_seed(seed: int, deterministic: bool = True) -> SeedManager:
    """Seed everything for a run that can be repeated; returns the manager.

    Raises:
        ValueError: a seed outside of ``[0, LARGEST_SEED)``.
    """
    check_whole("seed", seed, 0, LARGEST_SEED)
    manager = SeedManager(seed=seed, deterministic=deterministic, benchmark=False)
    manager.set_global_seed()
    return manager


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())


__all__ = ["SeedManager", "WorkerSeeder", "set_reproducible_seed"]
