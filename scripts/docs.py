"""Writes the README tables that come from the program itself: `python scripts/docs.py`, or `--check` to compare."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.contract import Parameter, parameters  # noqa: E402 - the program is beside this script
from modules.musicgen.catalog import PUBLISHED  # noqa: E402
from modules.settings import Settings, flag_name  # noqa: E402

PAGES = {"README.md": "en", "README.ru.md": "ru"}
WORDS = {
    "en": {"flag": "Flag", "default": "Default", "what": "What it does", "parameter": "Parameter", "range": "Range",
           "to": "to", "empty": "empty", "off": "off", "no default": "", "point": ".",
           "models": "Model | Parameters | Download | Channels | Follows a melody", "million": "M", "billion": "B",
           "gigabytes": "GB", "mono": "mono", "stereo": "stereo", "yes": "yes", "no": "no"},
    "ru": {"flag": "Флаг", "default": "По умолчанию", "what": "Что делает", "parameter": "Параметр",
           "range": "Диапазон", "to": "до", "empty": "пусто", "off": "выключен", "no default": "",
           "point": ",", "models": "Модель | Параметров | Скачать | Каналы | Следует мелодии", "million": "млн",
           "billion": "млрд", "gigabytes": "ГБ", "mono": "моно", "stereo": "стерео", "yes": "да", "no": "нет"},
}  # fmt: skip


def main(argv: list[str]) -> int:
    stale = [
        name for name, language in PAGES.items() if not _update(ROOT / name, language, write="--check" not in argv)
    ]
    if stale and "--check" in argv:
        sys.stderr.write(f"docs: out of date: {', '.join(stale)}; run python scripts/docs.py\n")
        return 1
    return 0


def _update(page: Path, language: str, *, write: bool) -> bool:
    """Fill the page's blocks; returns whether it was up to date."""
    before = page.read_text(encoding="utf-8")
    after = before
    tables = {"models": model_table, "parameters": parameter_table, "flags": flag_table}
    for block, table in tables.items():
        begin, end = f"<!-- {block}:begin -->\n", f"<!-- {block}:end -->"
        before_block, _, rest = after.partition(begin)
        after = before_block + begin + table(language) + end + rest.partition(end)[2]
    if write and after != before:
        page.write_text(after, encoding="utf-8")
    return after == before


def model_table(language: str) -> str:
    """Every published model: its size, all that it has to fetch, and what it can, in Markdown."""
    words = WORDS[language]
    rows = [f"| {words['models']} |", "|---|---|---|---|---|"]
    for entry in PUBLISHED:
        million = entry.params_m or 0
        size = f"{million:g} {words['million']}" if million < 1000 else f"{million / 1000:g} {words['billion']}"
        fetched = f"{sum(part.bytes for part in entry.parts) / 1e9:.1f} {words['gigabytes']}"
        cells = (size.replace(".", words["point"]), fetched.replace(".", words["point"]))
        channels = words["mono" if entry.channels == 1 else "stereo"]
        rows.append(f"| `{entry.id}` | {' | '.join(cells)} | {channels} | {words['yes' if entry.melody else 'no']} |")
    return "\n".join(rows) + "\n"


def parameter_table(language: str) -> str:
    """Every setting of a generation: flag, range, default and hint, in Markdown."""
    words = WORDS[language]
    strings = json.loads((ROOT / "static" / "i18n" / f"{language}.json").read_text(encoding="utf-8"))
    rows = [f"| {words['parameter']} | {words['range']} | {words['default']} | {words['what']} |", "|---|---|---|---|"]
    for parameter in parameters():
        if parameter.widget == "model":
            continue  # --model is a flag of the program as well, and stands in that table
        hint = strings[f"hint.{parameter.name}"]
        default = _default(parameter.default, words)
        rows.append(f"| `{flag_name(parameter.name)}` | {_range(parameter, words)} | {default} | {hint} |")
    return "\n".join(rows) + "\n"


def _range(parameter: Parameter, words: dict[str, str]) -> str:
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.minimum is None or parameter.maximum is None:
        return ""
    return f"{parameter.minimum:g} {words['to']} {parameter.maximum:.10g}"


def flag_table(language: str) -> str:
    """Every flag of the program, its default and what it does, in Markdown."""
    words = WORDS[language]
    russian = json.loads((ROOT / "docs" / "flags.ru.json").read_text(encoding="utf-8"))
    rows = [f"| {words['flag']} | {words['default']} | {words['what']} |", "|---|---|---|"]
    for spec in fields(Settings):
        text = spec.metadata["help"] if language == "en" else russian[spec.name]
        choices = spec.metadata["choices"]
        if choices:
            text += ": " + ", ".join(f"`{choice}`" for choice in choices)
        rows.append(f"| `{flag_name(spec.name)}` | {_default(spec.default, words)} | {text} |")
    return "\n".join(rows) + "\n"


def _default(value: object, words: dict[str, str]) -> str:
    if value is False:
        return words["off"]
    if isinstance(value, Path):
        return f"`{value.relative_to(ROOT).as_posix()}`"
    return f"`{value}`" if value != "" else words["empty"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
