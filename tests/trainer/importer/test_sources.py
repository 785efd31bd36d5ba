from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_train.trainer.checks.read_config import problems_of
from lora_train.trainer.errors import Problem, UserError
from lora_train.trainer.importer.left_out import CHANGES, HARMLESS, MEMORY
from lora_train.trainer.importer.recognize import AXOLOTL_SIGNS, FACTORY_SIGNS, TOOLS, read_foreign
from lora_train.trainer.importer.sources import LARGEST, Keys, is_small, read_source
from lora_train.trainer.importer.write import as_yaml, nested


def refusal(path: Path, data: bytes | str) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UserError) as raised:
        read_source(path)
    (problem,) = raised.value.problems
    return problem.error.replace(str(path), "FILE")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("c.yaml", b"a: \xff\xfe", "FILE is not UTF-8 text (byte 3)"),
        ("c.yaml", b"a: b\0", "FILE is not UTF-8 text (byte 4)"),
        ("c.yaml", "a: [b", "FILE cannot be read: line 1: "),
        ("c.yaml", "!!python/object/apply:os.system [ls]", "FILE cannot be read: line 1: could not determine"),
        ("c.yaml", "a: !!int x", "FILE cannot be read: invalid literal"),
        ("c.yaml", "a: 2024-13-45", "FILE cannot be read: month must be"),
        ("c.yaml", "a: !!bool x", "FILE cannot be read: "),
        ("c.yaml", "a: !!timestamp x", "FILE cannot be read: "),
        ("c.yaml", "- a", "FILE holds a list, not sections with keys"),
        ("c.yaml", "a: " + "[" * 5000, "FILE holds too many values"),
        ("c.yaml", "a: " + "[" * 60 + "]" * 60, "FILE holds too many values"),
        ("c.yaml", BOMB, "FILE holds too many values"),
        ("c.yaml", "a: &a [*a]", "FILE holds too many values"),
        ("c.yaml", "#" * (LARGEST + 1), "FILE is larger than 1 MiB"),
        ("c.json", "{", "FILE cannot be read: line 1: "),
        ("c.json", "[" * 100_000, "FILE holds too many values"),
        ("c.json", "9" * 5000, "FILE cannot be read: "),
        ("c.py", "def f(:", "FILE cannot be read: line 1: "),
        ("c.py", "(" * 5000, "FILE "),
        ("c.py", "x = " + "-" * 50_000 + "1", "FILE holds too many values"),
        ("c.ipynb", "{}", "FILE is no notebook"),
        ("c.ipynb", "[]", "FILE is no notebook"),
        ("c.ipynb", '{"cells": [{"cell_type": "code", "source": 3}]}', "FILE is no notebook"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, name, data, error):
    assert refusal(tmp_path / name, data).startswith(error)


def test_no_file_and_a_folder(tmp_path):
    for path, said in ((tmp_path / "nowhere.yaml", "nowhere.yaml is not there"), (tmp_path, "cannot be read: ")):
        with pytest.raises(UserError, match=said) as raised:
            read_source(path)
        assert "lora-train init" not in str(raised.value)  # which is for one's own configuration


def test_a_byte_order_mark_is_no_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase_model: x\n")
    source = read_source(path)
    assert isinstance(source, Keys)
    assert source.given == {"base_model": "x"}


def test_cells_of_a_notebook_without_commands(tmp_path):
    cells = ["%%capture\n!pip install x", "a = 1", "this is no Python", ["b = 2\n", "!ls"]]
    content = {"cells": [{"cell_type": "code", "source": cell} for cell in cells]}
    content["cells"].append({"cell_type": "markdown", "source": "c = 3"})
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps(content))
    tree = read_source(path)
    assert isinstance(tree, ast.Module)
    assert ast.unparse(tree) == "a = 1\nb = 2"


def test_an_alias_counts_as_often_as_it_is_named():
    leaf: list = ["x"] * 100
    assert is_small({"a": [leaf] * 100})
    assert not is_small({"a": [[leaf] * 100] * 3})


SIGNS = [
    *sorted(AXOLOTL_SIGNS | FACTORY_SIGNS), "base_model", "model_name_or_path", "model", "peft_config", "quant_config",
    "peft_type", "task_type", "r", "target_modules", "learning_rate", "num_train_epochs", "optim", "max_length",
    "lora_alpha", "lora_target_modules", "batch_size", "evals_per_epoch", "saves_per_epoch", "warmup_steps", "bf16",
    "special_tokens", "bnb_config_kwargs", "chat_template", "val_size", "eval_strategy", "global_batch_size",
    "use_peft",
    *sorted(HARMLESS)[:5], *sorted(MEMORY)[:5], *sorted(CHANGES)[:5],
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["lora", "qlora", "sft", "LORA", "auto", "cosine", "adamw_8bit", "1e-4", "a\n#!b: c", "all"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "type", "name", "r"]), inner),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.dictionaries(st.sampled_from(SIGNS) | st.text(max_size=5), VALUES, max_size=12),
    tool=st.sampled_from([*TOOLS]),
)
def test_whatever_the_values_are_there_is_yaml_or_a_sentence(keys, tool):
    draft = TOOLS[tool](dict(keys))
    assert all(reason.strip() for reason in draft.refused)
    text = as_yaml(draft, "a\nb: c.yaml")
    assert yaml.safe_load(text) == {name: values for name, values in nested(draft).items() if values}
    assert all(problem.error.strip() for problem in problems_of(nested(draft), "FILE"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
       kind=st.sampled_from(["yaml", "json", "py", "ipynb", "sh"]))  # fmt: skip
def test_whatever_the_bytes_are_there_is_a_draft_or_a_sentence(tmp_path, data, kind):
    path = tmp_path / f"fuzz.{kind}"
    path.write_bytes(data)
    problems: Sequence[Problem] = ()
    try:
        read_foreign(path)
    except UserError as error:
        problems = error.problems
    assert all(problem.error.strip() for problem in problems)


EXPRESSIONS = st.recursive(
    st.sampled_from(["1", "2.5", "'x'", "x", "y.z", "torch.float16", "None", "True", "f()", "is_bf16_supported()"]),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "*", "//", "/", "-", "**", "if x else"]), inner).map(" ".join)
    | st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
    | inner.map("(not {})".format) | inner.map("-({})".format) | inner.map("{{'a': {}}}".format),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(EXPRESSIONS, min_size=6, max_size=6))
def test_whatever_a_script_says_there_is_yaml(tmp_path, values):
    names = ("r", "lora_alpha", "target_modules", "learning_rate", "bf16", "optim")
    path = tmp_path / "fuzz.py"
    path.write_text(
        f"x = {values[0]}\nLoraConfig({', '.join(f'{n}={v}' for n, v in zip(names, values, strict=True))})\n"
    )
    draft = read_foreign(path)
    assert yaml.safe_load(as_yaml(draft, path.name)) == {name: v for name, v in nested(draft).items() if v}
