"""Makes audiocraft 1.3.0 import, load and run on today's torch, and closes the doors its loaders leave open.

`prepare` must run before anything imports torchaudio, audiocraft or demucs. It may run any number of times.
What it changes, and nothing else:

- xformers: audiocraft imports two names of it and, on its `torch` attention backend, calls `unbind` alone.
  A stand-in serves that, so no build of xformers has to match this torch.
- torchaudio: a native library that fails to load counts as one that is absent. audiocraft uses the Python parts.
- torch.load: weights only, whatever the caller says. A checkpoint is data, never a program.
- demucs: a bare model name would fall back to a pickle from elsewhere on any hub error; it becomes the
  hub's safetensors one. The class named in such a file must be one of demucs' own.
- audiocraft's checkpoint reader also takes our folder form (`state_dict.safetensors` beside `config.yaml`).
- Multi-Band Diffusion's file holds pickled omegaconf objects: they are read as data, and none of them is made.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_lock = threading.Lock()
_layers_wanted: ContextVar[list[dict[str, Any]] | None] = ContextVar("_layers_wanted", default=None)
DIFFUSION_FILE = "mbd_musicgen_32khz.th"
"""Multi-Band Diffusion for MusicGen's tokens, as audiocraft names it."""
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
_MARK = "_studio_compat"
DEMUCS_CLASSES = frozenset({"demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs"})
"""What a demucs safetensors file may ask to be made of; its loader would import and call anything."""


def prepare() -> None:
    """Put the stand-ins in place. Imports torch, but neither torchaudio, demucs nor audiocraft."""
    with _lock:
        # Threads of a tokenizer and of torch would fight over the cores, and the fork warning is noise.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _stand_in_for_xformers()
        _tolerate_torchaudio()
        _load_weights_only()


def import_stack() -> None:
    """Import everything a generation needs (10 to 20 s of work the first time) and patch what must be patched."""
    prepare()
    with _lock:
        importlib.import_module("audiocraft.models")
        # The page shows progress; bars on the terminal would only tear the log.
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
        _redirect_demucs()
        _read_both_folder_forms()


@contextmanager
def unfilled_weights() -> Iterator[None]:
    """Modules built in this block keep whatever their weights' memory holds: for those a checkpoint fills entirely.

    Drawing the first values of a billion weights, to overwrite them at once, takes longer than reading the checkpoint.
    """
    import torch

    names = ("trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "normal_", "uniform_")
    originals = {name: getattr(torch.nn.init, name) for name in names}
    try:
        for name in names:
            setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for name, function in originals.items():
            setattr(torch.nn.init, name, function)


def _stand_in_for_xformers() -> None:
    if "xformers" in sys.modules:
        return
    import torch

    ops = types.ModuleType("xformers.ops")
    ops.__spec__ = importlib.machinery.ModuleSpec("xformers.ops", None)
    vars(ops).update(unbind=torch.unbind, memory_efficient_attention=None, LowerTriangularMask=type("Mask", (), {}))
    package = types.ModuleType("xformers")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None, is_package=True)
    vars(package).update(ops=ops, __path__=[], **{_MARK: True})
    sys.modules["xformers"], sys.modules["xformers.ops"] = package, ops


class _TolerantExtension(importlib.abc.MetaPathFinder):
    """Finds torchaudio's loader of native code as usual and makes it take a failing library for an absent one."""

    NAME = "torchaudio._extension.utils"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = functools.partial(self._exec, run)  # type: ignore[method-assign]
        return spec

    @staticmethod
    def _exec(run: Callable[[types.ModuleType], None], module: types.ModuleType) -> None:
        run(module)
        load: Callable[[str], bool] = vars(module)["_load_lib"]

        def load_or_do_without(lib: str) -> bool:
            try:
                return load(lib)
            except OSError as error:
                log.info("torchaudio runs without its native library %s: %s", lib, error)
                return False

        # The second check refuses a torch of another CUDA version; the parts in use run no native code.
        vars(module).update(_load_lib=load_or_do_without, _check_cuda_version=lambda: None)


def _tolerate_torchaudio() -> None:
    if not any(isinstance(finder, _TolerantExtension) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TolerantExtension())


def _load_weights_only() -> None:
    import torch

    original = torch.load
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "weights_only": True})

    setattr(load, _MARK, True)
    torch.load = load


def _redirect_demucs() -> None:
    pretrained: Any = importlib.import_module("demucs.pretrained")
    hf: Any = importlib.import_module("demucs.hf")
    if hasattr(pretrained.get_model, _MARK):
        return
    get_model, load_file = pretrained.get_model, hf.load_safetensors_model

    @functools.wraps(get_model)
    def from_hub(name: str, repo: Path | None = None) -> Any:
        bare = repo is None and not name.startswith("hf://") and name != "demucs_unittest"
        return get_model(f"hf://{name}" if bare else name, repo)

    @functools.wraps(load_file)
    def load_known_class(path: str | Path) -> Any:
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("klass") not in DEMUCS_CLASSES or "_class" in metadata.get("structure", ""):
            raise ValueError(f"{Path(path).name}: {metadata.get('klass')!r} is no demucs model")
        return load_file(path)

    for function in (from_hub, load_known_class):
        setattr(function, _MARK, True)
    pretrained.get_model, hf.load_safetensors_model = from_hub, load_known_class


def _read_both_folder_forms() -> None:
    loaders: Any = importlib.import_module("audiocraft.models.loaders")
    original = loaders._get_state_dict  # noqa: SLF001 - the one place every checkpoint of audiocraft passes
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def get_state_dict(
        file_or_url_or_id: str | Path, filename: str | None = None, device: str = "cpu", cache_dir: str | None = None
    ) -> Any:
        folder = Path(file_or_url_or_id)
        if filename is None or not folder.is_dir():
            return original(file_or_url_or_id, filename, device, cache_dir)
        if filename == DIFFUSION_FILE:
            return read_diffusion(folder / filename, device)
        package = read_checkpoint(folder, filename, device)
        wanted = _layers_wanted.get()
        return package if wanted is None else _with_one_layer(package, wanted)

    setattr(get_state_dict, _MARK, True)
    loaders._get_state_dict = get_state_dict  # noqa: SLF001


@contextmanager
def layer_by_layer() -> Iterator[list[dict[str, Any]]]:
    """Language models loaded in here get their first decoder layer alone.

    Yields:
        a list that loading fills with the parameters of every layer, {name inside the layer: tensor}; from a
        checkpoint that can be mapped they cost no memory until they are read.
    """
    layers: list[dict[str, Any]] = []
    token = _layers_wanted.set(layers)
    try:
        yield layers
    finally:
        _layers_wanted.reset(token)


def _with_one_layer(package: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if "best_state" not in package or "xp.cfg" not in package:
        return package
    config = OmegaConf.create(package["xp.cfg"])
    layers[:] = [{} for _ in range(int(config.transformer_lm.num_layers))]
    kept = {}
    for name, tensor in package["best_state"].items():
        found = _LAYER.fullmatch(name)
        if found is not None and int(found[1]) < len(layers):
            layers[int(found[1])][found[2]] = tensor
        if found is None or found[1] == "0" or int(found[1]) >= len(layers):
            kept[name] = tensor
    config.transformer_lm.num_layers = 1
    return {**package, "best_state": kept, "xp.cfg": OmegaConf.to_yaml(config)}


def config_name(state_name: str) -> str:
    """The YAML beside a state: state_dict.* -> config.yaml, compression_state_dict.* -> compression_config.yaml."""
    return state_name.partition(".")[0].replace("state_dict", "config") + ".yaml"


def read_checkpoint(folder: Path, filename: str, device: str = "cpu") -> dict[str, Any]:
    """Read one of a model folder's checkpoints in either form.

    Returns:
        audiocraft's package: `best_state` and `xp.cfg`, or `pretrained`.
    Raises:
        FileNotFoundError: neither form is there.
        pickle.UnpicklingError: the file holds more than tensors and plain values.
    """
    safe = folder / (Path(filename).stem + ".safetensors")
    if safe.is_file():
        from safetensors.torch import load_file

        config = (folder / config_name(filename)).read_text(encoding="utf-8")
        return {"best_state": load_file(str(safe), device=device), "xp.cfg": config}
    return _load(folder / filename, device)


def _load(path: Path, device: str) -> dict[Any, Any]:
    import torch

    # Mapped, a checkpoint costs no memory of its own while the model is filled from it; only the zip form can be.
    package = torch.load(path, map_location=device, mmap=device == "cpu" and _is_zip(path))
    if not isinstance(package, dict):
        raise TypeError(f"{path.name} holds a {type(package).__name__}, not a checkpoint")
    return package


class _Inert:
    """Stands where a pickle names a class of omegaconf's: keeps what the pickle says of it and does nothing."""

    def __init__(self, *_: object) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


_INERT_NAMES = (
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata"),
    *("omegaconf.base.Metadata", "collections.defaultdict", "typing.Any", "typing.Dict", "typing.List"),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "bytes", "object")),
)
"""Everything that a pickled omegaconf configuration names, types included."""


def read_diffusion(path: Path, device: str = "cpu") -> dict[Any, Any]:
    """Read the file of Multi-Band Diffusion.

    Returns:
        audiocraft's package: `sample_rate`, `n_bands`, and for each band `cfg`, `model_state` and `processor_state`.
    Raises:
        pickle.UnpicklingError: the file holds more than tensors, plain values and configurations.
        ValueError, TypeError, KeyError: it is no such package.
    """
    import torch
    from omegaconf import OmegaConf

    with torch.serialization.safe_globals([(_Inert, name) for name in _INERT_NAMES]):
        package = _load(path, device)
    bands = {index: package[index] for index in range(int(package["n_bands"]))}
    return {**package, **{i: {**band, "cfg": OmegaConf.create(_plain(band["cfg"]))} for i, band in bands.items()}}


def _plain(value: Any) -> Any:
    """What a configuration says, out of the pickled objects or as it is."""
    if isinstance(value, _Inert):
        if "_content" in value.state:
            return _plain(value.state["_content"])
        return _plain(value.state["_val"])
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
