"""The converted decoder: its logits against audiocraft's own forward, and the cache it is kept in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules import settings
from modules.contract import Cancelled, DiskFull, ModelBroken
from modules.musicgen import backends, compat
from modules.musicgen.backends import onnx_cache
from modules.musicgen.backends.interface import Pass
from modules.musicgen.backends.onnx import BLOCKS, OnnxDecoder, OnnxPass, fresh_memory, int8_cache_works, open_onnx
from modules.musicgen.backends.onnx_cache import Key, OnnxCache
from modules.musicgen.backends.quantise import quantise, restore
from modules.musicgen.backends.torch_static import StaticDecoder, TorchPass
from modules.musicgen.backends.weights import DecoderWeights
from modules.musicgen.conditions import Conditioner, Conditions
from modules.musicgen.engine import Window
from modules.musicgen.patterns import delay_pattern
from modules.settings import ROOT
from tests import decoders

STEPS = 96


@pytest.fixture(scope="module", autouse=True)
def stack() -> None:
    import torch

    compat.import_stack()
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm() -> Any:
    # As wide as a head block and a weight block, so that quantisation is met as it is in the published models.
    return decoders.build(dim=256, heads=4, layers=4, card=1024)


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The embedded model: trained, so its logits are those of music."""
    from modules.musicgen.tiny import load_tiny

    return load_tiny(ROOT / "models" / "tiny", "cpu")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


def convert(lm: Any, folder: Path, precision: str, progress: Callable[[int, int], None] = lambda *_: None) -> Any:
    """The loaded session of a conversion."""
    facts = decoders.facts(lm, precision)
    conditioner, pattern = Conditioner(lm, "cpu", facts), delay_pattern(lm.pattern_provider, lm.card)
    backend = open_onnx(DecoderWeights(lm), conditioner, pattern, facts, folder, 1, "test", progress)
    return backend._decoder


def conditions(lm: Any, text: str = "a warm piano") -> Conditions:
    return Conditioner(lm, "cpu", decoders.facts(lm)).both(text, None, Window(0, 0, 1), alone=True)


def forced(lm: Any) -> np.ndarray:
    """Some tokens of a window as the decoder would be fed them, int64 [2, K, STEPS], special ones at the start."""
    codes = np.random.default_rng(3).integers(0, lm.card, (1, lm.n_q, STEPS))
    for k in range(lm.n_q):
        codes[:, k, : k + 1] = lm.card
    return np.repeat(codes, 2, axis=0)


def music(lm: Any, folder: Path) -> np.ndarray:
    """Four seconds of the model's own music as the decoder is fed it, int64 [2, K, 200]."""
    options = ["--cache-dir", str(folder / "music"), "--precision", "float32", "--threads", "1"]
    facts = decoders.facts(lm, window_s=10.0)
    engine = backends.choose(settings.parse(options, {}), lm, "cpu", facts)
    spec = replace(decoders.SPEC, duration_s=4.0, temperature=1.0, top_k=250)
    codes = engine.generate(spec, decoders.Listener())
    pattern = delay_pattern(lm.pattern_provider, lm.card)
    return np.repeat(pattern.spread(codes, codes.shape[2])[..., : codes.shape[2]], 2, axis=0)


def audiocrafts_logits(lm: Any, tokens: np.ndarray, text: str = "a warm piano") -> np.ndarray:
    """All positions at once through audiocraft's own modules, float32 [STEPS, 2, K, card]."""
    import torch
    from audiocraft.modules.conditioners import ConditioningAttributes

    both = [ConditioningAttributes(text={"description": words}) for words in (text, None)]
    with torch.inference_mode():
        tensors = lm.condition_provider(lm.condition_provider.tokenize(both))
        logits = lm(torch.from_numpy(tokens), [], tensors)
    return np.asarray(logits.permute(2, 0, 1, 3).numpy())


def fed(row: Pass, tokens: np.ndarray, first: int = 1) -> np.ndarray:
    """The first positions at once, then one by one: the logits from there on, float32 [n, 2, K, card]."""
    steps = tokens.shape[2]
    logits = [row.feed(tokens[..., :first]).copy()]
    logits += [row.feed(tokens[..., at : at + 1]).copy() for at in range(first, steps)]
    return np.stack(logits)


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("first", [1, 20])
def test_float32_logits_are_audiocrafts(lm: Any, folder: Path, first: int) -> None:
    tokens = forced(lm)
    expected = audiocrafts_logits(lm, tokens)[first - 1 :]
    found = fed(OnnxPass(convert(lm, folder, "float32"), conditions(lm), STEPS), tokens, first)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("first", [1, 20])
def test_static_torch_logits_are_audiocrafts(lm: Any, first: int) -> None:
    import torch

    tokens = forced(lm)
    expected = audiocrafts_logits(lm, tokens)[first - 1 :]
    decoder = StaticDecoder(DecoderWeights(lm), "cpu", torch.float32)
    found = fed(TorchPass(decoder, conditions(lm), STEPS), tokens, first)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_bfloat16_logits_are_near(lm: Any) -> None:
    import torch

    tokens = forced(lm)
    decoder = StaticDecoder(DecoderWeights(lm), "cpu", torch.bfloat16)
    found = fed(TorchPass(decoder, conditions(lm), STEPS), tokens)
    assert relative_rms(found, audiocrafts_logits(lm, tokens)) < 0.02


def test_int8_with_int8_keys_and_values_is_within_two_percent_on_a_trained_model(tiny: Any, folder: Path) -> None:
    assert int8_cache_works()
    tokens = music(tiny, folder)
    decoder = convert(tiny, folder, "int8")
    assert decoder.kv_dtype == np.int8
    found = fed(OnnxPass(decoder, conditions(tiny), tokens.shape[2]), tokens)
    expected = audiocrafts_logits(tiny, tokens)
    assert relative_rms(found, expected) < 0.02
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert likely_overlap(found, expected) > 0.98
    assert kl(expected, found) < 1e-3


def test_int4_keeps_the_likely_tokens_of_a_trained_model(
    tiny: Any, folder: Path, record_property: Callable[..., None]
) -> None:
    tokens = music(tiny, folder)
    found = fed(OnnxPass(convert(tiny, folder, "int4"), conditions(tiny), tokens.shape[2]), tokens)
    expected = audiocrafts_logits(tiny, tokens)
    overlap, divergence = likely_overlap(found, expected), kl(expected, found)
    record_property("top-250 overlap", overlap)
    record_property("KL", divergence)
    assert overlap > 0.9
    assert divergence < 0.01


def test_int8_logits_of_random_weights_are_near(lm: Any, folder: Path) -> None:
    # Random weights spread every error evenly and have no structure that forgives one: a bound, not a measure.
    tokens = forced(lm)
    found = fed(OnnxPass(convert(lm, folder, "int8"), conditions(lm), STEPS), tokens)
    assert relative_rms(found, audiocrafts_logits(lm, tokens)) < 0.04


def likely_overlap(first: np.ndarray, second: np.ndarray, count: int = 250) -> float:
    a, b = (np.argpartition(x, -count, axis=-1)[..., -count:] for x in (first, second))
    a, b = a.reshape(-1, count), b.reshape(-1, count)
    return float(np.mean([len(np.intersect1d(x, y)) / count for x, y in zip(a, b, strict=True)]))


def kl(truth: np.ndarray, other: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence in nats."""
    log_p, log_q = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (truth.astype(float), other.astype(float))
    )
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def test_keys_and_values_far_out_in_the_window_are_not_clipped(lm: Any, folder: Path) -> None:
    decoder, tokens = convert(lm, folder, "int8"), forced(lm)
    exact = convert(lm, folder, "float32")
    found = fed(OnnxPass(decoder, conditions(lm), STEPS, 15), tokens)
    assert relative_rms(found, fed(OnnxPass(exact, conditions(lm), STEPS, 15), tokens)) < 0.04


# ---------------------------------------------------------------------------------------------- layer by layer
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import checkpoints

    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints.make_lm(folder, layers=3)
    return folder


def states(folder: Path) -> dict[str, Any]:
    return dict(compat.read_checkpoint(folder, "state_dict.bin"))


def test_a_checkpoint_read_layer_by_layer_gives_the_same_parameters(checkpoint: Path) -> None:
    package = states(checkpoint)
    layers: list[dict[str, Any]] = []
    trimmed = compat._with_one_layer(package, layers)
    whole, single = (
        decoders.build(dim=32, heads=2, layers=3, card=64),
        decoders.build(dim=32, heads=2, layers=1, card=64),
    )
    single.layer_states = [dict(layer.state_dict()) for layer in whole.transformer.layers]
    for ours, theirs in zip(DecoderWeights(single).layers(), DecoderWeights(whole).layers(), strict=True):
        assert (ours.qkv.weight == theirs.qkv.weight).all()
        assert (ours.feed_out.weight == theirs.feed_out.weight).all()
    assert len(layers) == 3
    names = {name for name in package["best_state"] if name.startswith("transformer.layers.")}
    assert {f"transformer.layers.{i}.{name}" for i, layer in enumerate(layers) for name in layer} == names
    assert not [name for name in trimmed["best_state"] if name.startswith("transformer.layers.1.")]


@pytest.mark.parametrize("fault", ["missing", "misshapen", "unknown"])
def test_a_layers_fault_is_named_when_it_is_read(tmp_path: Path, fault: str) -> None:
    import torch

    whole, lm = decoders.build(dim=32, heads=2, layers=3, card=64), decoders.build(dim=32, heads=2, layers=1, card=64)
    lm.layer_states = [dict(layer.state_dict()) for layer in whole.transformer.layers]
    if fault == "missing":
        del lm.layer_states[2]["linear1.weight"]
    elif fault == "misshapen":
        lm.layer_states[2]["linear1.weight"] = torch.zeros(3, 3)
    else:
        lm.layer_states[2]["linear9.weight"] = torch.zeros(3, 3)
    with pytest.raises(ModelBroken, match=r"layers\.2.*linear"):
        convert(lm, tmp_path, "int8")
    assert entries(tmp_path) == []


# ---------------------------------------------------------------------------------------------------- the cache
@pytest.fixture
def small() -> Any:
    return decoders.build(dim=32, heads=2, layers=2, card=64)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_a_second_opening_converts_nothing(small: Any, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    convert(small, tmp_path, "int8", lambda done, total: said.append((done, total)))
    assert said[-1][0] == said[-1][1] > 0
    assert said == sorted(said)
    said.clear()
    convert(small, tmp_path, "int8", lambda done, total: said.append((done, total)))
    assert said == []


@pytest.mark.parametrize("damage", ["cut short", "a bit turned", "no description", "another version", "a file missing"])
def test_a_damaged_entry_is_made_again_and_gives_the_right_logits(small: Any, tmp_path: Path, damage: str) -> None:
    tokens = forced(small)
    expected = fed(OnnxPass(convert(small, tmp_path, "float32"), conditions(small), STEPS), tokens)
    entry = entries(tmp_path)[0]
    weights = entry / "decoder.bin"
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "a bit turned":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 64
        weights.write_bytes(content)
    elif damage == "no description":
        (entry / onnx_cache.META_FILE).write_text("{", encoding="utf-8")
    elif damage == "another version":
        meta = json.loads((entry / onnx_cache.META_FILE).read_text(encoding="utf-8"))
        meta["shape"]["something_new"] = 1
        (entry / onnx_cache.META_FILE).write_text(json.dumps(meta), encoding="utf-8")
    else:
        (entry / "decoder.onnx").unlink()
    made: list[int] = []
    found = fed(
        OnnxPass(convert(small, tmp_path, "float32", lambda done, _: made.append(done)), conditions(small), STEPS),
        tokens,
    )
    assert made
    assert (found == expected).all()


def test_another_checkpoint_precision_format_or_runtime_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    key = Key("m", "abc", 8, 128, "int8")
    names = [key.name, Key("m", "abd", 8, 128, "int8").name, Key("m", "abc", 4, 32, "int8").name]
    with monkeypatch.context() as patch:
        patch.setattr(onnx_cache, "FORMAT", onnx_cache.FORMAT + 1)
        names.append(key.name)
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.1")
    names.append(key.name)
    assert len(set(names)) == 5


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_cancelled_conversion_leaves_nothing(small: Any, tmp_path: Path, stop_at: int) -> None:
    calls: Iterator[int] = iter(range(1, 1000))

    def progress(_done: int, _total: int) -> None:
        if next(calls) == stop_at:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        convert(small, tmp_path, "int8", progress)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_conversion_are_swept(small: Any, tmp_path: Path) -> None:
    (tmp_path / ".making-old").mkdir()
    (tmp_path / ".making-old" / "decoder.bin").write_bytes(b"x" * 100)
    convert(small, tmp_path, "float32")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_longest_unused_entries_go_when_the_bound_is_passed(small: Any, tmp_path: Path) -> None:
    import os

    weights = DecoderWeights(small)
    keys = [Key(f"model-{index}", "abc", 32, 0, "float32") for index in range(4)]

    def make(cache: OnnxCache, key: Key) -> None:
        cache.make(key, weights, lambda *_: np.zeros(0, np.float32), lambda *_: None)

    for age, key in enumerate(keys[:3]):
        make(OnnxCache(tmp_path), key)
        os.utime(tmp_path / key.name, (age, age))
    assert OnnxCache(tmp_path).find(keys[0]) is not None, "looked at again, it is the youngest now"
    size = sum(path.stat().st_size for path in (tmp_path / keys[0].name).iterdir())
    make(OnnxCache(tmp_path, kept_bytes=2 * size + onnx_cache._needed_bytes(weights.shape, keys[3])), keys[3])
    assert {path.name for path in entries(tmp_path)} == {keys[index].name for index in (0, 2, 3)}


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFull, match="MB"):
        convert(small, tmp_path, "float32")
    assert entries(tmp_path) == []


def test_a_graph_the_runtime_cannot_read_is_a_broken_model(small: Any, tmp_path: Path) -> None:
    convert(small, tmp_path, "float32")
    entry = onnx_cache._read(entries(tmp_path)[0])
    (entry.folder / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelBroken):
        OnnxDecoder(entry, 1)


# ------------------------------------------------------------------------------------------------- quantisation
@given(st.sampled_from([8, 4]), st.sampled_from([32, 128]), st.integers(1, 200), st.integers(0, 2**31))
def test_a_quantised_weight_is_within_a_step_of_itself(bits: int, block: int, into: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(0, 1, (3, into)).astype(np.float32)
    packed = quantise(weight, bits, block)
    step = np.repeat(np.abs(packed.scales), block, axis=1)[:, :into]
    error = np.abs(restore(packed, bits, into) - weight)
    assert (error <= step * 1.001).all()
    assert (error <= step * 0.501).mean() > 0.9


def test_a_block_of_zeros_stays_zero() -> None:
    assert (restore(quantise(np.zeros((2, 64), np.float32), 4, BLOCKS[4]), 4, 64) == 0).all()


# ------------------------------------------------------------------------------------- memory for keys and values
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="a system without large pages")
def test_keys_and_values_are_asked_for_in_large_pages() -> None:
    room = fresh_memory(8 * 2**20)
    room[:] = 1
    where, inside, flags = room.ctypes.data, False, []
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, stop = (int(word, 16) for word in first.split("-"))
            inside = start <= where < stop
        elif inside and first == "VmFlags:":
            flags = rest
    assert "hg" in flags


def test_keys_and_values_that_do_not_fit_are_a_lack_of_memory() -> None:
    from modules.musicgen import memory

    with pytest.raises(MemoryError) as caught:
        fresh_memory(2**62)
    assert memory.is_out_of_memory(caught.value)
