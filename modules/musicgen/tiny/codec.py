"""The embedded model's codec: four codebooks of waveforms, one for each layer of the music.

A code names a sound and how far into it we are (20 ms at a time), so decoding is a lookup, an envelope and an
overlap-add: no network, exact in pieces, thousands of times faster than real time. Encoding looks for the sequence of
codes whose spectra add up to the given sound's, layer by layer (coordinate descent, a Viterbi search in each layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from audiocraft.models.encodec import CompressionModel
from audiocraft.quantization.base import QuantizedResult
from torch import Tensor
from torch.nn import functional

from modules.musicgen.tiny.follower import Follower
from modules.musicgen.tiny.steering import SILENCE, Codebook

PULSE_SOUND = 200  # sounds of the first codebook from here on are silent ticks
_LONG, _SHORT = 4096, 1280  # analysis windows of the encoder, samples: pitch and time
_OWN = 0.3  # a share of the waveform missed by the codewords, below which the sound is the codec's own
_SWEEPS = 3
_BEGIN, _JUMP = 0.5, 2.0  # cost of starting a sound, of anything that is not a sound's course, as parts of a frame


@dataclass(frozen=True)
class _Dictionary:
    """Spectra of every code: power [K, card, F] and the least gain that its decay allows [K, card]."""

    power: Tensor
    floor: Tensor


class LayeredCodec(CompressionModel):
    """audiocraft's CompressionModel over waveform codebooks.

    Args:
        codebooks, cardinality: K tables of `cardinality` codes.
        sample_rate_hz, frame_rate_hz: 32,000 and 50.
        fade: samples by which a frame overlaps the next.
        attack_frames: frames of a sound before its decay begins.
        widths: how much of each layer, delayed, is added on the left and taken away on the right. Both channels
            together are the layers as they are, so mixing down loses nothing. Without them the sound is mono.
        delays: of each layer's width, in samples.

    Buffers (the weights):
        waves float16 [K, card, hop + fade]: each code's frame, already windowed for the overlap.
        sound int16 [K, card]: which sound a code belongs to. onset bool [K, card]: it begins that sound.
        following int16 [K, card]: the code that comes next while the sound lasts.
        hold, fall float32 [K, card]: the level of a long sound falls to `hold`, by the factor `fall` a frame.
        classes int16 [K, card]: the pitch classes that a code sounds, bit 0 for C to bit 11 for B.
    """

    def __init__(
        self,
        codebooks: int = 4,
        cardinality: int = 2048,
        sample_rate_hz: int = 32_000,
        frame_rate_hz: int = 50,
        fade: int = 64,
        attack_frames: int = 3,
        widths: Sequence[float] = (),
        delays: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._shape = (codebooks, cardinality)
        self._rate, self._frame_rate = sample_rate_hz, frame_rate_hz
        self.hop, self.fade, self.attack_frames = sample_rate_hz // frame_rate_hz, fade, attack_frames
        self.active = codebooks
        self._wide = list(zip(widths, delays, strict=True))
        self.waves: Tensor
        self.sound: Tensor
        self.onset: Tensor
        self.following: Tensor
        self.hold: Tensor
        self.fall: Tensor
        self.classes: Tensor
        self.register_buffer("waves", torch.zeros(codebooks, cardinality, self.hop + fade, dtype=torch.float16))
        self.register_buffer("sound", torch.zeros(self._shape, dtype=torch.int16))
        self.register_buffer("onset", torch.zeros(self._shape, dtype=torch.bool))
        self.register_buffer("following", torch.zeros(self._shape, dtype=torch.int16))
        self.register_buffer("hold", torch.ones(self._shape))
        self.register_buffer("fall", torch.ones(self._shape))
        self.register_buffer("classes", torch.zeros(self._shape, dtype=torch.int16))
        self._dictionary: _Dictionary | None = None

    # audiocraft's interface ------------------------------------------------------------------------------------------

    @property
    def channels(self) -> int:
        return 2 if self._wide else 1

    @property
    def frame_rate(self) -> float:
        return float(self._frame_rate)

    @property
    def sample_rate(self) -> int:
        return self._rate

    @property
    def cardinality(self) -> int:
        return self._shape[1]

    @property
    def num_codebooks(self) -> int:
        return self.active

    @property
    def total_codebooks(self) -> int:
        return self._shape[0]

    def set_num_codebooks(self, n: int) -> None:
        """Decode the first n layers only: drums, bass, chords, lead."""
        if not 0 < n <= self.total_codebooks:
            raise ValueError(f"{n} codebooks; there are {self.total_codebooks}")
        self.active = n

    def forward(self, x: Tensor) -> QuantizedResult:
        codes, _ = self.encode(x)
        bits = self.num_codebooks * torch.log2(torch.tensor(float(self.cardinality))) * self.frame_rate / 1000
        return QuantizedResult(self.decode(codes)[..., : x.shape[-1]], codes, bits.to(x))

    def decode_latent(self, codes: Tensor) -> Tensor:
        """The layers' frames before the overlap, float32 [B, K * (hop + fade), T] for codes int64 [B, K, T]."""
        layers = []
        for k in range(min(codes.shape[1], self.active)):
            level = self._level(codes[:, k], k)
            layers.append(self.waves[k].float()[codes[:, k]] * level[..., None])
        return torch.cat(layers, 2).transpose(1, 2)

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Audio float32 [B, C, T * hop] of codes int64 [B, K, T]; `scale` is not used."""
        del scale
        return self.spread(self.overlap(self.decode_latent(codes))).sum(1).clamp(-1, 1)

    def spread(self, layers: Tensor) -> Tensor:
        """Each layer in its place between the channels: [B, K, C, T] of [B, K, T]."""
        if not self._wide:
            return layers[:, :, None]
        side = torch.zeros_like(layers)
        for k, (width, delay) in enumerate(self._wide[: layers.shape[1]]):
            side[:, k, delay:] = width * layers[:, k, : layers.shape[2] - delay]
        return torch.stack([layers + side, layers - side], 2)

    def overlap(self, latent: Tensor) -> Tensor:
        """Overlap-add of decode_latent's frames: each layer's sound [B, K, T * hop]."""
        frames = latent.reshape(latent.shape[0], -1, self.hop + self.fade, latent.shape[2])
        body, tail = frames[:, :, : self.hop], frames[:, :, self.hop :]
        late = functional.pad(tail, (1, 0))[..., :-1]  # a frame's tail sounds over the next one's start
        body = torch.cat([body[:, :, : self.fade] + late, body[:, :, self.fade :]], 2)
        return body.transpose(2, 3).flatten(2)

    def _level(self, codes: Tensor, k: int) -> Tensor:
        """How loud each frame is by how long its sound has lasted: [B, T] for codes [B, T]."""
        sound, onset = self.sound[k][codes], self.onset[k][codes]
        begins = onset | functional.pad(sound[:, 1:] != sound[:, :-1], (1, 0), value=True)
        at = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        age = at - torch.where(begins, at, 0).cummax(1).values
        age = (age - self.attack_frames).clamp(min=0)
        hold = self.hold[k][codes]
        return hold + (1 - hold) * self.fall[k][codes] ** age

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, None]:
        """Codes int64 [B, K, T / hop] of audio float [B, C, T]; channels are mixed down.

        Sound that the codebooks do not hold becomes the nearest that they do: a sketch of it.
        """
        mono = x.float().mean(1)
        frames = -(-mono.shape[-1] // self.hop)
        return torch.stack([self._encode_one(row, frames) for row in mono]), None

    def follower(self) -> Follower:
        """What leads the model besides its text."""
        classes, begins, following = (t.to("cpu").numpy() for t in (self.classes, self.onset, self.following))
        begins = begins | (np.arange(self.cardinality) == SILENCE)
        sounding = ((classes[..., None] >> np.arange(12)) & 1).astype(bool)
        kits = ((self.sound[0] > SILENCE) & (self.sound[0] < PULSE_SOUND)).to("cpu").numpy()
        return Follower(Codebook(sounding, begins, following.astype(np.int64), kits), self.frame_rate)

    # the encoder -----------------------------------------------------------------------------------------------------

    def _encode_one(self, mono: Tensor, frames: int) -> Tensor:
        """Sound of this codec's own, on its frames, is found by its waveform; any other by its spectrum."""
        mono = functional.pad(mono, (0, frames * self.hop - mono.shape[-1] + _LONG))
        at = torch.arange(frames, device=mono.device) * self.hop
        spans = mono[at[:, None] + torch.arange(_LONG, device=mono.device)]
        codes, missed = self._search(*self._wave_problem(spans))
        if missed > _OWN:
            codes, _ = self._search(*self._power_problem(spans))
        return self._with_pulse(codes)

    def _with_pulse(self, codes: Tensor) -> Tensor:
        """Mark the pulse silently where nothing drums, as the language model knows it: a tick at each onset."""
        silent = (self.sound[0] >= PULSE_SOUND) & self.onset[0]
        if bool((codes[0] != SILENCE).any()) or not bool((codes != SILENCE).any()) or not bool(silent.any()):
            return codes
        onsets = torch.stack([self.onset[k][codes[k]] for k in range(1, self.total_codebooks)]).any(0)
        code = silent.nonzero()[0, 0]
        for t in range(codes.shape[1]):
            code = silent.nonzero()[0, 0] if bool(onsets[t]) else self.following[0, code].long()
            codes[0, t] = code
        return codes

    def _wave_problem(self, spans: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        target = spans[:, : self.hop]
        weight = torch.full_like(target, float(1 / (0.02 * (target**2).mean() + 1e-8)))
        return target, weight, self.waves[..., : self.hop].float(), self._least_gain()

    def _least_gain(self) -> Tensor:
        """The least level at which a code can sound, [K, card]: all of it in the attack, `hold` once it decays."""
        least = self.hold.float().clone()
        code = torch.arange(self.cardinality, device=least.device).expand(self._shape)
        for _ in range(self.attack_frames):
            began = torch.where(self.onset, code, SILENCE)
            least.scatter_(1, began, 1.0)
            code = self.following.long().gather(1, code)
        return least

    def _power_problem(self, spans: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        table = self._spectra()
        target = self._features(spans)
        weight = 1 / (target + 1e-3 * target.mean() + 1e-9) ** 2
        return target, weight, table.power, table.floor

    def _search(self, target: Tensor, weight: Tensor, words: Tensor, floor: Tensor) -> tuple[Tensor, float]:
        """Codes [K, T] whose words [K, card, F] add up to the target [T, F], and the weighted share they miss.

        floor: the least gain that a word's decay allows, [K, card].
        """
        codes = torch.zeros(self.total_codebooks, len(target), dtype=torch.long, device=target.device)
        parts = torch.zeros(self.total_codebooks, *target.shape, device=target.device)
        for sweep in range(_SWEEPS):
            for k in (2, 1, 3, 0) if sweep == 0 else range(self.total_codebooks):
                rest = target - (parts.sum(0) - parts[k])
                match, energy = (weight * rest) @ words[k].T, weight @ (words[k] ** 2).T
                gain = (match / (energy + 1e-12)).clamp(max=1.0).maximum(floor[k])
                cost = gain * gain * energy - 2 * gain * match
                codes[k] = self._path(cost, k, weight.shape[1])
                parts[k] = gain.gather(1, codes[k][:, None]) * words[k][codes[k]]
        missed = (weight * (target - parts.sum(0)) ** 2).sum() / ((weight * target**2).sum() + 1e-12)
        return codes, float(missed)

    def _path(self, cost: Tensor, k: int, features: int) -> Tensor:
        """The cheapest course of codes [T] for costs [T, card]: a sound's own course is free, a new one is not."""
        frames, card = cost.shape
        leads_to = self.following[k].long()
        starts = self.onset[k].clone()
        starts[SILENCE] = True
        enter = torch.where(starts, _BEGIN, _JUMP) * features
        enter[SILENCE] = 0.2 * _BEGIN * features
        best = cost[0] + enter
        back = torch.zeros(frames, card, dtype=torch.long, device=cost.device)
        for t in range(1, frames):
            cheapest, where = best.min(0)
            arrive = cheapest + enter
            come_from = where.expand(card).clone()
            carried = torch.full_like(best, torch.inf).scatter_reduce(0, leads_to, best, "amin")
            stay = carried <= arrive
            # of the codes that lead here, the one whose cost was carried
            holder = torch.zeros(card, dtype=torch.long, device=cost.device)
            same = best <= carried[leads_to]
            holder[leads_to[same]] = torch.arange(card, device=cost.device)[same]
            back[t] = torch.where(stay, holder, come_from)
            best = torch.where(stay, carried, arrive) + cost[t]
        path = torch.empty(frames, dtype=torch.long, device=cost.device)
        path[-1] = best.argmin()
        for t in range(frames - 1, 0, -1):
            path[t - 1] = back[t, path[t]]
        return path

    def _features(self, spans: Tensor) -> Tensor:
        """Band powers [N, F] of spans [N, _LONG] that begin with the frame in question."""
        long = torch.fft.rfft(spans * torch.hann_window(_LONG, device=spans.device)).abs() ** 2 / _LONG
        short = torch.fft.rfft(spans[:, :_SHORT] * torch.hann_window(_SHORT, device=spans.device)).abs() ** 2 / _SHORT
        return torch.cat([long[:, 3:160], _bands(long, 160, 24), _bands(short, 2, 24)], 1)

    def _spectra(self) -> _Dictionary:
        if self._dictionary is None or self._dictionary.power.device != self.waves.device:
            spans = torch.stack([self._course(k) for k in range(self.total_codebooks)])
            power = torch.stack([self._features(s) for s in spans])
            self._dictionary = _Dictionary(power, (self._least_gain() ** 2).clamp(min=0.02))
        return self._dictionary

    def _course(self, k: int) -> Tensor:
        """What follows each code while its sound lasts: [card, _LONG]."""
        code = torch.arange(self.cardinality, device=self.waves.device)
        out = torch.zeros(self.cardinality, _LONG + 2 * self.hop, device=self.waves.device)
        waves = self.waves[k].float()
        for frame in range(_LONG // self.hop + 1):
            out[:, frame * self.hop : frame * self.hop + self.hop + self.fade] += waves[code]
            code = self.following[k].long()[code]
        return out[:, :_LONG]


def _bands(power: Tensor, first: int, count: int) -> Tensor:
    """Means of bins from `first` up in `count` bands of equal ratio."""
    edges = torch.logspace(0, 1, count + 1, base=(power.shape[1] - 1) / first) * first
    marks = edges.round().long().tolist()
    return torch.stack([power[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(marks)], 1)
