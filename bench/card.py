"""The decoder on an NVIDIA card against audiocraft's own generate, both sides in the same run.

    python -m bench.card [--quick] [--json]

The published shapes with random weights, classifier-free guidance, half precision on both sides, 30 s of music (10 s
for audiocraft, whose steps take the same time wherever they are). Tokens and their decoding to sound are timed; the
text encoder is left out, as in bench/decoder.py.

The share of the memory's speed is what a step must read (the weights once, half of a full window's keys and values) at
the speed at which the card copies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import decoder
from bench.decoder import CARD, CODEBOOKS, FRAME_RATE, Sink

SECONDS = 30.0
PRECISION = "float16"


def engine(size: str) -> Any:
    from modules import settings
    from modules.musicgen import backends

    lm = decoder.layered(size)
    lm.condition_provider.to("cuda")
    chosen = settings.parse(["--device", "cuda", "--backend", "cuda", "--precision", PRECISION], {})
    return backends.choose(chosen, lm, "cuda", decoder.facts(size, PRECISION))


def clip(made: Any, codec: Any, takes: int, seconds: float) -> dict[str, float]:
    """Seconds of a clip's tokens, of its sound, and the most memory the card had in use."""
    import torch

    from modules.musicgen.engine import GenerationSpec

    spec = GenerationSpec(prompt="techno", duration_s=seconds, seeds=tuple(range(1, takes + 1)))
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    started = time.perf_counter()
    codes = made.generate(spec, Sink())
    between = time.perf_counter()
    for take in codes:
        codec.decode(take)
    torch.cuda.synchronize()
    return {
        "tokens_s": between - started,
        "sound_s": time.perf_counter() - between,
        "peak_bytes": float(torch.cuda.max_memory_allocated()),
    }


def ours(size: str, takes: int, rounds: int, codec_model: Any) -> dict[str, float]:
    """Medians of whole clips, the first one, which compiles, left out."""
    from modules.musicgen.codec import Codec

    made, codec = engine(size), Codec(codec_model, "cuda")
    started = time.perf_counter()
    clip(made, codec, takes, 1.0)
    first = time.perf_counter() - started
    runs = [clip(made, codec, takes, SECONDS) for _ in range(rounds)]
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    shape = made._backend._decoder.shape  # noqa: SLF001
    read = 2 * shape.parameters() + made._backend.row_bytes(int(SECONDS * FRAME_RATE)) * 2 * takes / 2  # noqa: SLF001
    steps = SECONDS * FRAME_RATE + CODEBOOKS - 1
    made.close()
    return {**found, "steps_per_s": steps / found["tokens_s"], "read_bytes": read, "first_s": first}


def theirs(codec_model: Any, seconds: float) -> dict[str, float]:
    import torch
    from audiocraft.models.musicgen import MusicGen

    lm = decoder.language_model("small").to("cuda", torch.float16)
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    model = MusicGen("bench", codec_model, lm, max_duration=30)
    model.set_generation_params(duration=1.0, top_k=250, cfg_coef=3.0)
    model.generate(["techno"])
    model.set_generation_params(duration=seconds, top_k=250, cfg_coef=3.0)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    started = time.perf_counter()
    model.generate(["techno"])
    torch.cuda.synchronize()
    took = time.perf_counter() - started
    return {"seconds": seconds, "clip_s": took, "peak_bytes": float(torch.cuda.max_memory_allocated())}


def quality(steps: int) -> dict[str, float]:
    """Teacher-forced logits on random tokens against audiocraft's forward in float32."""
    import torch

    from modules.musicgen.backends import cuda
    from modules.musicgen.backends.interface import Guidance
    from modules.musicgen.backends.weights import DecoderWeights
    from modules.musicgen.conditions import Conditioner
    from modules.musicgen.engine import Window
    from modules.musicgen.sampling import Sampler, SamplingRule

    lm = decoder.language_model("small").to("cuda")
    tokens = np.random.default_rng(2).integers(0, CARD, (1, CODEBOOKS, steps))
    facts = decoder.facts("small", PRECISION)
    backend: Any = cuda.CudaBackend(DecoderWeights(lm), "cuda", PRECISION, "bench")
    conditions = Conditioner(lm, "cuda", facts).both("techno", None, Window(0, 0, 1), alone=True)
    expected = decoder.forced_logits(lm, np.repeat(tokens, 2, axis=0))
    with torch.inference_mode():
        sampler = Sampler(SamplingRule(1.0, 250, 0.0), (0,))
        cursor = cuda.DeviceCursor(backend._decoder, Guidance((conditions,), 1, 3.0), sampler, steps, lambda: None)  # noqa: SLF001
        fused, rows = cursor._fused, cursor._passes[0]  # noqa: SLF001
        if fused is None:
            raise SystemExit("there are no fused kernels to measure")
        sequence = torch.from_numpy(tokens).cuda()
        found = []
        for at in range(steps):
            where = torch.full((1,), at, dtype=torch.int64, device="cuda")
            logits = fused.logits(sequence, where, where, rows.sine, rows.added, rows.kv, rows.cross)
            found.append(logits.cpu().numpy().copy())
    return decoder._distance(np.stack(found), expected)  # noqa: SLF001


def copy_bytes_per_s() -> float:
    """Bytes read and written a second when the card copies half a gigabyte, the median of some."""
    import torch

    source = torch.empty(2**28, dtype=torch.int16, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * source.numel() * 2 / statistics.median(times))


def run(quick: bool) -> dict[str, Any]:
    import torch

    from modules.musicgen import memory

    rounds = 1 if quick else 3
    codec_model = decoder.compression_model().to("cuda")
    result: dict[str, Any] = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    result["copy_bytes_per_s"] = copy_bytes_per_s()
    result["quality"] = quality(24 if quick else 64)
    memory.give_back()
    for name, size, takes in (("small", "small", 1), ("small, 4 takes", "small", 4), ("large", "large", 1)):
        result[name] = ours(size, takes, rounds, codec_model)
        print(f"{name}: {result[name]['steps_per_s']:.0f} steps/s", file=sys.stderr)
        memory.give_back()
    result["audiocraft"] = theirs(codec_model, 4.0 if quick else 10.0)
    return result


def show(result: dict[str, Any]) -> None:
    speed = result["copy_bytes_per_s"]
    print(f"{result['card']}, torch {result['torch']}, {speed / 1e12:.2f} TB/s copying")
    pace, share = {}, {}
    for name in ("small", "small, 4 takes", "large"):
        each = result[name]
        pace[name] = SECONDS / (each["tokens_s"] + each["sound_s"])
        share[name] = each["read_bytes"] * each["steps_per_s"] / speed
        print(f"  {name:15s} {each['steps_per_s']:7.0f} steps/s, {pace[name]:5.1f}x real time, "
              f"{share[name]:4.0%} of the memory's speed, "
              f"sound {each['sound_s']:.2f} s, {each['peak_bytes'] / 2**20:.0f} MB, "
              f"first second {each['first_s']:.1f} s")  # fmt: skip
    own, found = result["audiocraft"], result["quality"]
    theirs = own["seconds"] / own["clip_s"]
    print(f"  audiocraft      {theirs * FRAME_RATE:7.0f} steps/s, {own['peak_bytes'] / 2**20:.0f} MB")
    print(f"small against audiocraft: {pace['small'] / theirs:.1f}x (at least 20x)")
    print(f"share of the memory's speed: {share['small']:.0%} (at least 30 %)")
    takes = result["small, 4 takes"]["tokens_s"] / result["small"]["tokens_s"]
    print(f"4 takes against 1: {takes:.2f}x the time (under 1.5x)")
    print(f"large: {pace['large']:.1f}x real time (at least 5x)")
    print(f"logits against audiocraft's in float32: rms {found['relative_rms']:.2e} (at most 2e-2), "
          f"top-250 overlap {found['top250_overlap']:.3f}, KL {found['kl_nats']:.2e}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one clip of each instead of three")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    import torch

    from modules.musicgen import compat

    compat.import_stack()
    if not torch.cuda.is_available():
        sys.exit("bench.card needs an NVIDIA card")
    result = run(args.quick)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
