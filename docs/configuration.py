"""Generate docs/configuration.md from the pydantic models of the server file and of a request's options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from string import Template
from typing import Any

import yaml
from pydantic import BaseModel

from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions
from dlm_serve.options.server_file import CONFIG_VARIABLE, GenerationConfig, ServerConfig

TEXT = Template("""# Configuration

Written by `docs/generate.py` from the docstrings in `dlm_serve/options/`; do not edit.

Three things decide how a request decodes: its own options, then the server file, then the checkpoint. A value that is
unknown, out of range or impossible for the model is refused, in a request with HTTP 400 and in the server file at
start. The message names the field, the value, the limit and the fix.

## Server file

A YAML file given with `--dllm-algorithm-config FILE` or in the environment variable `$variable`. Every field may be
left out. With all defaults written out:

```yaml
$example```

$sections

All other settings are SGLang's own flags.

## Request options

These go under `$field` in a request: [api.md](api.md#requests) shows where that is in each route.
[models.md](models.md) says which `algorithm` and `stop_rule` a family has, and which options it lacks. An absent option
takes its default; `null` is a value of its own.

$request

- The default `threshold` of self-speculation is the server file's `generation.draft_threshold`.
- A request that gives `steps` but neither `threshold` nor `algorithm` gets the fixed schedule: that many forwards per
  block, each filling an equal share of the masks.
- `speculation` and `budget` are explained in [one-forward.md](one-forward.md).
- `block_length` may be at most the largest of the server file's `routing.widths`, and `steps` at most `block_length`.
""")


def page() -> str:
    """Return the text of docs/configuration.md."""
    config = ServerConfig()
    return TEXT.substitute(
        variable=CONFIG_VARIABLE,
        example=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=1000),
        sections="\n\n".join(_section(name, type(section)) for name, section in config),
        field=OPTIONS_FIELD,
        request=_request_options(),
    )


def _section(name: str, model: type[BaseModel]) -> str:
    """Return a section of the server file: its heading, its docstring and a table of its fields."""
    schema = model.model_json_schema()
    return f"### {name}\n\n{schema['description']}\n\n{_table(_rows(name, schema, schema))}"


def _rows(name: str, model: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each field of `model`, which is part of `schema`; those of a field with fields stand for it."""
    for field, entry in model["properties"].items():
        named = schema["$defs"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry
        if "properties" in named:
            yield from _rows(f"{name}.{field}", named, schema)
        else:
            meaning = _meaning(field, entry)
            yield f"`{name}.{field}`", _type(entry, schema), f"`{_yaml(entry['default'])}`", meaning


def _request_options() -> str:
    """Return a table of the options of a request, whose defaults are the server file's where it has the field."""
    schema = RequestOptions.model_json_schema()
    return _table(
        (
            f"`{name}`",
            _type(entry, schema),
            _default(name, entry),
            _meaning(name, entry),
        )
        for name, entry in schema["properties"].items()
    )


def _default(name: str, entry: dict[str, Any]) -> str:
    """Return the default of a request's option: its own, else where it comes from."""
    if entry["default"] is not None:
        return f"`{_yaml(entry['default'])}`"
    return f"`generation.{name}`" if name in GenerationConfig.model_fields else "the family's"


def _table(rows: Iterable[tuple[str, str, str, str]]) -> str:
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _type(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the type of a field in words, with its range, from its entry in a JSON schema."""
    if "anyOf" in entry:
        return ", or ".join(_type(part, schema) for part in entry["anyOf"])
    if "$ref" in entry:
        return _type(schema["$defs"][entry["$ref"].rpartition("/")[2]], schema)
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if entry["type"] == "null":
        return "`null`"
    if entry["type"] == "array":
        return f"list; each: {_type(entry['items'], schema)}"
    return f"{entry['type']}{_range(entry)}"


def _range(entry: dict[str, Any]) -> str:
    """Return the limits of a number in words."""
    if "exclusiveMinimum" in entry:
        return f" above {entry['exclusiveMinimum']:g}"
    if "minimum" not in entry:
        return ""
    least = f"{entry['minimum']:g}"
    return f" from {least} to {entry['maximum']:g}" if "maximum" in entry else f" of at least {least}"


def _meaning(name: str, entry: dict[str, Any]) -> str:
    """Return the docstring of a field for readers of YAML and JSON. Raises ValueError if it has none."""
    if "description" not in entry:
        raise ValueError(f"the field {name} has no docstring that pydantic knows (use_attribute_docstrings)")
    text = " ".join(entry["description"].split())
    return re.sub(r"\bNone\b|(?<!`)\bnull\b(?!`)", "`null`", text)


def _yaml(value: object) -> str:
    """Return a value in one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True)
    return text.removesuffix("...\n").strip()


PAGES: dict[str, Callable[[], str]] = {"configuration.md": page}
"""Files in this folder, and the functions that return their text."""
