from __future__ import annotations

import ast
import textwrap

import pytest
from lora_train.trainer.importer.script import Script, script

UNSLOTH = """
from unsloth import FastLanguageModel, is_bfloat16_supported
max_seq_length = 2048
dtype = None
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name = "unsloth/some-bnb-4bit", max_seq_length = max_seq_length, dtype = dtype, load_in_4bit = True,
)
model = FastLanguageModel.get_peft_model(
    model, r = 16, target_modules = ["q_proj", "v_proj"], lora_alpha = 16, lora_dropout = 0, bias = "none",
    use_gradient_checkpointing = "unsloth", random_state = 3407, use_rslora = False, loftq_config = None,
)
dataset = load_dataset("yahma/alpaca-cleaned", split = "train")
trainer = SFTTrainer(
    model = model, train_dataset = dataset, dataset_text_field = "text", max_seq_length = max_seq_length,
    args = TrainingArguments(
        per_device_train_batch_size = 2, gradient_accumulation_steps = 4, warmup_steps = 5, max_steps = 60,
        learning_rate = 2e-4, fp16 = not is_bfloat16_supported(), bf16 = is_bfloat16_supported(), logging_steps = 1,
        optim = "adamw_8bit", weight_decay = 0.01, lr_scheduler_type = "linear", seed = 3407, output_dir = "outputs",
    ),
)
model, tokenizer = FastLanguageModel.from_pretrained(model_name = "lora_model", load_in_4bit = False)
"""
KOALPACA = """
model_id = "EleutherAI/polyglot-ko-12.8b"
bnb_config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
model = AutoModelForCausalLM.from_pretrained(model_id, quantization_config=bnb_config, device_map={"": 0})
tokenizer = AutoTokenizer.from_pretrained("other/tokenizer")
data = load_dataset("beomi/KoAlpaca-v1.1a")
config = LoraConfig(r=8, lora_alpha=32, target_modules=["query_key_value"], lora_dropout=0.05, bias="none",
                    task_type="CAUSAL_LM")
trainer = transformers.Trainer(
    model=model, train_dataset=data["train"],
    args=transformers.TrainingArguments(per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=50,
        learning_rate=1e-4, fp16=True, logging_steps=10, output_dir="outputs", optim="paged_adamw_8bit"),
    data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
"""


def drafted(text: str):
    draft = script(ast.parse(textwrap.dedent(text)))
    assert draft is not None
    return draft


def test_an_unsloth_notebook():
    draft = drafted(UNSLOTH)
    expected = {
        "model.name_or_path": "unsloth/some-bnb-4bit",
        "quantization.load_in_4bit": True,
        "lora.r": 16,
        "lora.lora_alpha": 16.0,
        "lora.target_modules": ["q_proj", "v_proj"],
        "data.train": "yahma/alpaca-cleaned",
        "data.cutoff_len": 2048,
        "data.train_on_inputs": True,
        "training.max_steps": 60,
        "training.gradient_accumulation_steps": 4,
        "training.learning_rate": 2e-4,
        "training.optim": "adamw_8bit",
        "training.bf16": True,
        "training.gradient_checkpointing": True,
        "training.seed": 3407,
    }
    assert draft.tool == "Unsloth"
    assert {key: draft.values.get(key) for key in expected} == expected
    assert draft.refused == []
    assert [left.key for left in draft.left if left.matters] == []


def test_answers_only_where_the_script_says_so():
    draft = drafted(UNSLOTH + 'trainer = train_on_responses_only(trainer, response_part="### Response:")\n')
    assert draft.values["data.train_on_inputs"] is False


def test_koalpacas_notebook():
    draft = drafted(KOALPACA)
    expected = {
        "model.name_or_path": "EleutherAI/polyglot-ko-12.8b",
        "quantization.load_in_4bit": True,
        "quantization.bnb_4bit_use_double_quant": True,
        "quantization.bnb_4bit_compute_dtype": "bfloat16",
        "lora.r": 8,
        "lora.lora_alpha": 32.0,
        "lora.target_modules": ["query_key_value"],
        "data.train": "beomi/KoAlpaca-v1.1a",
        "data.train_on_inputs": True,
        "training.fp16": True,
        "training.optim": "paged_adamw_8bit",
        "training.max_steps": 50,
    }
    assert {key: draft.values.get(key) for key in expected} == expected


def test_defaults_of_parameters_options_and_fields_stand_for_names():
    text = """
    parser.add_argument("--lora_r", type=int, default=4)
    @dataclass
    class Args:
        alpha: int = field(default=12)
    def train(base_model: str = "o/m", batch_size: int = 128, micro_batch_size: int = 4):
        model = LlamaForCausalLM.from_pretrained(base_model)
        model = get_peft_model(model, LoraConfig(r=args.lora_r, lora_alpha=args.alpha, target_modules=["q_proj"]))
        TrainingArguments("out", gradient_accumulation_steps=batch_size // micro_batch_size)
    """
    found = drafted(text).values
    assert found["training.output_dir"] == "out"
    assert (found["lora.r"], found["lora.lora_alpha"]) == (4, 12.0)
    assert (found["model.name_or_path"], found["training.gradient_accumulation_steps"]) == ("o/m", 32)


def test_what_only_a_run_would_tell_is_named():
    draft = drafted("LoraConfig(r=rank(), target_modules='all-linear')\nTrainingArguments(learning_rate=lr * 2)\n")
    assert {left.key: left.value for left in draft.left if left.weight == "unknown"} == {
        "r": "rank()", "learning_rate": "lr * 2",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["2 ** 10 ** 10", "'a' * 10 ** 9", "1 / 0", "9e15 * 9e15", "x", "[1, f()]", "a.b.c"])
def test_nothing_large_is_computed_and_nothing_is_called(text):
    read = Script(ast.parse(f"x = x\nLoraConfig(r={text})"))
    assert read.given == {}
    assert list(read.unknown) == ["r"]


def test_nothing_is_run(tmp_path):
    path = tmp_path / "ran"
    drafted(f"open({str(path)!r}, 'w')\nLoraConfig(r=__import__('os').mkdir({str(path)!r}), target_modules=['a'])\n")
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("LoraConfig(target_modules=['a'])\nDPOTrainer()", "DPOTrainer"),
        ("TrainingArguments()", "no LoRA adapter"),
        ("FastVisionModel.get_peft_model(model, target_modules=['a'])", "pictures"),
    ],
)
def test_what_it_cannot_do_it_names(text, word):
    assert word in "; ".join(drafted(text).refused)


def test_a_script_that_trains_nothing_is_none():
    assert script(ast.parse("print('hello')")) is None


def test_sft_config_has_defaults_of_its_own_and_unsloths_has_not():
    text = "LoraConfig(target_modules=['a'])\nSFTConfig(max_length=128)\n"
    assert drafted(text).values["training.learning_rate"] == 2e-5
    assert "training.learning_rate" not in drafted(text + "FastModel.from_pretrained('m')\n").values
    assert "training.learning_rate" not in drafted(text.replace("SFTConfig", "TrainingArguments")).values


IMDB = """
model = AutoModelForSequenceClassification.from_pretrained("google-bert/bert-base-uncased", num_labels={n}{more})
dataset = load_dataset("imdb")
model = get_peft_model(model, LoraConfig(task_type=TaskType.{task}, r=8, lora_alpha=16, target_modules=["query"]))
trainer = Trainer(model=model, args=TrainingArguments("out", per_device_train_batch_size=8, logging_steps=200))
"""


@pytest.mark.parametrize(
    ("task", "n", "more", "ours", "kind"),
    [
        ("SEQ_CLS", 2, "", "seq_cls", None),
        ("SEQ_CLS", 1, "", "seq_cls", "regression"),
        (
            "SEQ_CLS", 6, ', problem_type="multi_label_classification", id2label={0: "a"}',
            "seq_cls", "multi_label_classification",
        ),
    ],
)  # fmt: skip
def test_a_script_that_trains_a_classifier(task, n, more, ours, kind):
    draft = script(ast.parse(IMDB.format(n=n, more=more, task=task)))
    assert draft is not None
    assert draft.refused == []
    assert draft.values["model.name_or_path"] == "google-bert/bert-base-uncased"
    assert (draft.values["model.task"], draft.values.get("model.problem_type")) == (ours, kind)
    assert draft.values["data.train"] == "imdb"
    assert [left.key for left in draft.left if left.matters] == []


def test_a_class_says_the_task_where_the_adapter_does_not():
    text = IMDB.replace("task_type=TaskType.{task}, ", "").replace("Sequence", "Token").format(n=9, more="")
    draft = script(ast.parse(text))
    assert draft is not None
    assert draft.values["model.task"] == "token_cls"
