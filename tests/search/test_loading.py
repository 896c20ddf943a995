from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from ringrift_pipeline.game import new_game
from ringrift_pipeline.network import (
    DIVERGENCE,
    NetworkConfig,
    RingRiftNetwork,
    SymmetricEvaluator,
    devices,
    save_model,
)
from ringrift_pipeline.search import (
    HeuristicPlayer,
    NetworkPlayer,
    PlayerSpecError,
    RandomPlayer,
    RolloutPlayer,
    load_player,
)
from ringrift_pipeline.store import CorruptArtefactError, MissingArtefactError, Store

CONFIG = "square8_2p"


def network(geometry: str = "square") -> RingRiftNetwork:
    config = NetworkConfig(blocks=1, channels=8, value_channels=4, geometry=geometry, players=2)
    return RingRiftNetwork(config)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "data")
    with store.create(CONFIG, 7, "ema_model") as draft:
        save_model(draft, network(), {})
    store.promote(CONFIG, 7, draft.artefact, {"why": "test"})
    return store


def test_baselines():
    assert isinstance(load_player("random", CONFIG), RandomPlayer)
    assert isinstance(load_player("heuristic", CONFIG), HeuristicPlayer)
    player = load_player("rollout", CONFIG, simulations=9)
    assert isinstance(player, RolloutPlayer) and player.playouts == 9


def test_networks_by_champion_generation_and_path(store, monkeypatch):
    folder = store.champion(CONFIG).path
    state = new_game(CONFIG)
    chosen = set()
    for spec in ("champion", "generation:0007", "generation:7", folder, folder / "model.json"):
        player = load_player(spec, CONFIG, simulations=6, data=store.root, device="cpu")
        assert isinstance(player, NetworkPlayer) and player.simulations == 6
        assert player.search.settings.gumbel_scale == 0.0
        chosen.add(player.choose(state).code)
    assert len(chosen) == 1
    monkeypatch.setenv("RINGRIFT_DATA", str(store.root))
    assert load_player("champion", CONFIG).name == "champion"
    larger = load_player(str(folder), "square19_2p", simulations=2, device="cpu")
    assert larger.choose(new_game("square19_2p")) in new_game("square19_2p").legal_moves()


def test_a_model_that_loses_by_bfloat16_plays_in_float32(store, monkeypatch):
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: True)
    champion = store.champion(CONFIG)
    folder = store.open(champion.path)
    for measured, precision in ((1e-5, "bfloat16"), (2e-3, "float32")):
        with store.create(CONFIG, 0, "ema_model", {DIVERGENCE: measured}) as draft:
            for name in folder.files:
                shutil.copyfile(folder.file(name), draft / name)
        loaded = load_player("generation:0000", CONFIG, data=store.root, device="cpu")
        assert loaded.evaluator.precision == precision


def test_evaluations_are_averaged_over_symmetries_on_request(store):
    state = new_game(CONFIG)
    for _ in range(9):  # off the middle, where the board looks alike from every side
        state = state.apply(state.legal_moves()[0])
    while len(state.legal_moves()) < 5:
        state = state.apply(state.legal_moves()[0])

    def loaded(symmetries):
        return load_player(
            "champion", CONFIG, data=store.root, device="cpu", simulations=2, symmetries=symmetries
        )

    plain, turned = loaded(1), loaded(8)
    assert isinstance(turned.evaluator, SymmetricEvaluator) and turned.evaluator.symmetries == 8
    assert not isinstance(plain.evaluator, SymmetricEvaluator)
    one, mean = plain.analyze(state), turned.analyze(state)
    assert mean.moves == one.moves and sum(mean.value) == pytest.approx(1.0, abs=1e-5)
    assert mean.policy != pytest.approx(one.policy, abs=1e-6)
    assert turned.choose(state) in state.legal_moves()


def test_what_cannot_be_loaded_says_why(store, tmp_path):
    def load(spec, config=CONFIG):
        return load_player(spec, config, data=store.root, device="cpu")

    with pytest.raises(MissingArtefactError, match="champion of hex8_2p.*ringrift loop"):
        load("champion", "hex8_2p")
    with pytest.raises(MissingArtefactError, match="0008"):
        load("generation:0008")
    with pytest.raises(PlayerSpecError, match="must be a number.*Valid are: random"):
        load("generation:latest")
    with pytest.raises(PlayerSpecError, match="no such path exists.*Valid are: random"):
        load("nobody")
    with pytest.raises(PlayerSpecError, match="holds no model.json"):
        load(str(tmp_path))
    save_model(tmp_path / "hex", network("hex"), {})
    with pytest.raises(PlayerSpecError, match="hex boards and cannot play square8_2p"):
        load(str(tmp_path / "hex"))
    weights = store.champion(CONFIG).path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 4
    weights.write_bytes(bytes(data))
    with pytest.raises(CorruptArtefactError):
        load("champion")


def test_importing_the_package_loads_neither_numba_nor_torch():
    code = (
        "import sys, ringrift_pipeline.search as s; "
        "assert 'load_player' in dir(s); "
        "print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
