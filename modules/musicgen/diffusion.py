"""Multi-Band Diffusion: audiocraft's other way from MusicGen's tokens to sound.

One network for each band of frequencies makes sound out of noise, step by step, guided by the codec's latents of the
tokens; the sum of the bands is then given the balance of frequencies of the codec's own sound. audiocraft's code does
the arithmetic. Ours is what is around it: noise from the job's seed alone, progress, a cancel inside a step, and
windows for long music.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from torch import Generator, Tensor, cat, from_numpy, inference_mode, nan_to_num, randn, randn_like
from torch.overrides import TorchFunctionMode

from modules.audio import Clip, Samples
from modules.contract import ModelBroken
from modules.musicgen import compat
from modules.musicgen.codec import Codec
from modules.musicgen.engine import Codes

WINDOW_S: Final = 30.0
"""Longest music rendered at once, as audiocraft does it: a window of MusicGen's."""
OVERLAP_S: Final = 1.0
STEPS: Final = 20
"""Steps of each band: audiocraft's own choice out of the thousand it was trained with."""

Progress: TypeAlias = Callable[[int, int], None]
"""(steps done, steps in all). Called inside the steps too; whatever it raises ends the rendering there."""


class Diffusion:
    """Renders tokens of one codec.

    Args:
        bands: audiocraft's DiffusionProcess of each band, on `device`.
        codec: whose tokens they are.
        model: the codec's CompressionModel.
        file_hash: sha256 of the weights' file.
        window_s: longest music rendered at once.
    """

    def __init__(
        self, bands: list[Any], codec: Codec, model: Any, device: str, file_hash: str, window_s: float = WINDOW_S
    ) -> None:
        from audiocraft.models.multibanddiffusion import MultiBandDiffusion

        self.file_hash = file_hash
        self._codec, self._device = codec, device
        self._frames = round(window_s * codec.frame_rate_hz)
        self._look: Callable[[bool], None] = lambda _ended: None
        for band in bands:
            # audiocraft leaves them in training mode, in which a transformer drops a tenth of its values by chance.
            band.model.eval()
            for layer in (*band.model.encoders, *band.model.decoders, *_middle(band.model)):
                layer.register_forward_pre_hook(lambda *_: self._look(False))
            band.model.register_forward_hook(lambda *_: self._look(True))
        self._bands: Any = MultiBandDiffusion(bands, model)

    def close(self) -> None:
        self._bands = None

    def render(self, codes: Codes, seed: int, progress: Progress) -> Clip:
        """Make the sound of int64 [K, T]; the same seed gives the same samples.

        Returns:
            T * hop samples. The sound may pass full scale; whoever writes it limits it.
        """
        windows = plan(codes.shape[1], self._frames, round(OVERLAP_S * self._codec.frame_rate_hz))
        done, total = 0, len(windows) * len(self._bands.DPs) * STEPS

        def look(ended: bool) -> None:
            nonlocal done
            done += ended
            progress(done, total)

        reference = self._codec.decode(codes).samples
        sound = np.zeros_like(reference)
        noise, hop = Noise(seed), self._codec.hop
        self._look = look
        try:
            for window in windows:
                at = slice(window.start * hop, window.end * hop)
                noise.enter(window.before * hop, window.after * hop)
                piece = self._window(codes[:, window.start : window.end], reference[:, at], noise)
                sound[:, at] += _faded(piece, window.before * hop, window.after * hop)
        finally:
            self._look = lambda _ended: None
        return Clip(sound, self._codec.sample_rate_hz)

    def _window(self, codes: Codes, reference: Samples, noise: Noise) -> Samples:
        """int64 [K, n] and the codec's sound of them, float32 [C, n * hop], to the rendered sound of the same shape."""
        with self._codec.guard(), inference_mode():
            heard = from_numpy(np.ascontiguousarray(reference))[None].to(self._device)
            with noise:
                rendered = self._bands.generate(self._codec.latents(codes), size=heard.size())
            # A band without any sound has no balance to match.
            matched = nan_to_num(self._bands.re_eq(rendered, heard), nan=0.0, posinf=0.0, neginf=0.0)
            return np.asarray(matched[0].to("cpu").numpy())


def load(folder: Path, codec: Codec, model: Any, device: str, file_hash: str) -> Diffusion:
    """Load the networks through audiocraft's own loader.

    Args:
        folder: where the hub's cache keeps the file.
        codec, model: whose tokens are rendered.
    Raises:
        ModelBroken: the file is for another codec.
    """
    from audiocraft.models import loaders
    from audiocraft.models.multibanddiffusion import DiffusionProcess
    from audiocraft.modules.diffusion_schedule import NoiseSchedule

    # The loader refuses a checkpoint that leaves a weight out.
    with compat.unfilled_weights():
        models, processors, configs = loaders.load_diffusion_models(folder, device, compat.DIFFUSION_FILE)
    latents = codec.latents(np.zeros((codec.codebooks, 1), np.int64)).shape[1]
    for network, config in zip(models, configs, strict=True):
        width = network.conv_codec.in_channels if network.use_codec else 0
        rate_hz = int(config.get("sample_rate", codec.sample_rate_hz))
        if (width, rate_hz) != (latents, codec.sample_rate_hz):
            raise ModelBroken(
                f"{compat.DIFFUSION_FILE} is for a codec of width {width} at {rate_hz} Hz;"
                f" this model's has width {latents} at {codec.sample_rate_hz} Hz",
                field="decoder",
            )
    schedules = [
        NoiseSchedule(**config.schedule, sample_processor=processor, device=device)
        for processor, config in zip(processors, configs, strict=True)
    ]
    bands = [DiffusionProcess(network, schedule) for network, schedule in zip(models, schedules, strict=True)]
    return Diffusion(bands, codec, model, device, file_hash)


def _middle(network: Any) -> list[Any]:
    """The layers between the encoders and the decoders."""
    if network.use_transformer:
        return list(network.transformer.layers)
    return [network.bilstm] if network.bilstm is not None else []


class Noise(TorchFunctionMode):
    """Inside, what this thread asks of `randn_like` comes from a generator of our own.

    Where a window begins before the last one ended, both get the same noise, so that they tell nearly the same.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = Generator().manual_seed(seed)
        self._ends: list[Tensor] = []
        self._before = self._after = self._drawn = 0

    def enter(self, before: int, after: int) -> None:
        """Begin a window that shares its first samples with the last window and its last ones with the next."""
        self._before, self._after, self._drawn = before, after, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._draw(args[0]) if func is randn_like else func(*args, **(kwargs or {}))

    def _draw(self, like: Tensor) -> Tensor:
        # Always drawn by the CPU: a graphics card has numbers of its own for the same seed.
        *outer, samples = like.shape
        fresh = randn(*outer, samples - self._before, generator=self._generator)
        drawn = cat([self._ends[self._drawn], fresh], dim=-1) if self._before else fresh
        self._ends[self._drawn : self._drawn + 1] = [drawn[..., samples - self._after :].clone()]
        self._drawn += 1
        return drawn.to(like.device)


@dataclass(frozen=True)
class Window:
    """Frames start to end, and how many of them the windows before and after have as well."""

    start: int
    end: int
    before: int
    after: int


def plan(frames: int, longest: int, overlap: int) -> list[Window]:
    """Cut `frames` into windows of one size, none above `longest`, which overlap by `overlap` or a little more."""
    if frames <= longest:
        return [Window(0, frames, 0, 0)]
    count = -(-(frames - overlap) // (longest - overlap))
    size = -(-(frames + (count - 1) * overlap) // count)
    starts = [round(index * (frames - size) / (count - 1)) for index in range(count)]
    shared = [0, *(first + size - second for first, second in itertools.pairwise(starts)), 0]
    return [Window(at, at + size, shared[i], shared[i + 1]) for i, at in enumerate(starts)]


def _faded(piece: Samples, before: int, after: int) -> Samples:
    """Fade in over the first samples and out over the last ones, so that overlapping windows add up."""
    gain = np.ones(piece.shape[1], np.float32)
    for count, edge in ((before, gain), (after, gain[::-1])):
        edge[:count] *= (np.arange(count, dtype=np.float32) + 0.5) / max(count, 1)
    return piece * gain
