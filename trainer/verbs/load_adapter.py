"""A trained adapter on its base model, for the verbs that compute with it.

Before the base model is loaded, the adapter is put on an empty one: made from the base's config alone, its tensors have
shapes and no values, a second's work whatever its size. There every weight of the adapter's file must find its place,
and every place its weight.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ...instrument.read.damaged import parse_own_json
from ..config.schema import Config
from ..config.settings import with_settings
from ..data.labels.labels import SEVERAL, SINGLE, VALUE
from ..errors import UserError, first_line, problem
from ..model.load import LANGUAGE_MODEL, MODEL_CLASSES, Head, load_base, load_tokenizer, read_model_config, tables
from ..patterns import require_quick
from .adapter_folder import SETTINGS, WEIGHTS, Adapter
from .adapter_kinds import HEADS, require_known

MAX_SHOWN = 300  # characters: peft lists every key that is missing
# the last layer of a classifier's head, as transformers' models call it
_LAST_LAYER = re.compile(r"(.*\.)?(score|classifier)(\.out_proj)?\.weight")
_SIZE = re.compile(r"size mismatch for (\S+):.*torch\.Size\((\[.*?\])\) from checkpoint.*torch\.Size\((\[.*?\])\)")
# where peft keeps an embedding table or an output layer as a whole
_TABLE = re.compile(
    r"base_model\.model\.(.+?)(?:\.(?:modules_to_save|original_module|base_layer|token_adapter\.base_layer))?\.weight"
)
_PREFIX, _ADAPTER = "base_model.model.", re.compile(r"\.default(?=\.|$)")


def load_trained(adapter: Adapter, settings: dict, device: torch.device, merging: bool = False) -> PeftModel:
    """Base and adapter in evaluation mode on the device.

    Args:
        adapter: what to load.
        settings: {"section.key": value}, in place of those the run was made with.
        merging: whether the two are to become one.

    Raises:
        UserError: base or adapter cannot be loaded, or the two do not belong together.
    """
    config, head = with_settings(base_config(adapter), settings), head_of(adapter)
    empty = empty_base(config, head)
    if empty is not None and adapter.config is None and not getattr(empty, "_supports_sdpa", True):
        config = with_settings(config, {"model.attn_implementation": "eager"})
    # AdaLoRA's ranks are found by the values of a mask: put_on looks when the base is there
    if empty is not None and adapter.settings["peft_type"] == "LORA":
        grown = grow_to(empty, adapter)
        # peft moves the rows of trained tokens to the table it has just loaded, which an empty model cannot
        if not (grown and adapter.settings.get("trainable_token_indices")):
            tried = put_on(empty, adapter, empty=True)
            if merging and adapter.settings.get("lora_bias"):
                require_bias(tried, adapter)
    base = load_base(config, device, head)
    grow_to(base, adapter)
    return put_on(base, adapter)


def grow_to(base: PreTrainedModel, adapter: Adapter) -> bool:
    """Gives the base as many tokens as the adapter was trained with: peft saves tables that were resized whole.

    Returns:
        whether it had another number.

    Raises:
        UserError: the file holds one of two tables that are not tied, so that new rows of the other are not known.
    """
    own = {name: len(table.weight) for name, table in tables(base).items()}
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        saved = [(found[1], name) for name in file.keys() if (found := _TABLE.fullmatch(name))]  # noqa: SIM118
        rows = {table: file.get_slice(name).get_shape()[0] for table, name in saved if table in own}
    sizes = set(rows.values())
    if len(sizes) != 1 or sizes == {min(own.values())}:
        return False  # as large as the base's, or of two sizes, which is said where they find no place
    if not base.config.get_text_config().tie_word_embeddings and (missing := sorted(own.keys() - rows.keys())):
        values = {"n": sizes.pop(), "base": adapter.base, "before": own[missing[0]], "name": missing[0]}
        raise UserError(problem("adapter.half_resized", file=adapter.folder / WEIGHTS, **values))
    base.resize_token_embeddings(sizes.pop(), mean_resizing=False)
    return True


def base_config(adapter: Adapter) -> Config:
    """The run's configuration, or the least that names the base model of an adapter made elsewhere."""
    config = adapter.config
    if config is None:
        model = {"name_or_path": adapter.base, "revision": adapter.revision}
        config = Config.model_validate({"model": model, "data": {"train": "unknown", "format": "text"}})
    return with_settings(config, {"model.trust_remote_code": adapter.trust_remote_code})


def head_of(adapter: Adapter) -> Head:
    """What the adapter's base gives out: of a classifier as many labels as the adapter's head has rows."""
    task = adapter.settings.get("task_type")
    if task not in HEADS:
        return LANGUAGE_MODEL
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        found = [name for name in file.keys() if _LAST_LAYER.fullmatch(name)]  # noqa: SIM118  # it is no dict
        last = max(found, key=len, default=None)  # classifier.out_proj stands behind classifier.dense
        n_labels = None if last is None else file.get_slice(last).get_shape()[0]
    names, kind = labels_of(adapter)
    return Head(task, n_labels, names if len(names) == n_labels else (), kind)


def labels_of(adapter: Adapter) -> tuple[tuple[str, ...], str | None]:
    """A classifier's labels and problem type: as the run has them, else the config.json beside the weights."""
    if adapter.config is not None and adapter.config.is_classifier:
        kind = adapter.config.model.problem_type
        return tuple(adapter.config.data.labels or ()), None if kind == "auto" else kind
    file = adapter.folder / CONFIG_NAME  # written beside it for the names of the labels
    try:
        found = parse_own_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
        names = {int(number): str(name) for number, name in (found.get("id2label") or {}).items()}
        kind = found.get("problem_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(problem("adapter.unreadable", file=file, what=first_line(error))) from None
    ordered = tuple(names[number] for number in range(len(names))) if sorted(names) == [*range(len(names))] else ()
    return ordered, kind if kind in (SINGLE, SEVERAL, VALUE) else None


def empty_base(config: Config, head: Head) -> PreTrainedModel | None:
    """The base model without values; None where its code asks for them while it is made."""
    model_config = read_model_config(config, head)
    if config.model.resize_embeddings:
        text = model_config.get_text_config()
        text.vocab_size = max(text.vocab_size, len(load_tokenizer(config)))
    try:
        with torch.device("meta"):
            return MODEL_CLASSES[head.task].from_config(model_config, trust_remote_code=config.model.trust_remote_code)
    except (NotImplementedError, RuntimeError, ValueError, ImportError):
        return None


def require_bias(model: PeftModel, adapter: Adapter) -> None:
    """Refuses to merge a trained bias into a layer that has none.

    Raises:
        UserError: names such a layer.
    """
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and getattr(module.get_base_layer(), "bias", None) is None:
            file = adapter.folder / SETTINGS
            raise UserError(problem("merge.lora_bias", file=file, module=name, base=adapter.base))


def put_on(base: PreTrainedModel, adapter: Adapter, empty: bool = False) -> PeftModel:
    """The adapter on its base.

    Args:
        base: the model without adapter.
        adapter: what is put on it.
        empty: the base has no values, and the adapter's initialisation needs none.

    Raises:
        UserError: it is of another model, torn, or holds more or fewer weights than its settings ask for.
    """
    names = [name for name, _ in base.named_modules()]
    require_quick("adapter.endless_pattern", adapter.settings, names, file=adapter.folder / SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is checked here
        try:
            config = PeftConfig.from_pretrained(str(adapter.folder))
            require_known(adapter, type(config).__dataclass_fields__)
            config.inference_mode = True
            if empty:
                config.init_lora_weights = True  # pyright: ignore[reportAttributeAccessIssue]
            model = get_peft_model(base, config, low_cpu_mem_usage=empty)
            mapping = getattr(base, "_checkpoint_conversion_mapping", None) or {}
            device = "cpu" if empty else str(base.device)
            result = model.load_adapter(
                str(adapter.folder), "default", torch_device=device, low_cpu_mem_usage=empty, key_mapping=mapping
            )
        except UserError:
            raise
        except Exception as error:  # what peft raises depends on which value of the files is wrong
            raise UserError(_misfit(adapter, error)) from error
    unexpected = [name for name in result.unexpected_keys if not _is_copy(base, adapter, name)]
    for sentence, names in (("adapter.no_place", unexpected), ("adapter.lacks", result.missing_keys)):
        if names:
            raise UserError(_named(sentence, adapter, names))
    assert isinstance(model, PeftModel)
    return model.eval()


def _is_copy(base: PreTrainedModel, adapter: Adapter, name: str) -> bool:
    """Whether a weight stands in the file twice: peft saves resized tables under two names, and tied ones as well."""
    own = _ADAPTER.sub("", name)
    twins = {own.replace(".modules_to_save.", ".")}
    if base.config.get_text_config().tie_word_embeddings:
        twins |= {own.replace(f".{head}.", f".{table}.") for head in tables(base) for table in tables(base)}
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        held = set(file.keys())
        return own in held and any(
            torch.equal(file.get_tensor(own), file.get_tensor(twin)) for twin in (twins & held) - {own}
        )


def _misfit(adapter: Adapter, error: Exception):
    """What peft raised, in words."""
    if isinstance(error, KeyError) and error.args and str(error.args[0]).startswith(_PREFIX):
        return _named("adapter.lacks", adapter, [str(error.args[0])])
    if found := _SIZE.search(str(error)):
        name, own, wanted = found.groups()
        return _named("adapter.shape", adapter, [name], found=own, wanted=wanted)
    what = first_line(error, typed=not isinstance(error, (ValueError, RuntimeError)))[:MAX_SHOWN]
    return problem("adapter.other_model", folder=adapter.folder, base=adapter.base, what=what)


def _named(sentence: str, adapter: Adapter, names: Iterable[str], **values):
    """A problem that names the first of some weights, as the file calls it."""
    names = sorted(_ADAPTER.sub("", name) for name in names)
    own = {"file": adapter.folder / WEIGHTS, "base": adapter.base, "settings": SETTINGS}
    return problem(sentence, **own, name=names[0], **values, **({} if values else {"n": len(names)}))
