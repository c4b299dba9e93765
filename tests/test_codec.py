"""EnCodec's decoder in pieces: every cut must join to the whole as the model itself decodes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.musicgen import codec as codec_module
from modules.musicgen import compat, seanet
from modules.musicgen.codec import Codec, ExactStream, RepeatingStream
from modules.musicgen.engine import Codes

INAUDIBLE_DB = -60.0
"""What the joined pieces may differ from the whole, against its level."""
RATIOS = [8, 5, 4, 4]


@pytest.fixture(scope="module", autouse=True)
def stack() -> None:
    import torch

    compat.import_stack()
    torch.set_num_threads(1)


def encodec(**changes: Any) -> Any:
    """audiocraft's EncodecModel as the 32 kHz one is built, with few filters and random weights."""
    import torch
    from audiocraft.models.encodec import EncodecModel
    from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
    from audiocraft.quantization.vq import ResidualVectorQuantizer

    options: dict[str, Any] = {
        "channels": 1, "dimension": 32, "n_filters": 4, "n_residual_layers": 1, "ratios": RATIOS, "activation": "ELU",
        "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "norm_params": {}, "kernel_size": 7,
        "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2, "causal": False, "pad_mode": "reflect",
        "true_skip": True, "compress": 2, "lstm": 2, "disable_norm_outer_blocks": 0, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    encoder = SEANetEncoder(**options)
    decoder = SEANetDecoder(**options, trim_right_ratio=1.0)
    quantizer = ResidualVectorQuantizer(dimension=32, n_q=4, bins=64)
    layers: Any = quantizer.vq.layers
    for layer in layers:
        layer._codebook.embed.data.normal_()
        layer._codebook.inited.fill_(1)
    causal = options["causal"]
    return EncodecModel(
        encoder, decoder, quantizer, frame_rate=50, sample_rate=32_000, channels=1, causal=causal
    ).eval()


def transformers_encodec() -> Any:
    import torch
    from audiocraft.models.encodec import HFEncodecCompressionModel
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=32_000, audio_channels=1, upsampling_ratios=RATIOS, num_filters=4, hidden_size=32,
        codebook_size=64, target_bandwidths=[1.2], use_causal_conv=False, norm_type="weight_norm", num_lstm_layers=2,
    )  # fmt: skip
    return HFEncodecCompressionModel(EncodecModel(config).eval())


def stereo() -> Any:
    from audiocraft.models.encodec import InterleaveStereoCompressionModel

    return InterleaveStereoCompressionModel(encodec()).eval()


KINDS: dict[str, Callable[[], Any]] = {
    "audiocraft": encodec,
    "transformers": transformers_encodec,
    "stereo": stereo,
    "causal": lambda: encodec(causal=True),
    "more residual layers": lambda: encodec(n_residual_layers=3),
    "without an LSTM": lambda: encodec(lstm=0),
    "with shortcuts": lambda: encodec(true_skip=False),
    "zero padding": lambda: encodec(pad_mode="constant"),
}


@pytest.fixture(scope="module")
def codecs() -> Callable[[str], tuple[Any, Codec]]:
    made: dict[str, tuple[Any, Codec]] = {}

    def get(kind: str) -> tuple[Any, Codec]:
        if kind not in made:
            model = KINDS[kind]()
            made[kind] = model, Codec(model, "cpu")
        return made[kind]

    return get


def some_codes(codec: Codec, frames: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, codec.cardinality, (codec.codebooks, frames))


def whole(model: Any, codes: Codes) -> np.ndarray:
    """The model's own decoding, float32 [C, T]."""
    import torch

    with torch.inference_mode():
        return np.asarray(model.decode(torch.from_numpy(codes)[None], None)[0].numpy())


def difference_db(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    level = float(np.sqrt((expected**2).mean()))
    error = float(np.sqrt(((found - expected) ** 2).mean()))
    return float(20 * np.log10(max(error, 1e-12) / level))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2, 7, 160])
def test_a_whole_decoding_is_the_models_own(codecs: Any, kind: str, frames: int) -> None:
    model, codec = codecs(kind)
    assert isinstance(codec.stream(), ExactStream)
    codes = some_codes(codec, frames)
    assert difference_db(codec.decode(codes).samples, whole(model, codes)) < INAUDIBLE_DB - 20


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.sampled_from(["audiocraft", "stereo", "causal"]))
def test_however_the_frames_arrive_the_pieces_join_to_the_whole(codecs: Any, sizes: list[int], kind: str) -> None:
    model, codec = codecs(kind)
    codes = some_codes(codec, sum(sizes) + 1)
    stream, at, pieces = codec.stream(), 0, []
    for size in sizes:
        pieces.append(stream.push(codes[:, at : at + size]))
        at += size
    pieces += [stream.push(codes[:, at:]), stream.finish()]
    assert difference_db(np.concatenate(pieces, axis=1), whole(model, codes)) < INAUDIBLE_DB


def test_there_is_no_click_at_a_seam(codecs: Any) -> None:
    model, codec = codecs("audiocraft")
    codes = some_codes(codec, 200)
    stream = codec.stream()
    pieces = [stream.push(codes[:, at : at + 1]) for at in range(200)]
    seams = np.cumsum([piece.shape[1] for piece in pieces if piece.shape[1]])[:-1]
    joined, expected = np.concatenate([*pieces, stream.finish()], axis=1), whole(model, codes)
    assert len(seams) >= 2
    for seam in seams:
        near = slice(seam - 32, seam + 32)
        assert np.abs(joined[:, near] - expected[:, near]).max() < 1e-3 * np.abs(expected).max()


def test_the_first_sound_comes_before_half_a_second_of_frames(codecs: Any) -> None:
    _, codec = codecs("audiocraft")
    stream, given = codec.stream(), 0
    while stream.push(some_codes(codec, 1)).shape[1] == 0:
        given += 1
    assert given < 25


def test_nothing_in_gives_nothing_out(codecs: Any) -> None:
    for kind, channels in (("audiocraft", 1), ("stereo", 2)):
        _, codec = codecs(kind)
        assert codec.decode(some_codes(codec, 0)).samples.shape == (channels, 0)
        assert codec.stream().finish().shape == (channels, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_runs_the_same_parts_where_onnx_runtime_cannot(
    codecs: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no graph today")

    monkeypatch.setattr(seanet.OnnxRunner, "__init__", refuse)
    model, _ = codecs(kind)
    codec = Codec(model, "cpu")
    assert isinstance(codec._seanet, codec_module.Seanet)
    assert isinstance(codec._seanet.runner, seanet.TorchRunner)
    codes = some_codes(codec, 160)
    assert difference_db(codec.decode(codes).samples, whole(model, codes)) < INAUDIBLE_DB - 20


def test_a_decoder_of_another_kind_is_still_decoded_and_streamed() -> None:
    model = encodec(norm="time_group_norm")
    codec = Codec(model, "cpu")
    assert isinstance(codec.stream(), RepeatingStream)
    codes = some_codes(codec, 60)
    assert difference_db(codec.decode(codes).samples, whole(model, codes)) < INAUDIBLE_DB


def test_taking_a_decoder_apart_leaves_the_model_as_it_was(codecs: Any) -> None:
    model = encodec()
    codes = some_codes(codecs("audiocraft")[1], 20)
    before = whole(model, codes)
    Codec(model, "cpu").decode(codes)
    assert (whole(model, codes) == before).all()
