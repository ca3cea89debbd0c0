"""New tokens: their ids, embeddings that begin at the mean, and runs that train these alone or beside an adapter."""

import dataclasses
import functools
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
import transformers
from etils import epath

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.special_tokens import content_text
from sft_jax.exports.directory import ExportError
from sft_jax.exports.model import export_model
from sft_jax.exports.source import check_format, open_source
from sft_jax.models import Decoder, Execution
from sft_jax.models.vocabulary import add_new_tokens, grown
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data, make_renderer
from sft_jax.runs.base import base_of, open_base
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.sources import load_tokenizer
from sft_jax.training import loop, programs, run
from tests import tiny
from tests.models import reference

TOKENS = ("<|tool|>", "<|end|>")
KNOWN = 259  # tokens of the tiny tokenizer
NEW = range(KNOWN, KNOWN + 2)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'user' %}{{ '<|tool|>' }}"
    "{% endif %}{{ m['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Size of the model's vocabulary, whether its embedding is the head too, and the size after resizing.
MODELS = {"tied, padded": (320, True, 320), "untied, padded": (320, False, 320), "tied, grown": (256 + 3, True, 261)}
MODELS |= {"untied, grown": (256 + 4, False, 264)}
STEPS = 4
SETTINGS = {
    "model.new_tokens": TOKENS,
    "adapter.train_new_tokens": True,
    "duration": f"{STEPS} steps",
    "optimizer.warmup": "0 steps",
    "optimizer.learning_rate": 0.05,
    "evaluation.every": "4 steps",
    "checkpoint.every": "1 steps",
    "checkpoint.keep_last": STEPS,
    "ema.decay": 0.5,
}
TIED, UNTIED = (pytest.mark.parametrize("trained", [name], indirect=True) for name in ("tied, padded", "untied, grown"))
IDS = np.asarray([[1, 7, KNOWN, 9, KNOWN + 1, 30, 40, 2]], np.int32)


def write_model(root, name):
    vocab_size, tied, _ = MODELS[name]
    tiny.write_checkpoint(root / "model", vocab_size=vocab_size, tie_word_embeddings=tied, num_hidden_layers=1)
    tiny.write_rows(root / "train.jsonl", 48)
    tiny.write_rows(root / "held_out.jsonl", 12, seed=1)
    (root / "template.jinja").write_text(TEMPLATE)


def config_of(root, **changes):
    return tiny.config(root, **{"model.chat_template": str(root / "template.jinja"), **SETTINGS, **changes})


@dataclasses.dataclass
class Trained:
    """A finished run, the model and state it ended with, and its compiled step."""

    root: epath.Path
    config: object
    model: Decoder
    state: object
    step: object


def train(root, directory, monkeypatch, **changes):
    kept, compile_step = {}, loop.compile_train_step

    def compiled(*arguments):
        kept["step"] = compile_step(*arguments)
        return kept["step"]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compile_train_step", compiled)
        programs.forget()  # runs of other tests may have compiled it for batches of other shapes
        config = config_of(root, **changes)
        keep = lambda model, state: kept.update(model=model, state=state) or {}
        run(config, directory, evaluators={"keep": keep})
    return Trained(root, config, kept["model"], kept["state"], kept["step"])


@pytest.fixture(scope="module")
def train_once(tmp_path_factory):
    """Name of the model -> a run of 4 steps over eight devices that trains only the new tokens."""

    @functools.cache
    def of(name):
        root = tmp_path_factory.mktemp("new_tokens")
        write_model(root, name)
        return train(root, root / "run", pytest.MonkeyPatch())

    return of


@pytest.fixture(params=["tied, padded", "untied, grown"])
def trained(request, train_once):
    return train_once(request.param)


def silent(title, total):
    return lambda done, total: None


def params_of(base):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return jax.device_get(base.params("unrolled", "float32", mesh))


@functools.cache
def loaded(source, weights="trained"):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        found = load_for_inference(str(source), mesh, "float32", weights)
        return found, np.asarray(jax.jit(found.model.apply)(found.variables, IDS))


def losses_of(directory, name="train/loss"):
    return [line[name] for line in read_metrics(directory / "metrics.jsonl") if name in line]


def new_token_arrays(trained):
    return jax.device_get(trained.state.trained["adapters"]["new_tokens"])


@pytest.mark.parametrize(
    ("vocab_size", "ids", "expected"),
    [
        (49152, range(49152, 49154), 49280),  # a multiple of 128 as before
        (151936, range(151669, 151671), 151936),  # Qwen: there are ids that no token uses
        (320, range(259, 321), 384),  # some of them are there, 320 = 5 x 64
        (259, range(259, 261), 261),
        (32000, range(32001, 32002), 32128),  # the tokenizer is ahead of the model
    ],
)
def test_the_size_grows_where_it_must(vocab_size, ids, expected):
    config, _ = reference.random_params({"vocab_size": vocab_size, "hidden_size": 8})
    assert grown(config, ids).vocab_size == expected


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in MODELS), ("untied, grown", "bfloat16")])
def test_embeddings_begin_at_the_mean_and_others_keep_their_bits(tmp_path, name, dtype):
    """The mean of the 259 tokens there were; the unused id 262 of a padded vocabulary stays."""
    write_model(tmp_path, name)
    size_before, tied, size_after = MODELS[name]
    mesh = inference_mesh(jax.devices())
    source, base = open_base(str(tmp_path / "model")), base_of(options_of(config_of(tmp_path)).model)
    assert (base.decoder.vocab_size, base.hf_config["vocab_size"], base.new_token_ids) == (size_after, size_after, NEW)
    assert base.fingerprint == source.fingerprint
    with jax.set_mesh(mesh):
        before, after = (reference.flat(b.params("scan", dtype, mesh)) for b in (source, base))
    assert after.keys() == before.keys()
    for path, leaf in after.items():
        was = np.asarray(before[path])
        assert leaf.dtype == was.dtype
        if path not in ("embedding", "head"):
            np.testing.assert_array_equal(leaf, was, err_msg=path)
            continue
        now, was = (np.asarray(x) if path == "embedding" else np.asarray(x).T for x in (leaf, was))
        assert now.shape == (size_after, 32)
        kept = [number for number in range(size_before) if number not in NEW]
        np.testing.assert_array_equal(now[kept], was[kept], err_msg=path)
        mean = was[:KNOWN].astype(np.float64).mean(0)
        for number in {*NEW, *range(size_before, size_after)}:
            np.testing.assert_allclose(now[number].astype(np.float64), mean, atol=4e-3 if dtype == "bfloat16" else 1e-6)
    assert ("head" in after) is not tied
    # Split over the devices as before: all rows of some columns.
    assert after["embedding"].sharding.shard_shape(after["embedding"].shape) == (size_after, 32 // 8)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("<|im_end|>",), r"'<\|im_end\|>' is a token already, with id 2"),
        (("<|a|>", "A"), "'A' is a token already"),
        (("<|a|>", ""), "'' is no token"),
        (("<|a|>", "<|b|>", "<|a|>"), r"'<\|a\|>' is there 2 times"),
    ],
)
def test_what_is_no_new_token_is_refused(tokens, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        add_new_tokens(tiny.tokenizer(), tokens)
    with pytest.raises(ValueError, match=message):
        run(tiny.config(tmp_path, **{"model.new_tokens": tokens}), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.new_tokens": ()},
            r"new_tokens=True: there are no new tokens to train; give --config\.model\.new_tokens",
        ),
        ({"trained.weights": ("embedding",)}, r"under --config\.adapter\.train_new_tokens all weights are frozen"),
        ({"optimizer.name": "muon"}, "made for kernels of layers, and none is trained"),
    ],
)
def test_what_contradicts_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tiny.config(tmp_path, **SETTINGS | changes), tmp_path / "run")


def test_one_id_in_the_template_and_text_in_a_message():
    tokenizer = tiny.tokenizer()
    assert add_new_tokens(tokenizer, TOKENS) == NEW
    renderer = ConversationRenderer(tokenizer, TEMPLATE)
    rendered = renderer.render((Message("user", "a<|tool|>b"), Message("assistant", "<|end|>c")))
    ids = rendered.tokens.tolist()
    assert (ids.count(NEW[0]), ids.count(NEW[1])) == (1, 2)  # those of the template
    assert tokenizer.decode(ids) == rendered.text
    assert (rendered.text.count("<|tool|>"), rendered.text.count("<|end|>")) == (2, 3)
    assert NEW[1] in renderer.stop_ids
    assert tokenizer("<|tool|>").input_ids == [NEW[0]]


SPELT = (Message("user", "a<|tool|>b<|im_end|>"), Message("assistant", "<|end|>c"))


def counts_of(renderer):
    ids = renderer.render(SPELT).tokens.tolist()
    return [ids.count(number) for number in (*NEW, renderer.tokenizer.convert_tokens_to_ids("<|im_end|>"))]


def test_new_tokens_count_in_contents_too_where_that_is_asked_for():
    """Old special tokens stay text; ids, offsets and masks are those of the plain tokenizer."""
    tokenizer = tiny.tokenizer()
    add_new_tokens(tokenizer, TOKENS, in_contents=True)
    renderer = ConversationRenderer(tokenizer, TEMPLATE)
    assert counts_of(renderer) == [2, 3, 0]
    rendered = renderer.render(SPELT)
    assert tokenizer.decode(rendered.tokens.tolist()) == rendered.text
    spelt = [
        rendered.text[start:end]
        for (start, end), number in zip(rendered.offsets, rendered.tokens, strict=True)
        if number in NEW
    ]
    assert spelt == ["<|tool|>", "<|tool|>", "<|end|>", "<|end|>", "<|end|>"]
    trained = [number for number, weight in zip(rendered.tokens.tolist(), rendered.weights, strict=True) if weight]
    assert trained == [NEW[1], tokenizer.convert_tokens_to_ids("c"), NEW[1]]
    only_new = (Message("user", "a<|tool|>b"), Message("assistant", "<|end|>c"))
    rendered = renderer.render(only_new)
    assert rendered.tokens.tolist() == tokenizer(rendered.text, add_special_tokens=False).input_ids
    assert content_text(tokenizer, rendered.tokens) == rendered.text.replace("<|im_start|>", "")


def test_the_tokenizer_remembers_which_tokens_count_in_contents(tmp_path):
    tokenizer = tiny.tokenizer()
    add_new_tokens(tokenizer, TOKENS, in_contents=True)
    tokenizer.save_pretrained(tmp_path)
    others = (load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))
    for other in (*others, pickle.loads(pickle.dumps(ConversationRenderer(tokenizer, TEMPLATE))).tokenizer):
        assert counts_of(ConversationRenderer(other, TEMPLATE)) == [2, 3, 0]
        other.init_kwargs["special_tokens_in_contents"] = ["<|nowhere|>"]
        with pytest.raises(ValueError, match=r"'special_tokens_in_contents' is \['<\|nowhere\|>'\]; expected a list"):
            ConversationRenderer(other, TEMPLATE)


def test_a_name_may_spell_a_token_that_counts_in_contents():
    """The template writes it as its own text, where it counts as well."""
    tokenizer = tiny.tokenizer()
    add_new_tokens(tokenizer, TOKENS, in_contents=True)
    name = "(m.tool_calls[0].function.name if m.tool_calls else '')"
    template = TEMPLATE.replace("{{ m['content']", f"{{{{ m['content'] + {name}")
    call = Message("assistant", "c", tool_calls=(ToolCall("f<|tool|>", {}),))
    rendered = ConversationRenderer(tokenizer, template).render((SPELT[0], call))
    assert rendered.tokens.tolist().count(NEW[0]) == 3


PAIRS = (("call the tool", "<|tool|>ring"), ("call the other", "<|tool|>rang"), ("do not call", "ok"))


def config_with_calls(root, **changes):
    write_model(root, "tied, padded")
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in PAIRS]
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    return config_of(root, **{"model.new_tokens": ("<|tool|>",), "model.chat_template": "", **changes})


@pytest.mark.parametrize("in_contents", [True, False])
def test_what_is_trained_is_what_is_asked_and_exported(tmp_path, in_contents):
    """The data, prompts of the finished run, the next run and the export encode alike; the findings count the rows."""
    changes = {"model.new_tokens_in_contents": in_contents, "adapter.train_new_tokens": False, "duration": "1 steps"}
    changes |= {"data.held_out": "", "checkpoint.best_metric": "", "ema.decay": 0.0}
    config = config_with_calls(tmp_path, **changes)
    rows = load_data(options_of(config)).examples
    labels = [rows.example(row)[0][rows.example(row)[1] > 0].tolist().count(NEW[0]) for row in range(3)]
    assert labels == ([1, 1, 0] if in_contents else [0, 0, 0])
    finding = next(
        finding for finding in load_data(options_of(config)).report.findings if finding.check == "new_tokens"
    )
    counted = {"examples": 2 * in_contents, "trained": 2 * in_contents, "in_contents": 2}
    assert finding.numbers == {"token": "<|tool|>", "id": NEW[0]} | counted
    run(config, tmp_path / "run")
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        export_model(open_source(str(tmp_path / "run")), epath.Path(tmp_path / "out"), mesh, "float32", silent)
    follow = config_with_calls(tmp_path, **changes, **{"model.source": str(tmp_path / "run"), "model.new_tokens": ()})
    found = [load_for_inference(str(tmp_path / name), mesh, "float32").renderer for name in ("run", "out")]
    question, answer = (Message("user", "<|tool|>?"), Message("assistant", "<|tool|>ring"))
    for renderer in (*found, make_renderer(options_of(follow).model, options_of(follow).data)):
        assert renderer.render_prompt((question,)).tolist().count(NEW[0]) == in_contents
        assert renderer.render((question, answer)).tokens.tolist().count(NEW[0]) == 2 * in_contents


def test_only_the_new_tokens_are_trained(trained):
    """Nothing else has moments; every old number keeps its bits; one program serves all steps."""
    base, after = params_of(base_of(options_of(trained.config).model)), params_of(open_base(str(trained.root / "run")))
    width, tied = 32, trained.model.config.tie_embeddings
    sizes = {path: leaf.shape for path, leaf in reference.flat(trained.state.trained).items()}
    assert sizes == {"adapters/new_tokens/embedding": (2, width)} | (
        {} if tied else {"adapters/new_tokens/head": (width, 2)}
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.state.trained))
    moments = trained.state.opt_state[0]
    assert sum(leaf.size for leaf in jax.tree.leaves((moments.mu, moments.nu))) == 2 * count
    own = new_token_arrays(trained)
    for path, leaf in reference.flat(after).items():
        was = reference.flat(base)[path]
        if path not in ("embedding", "head"):
            np.testing.assert_array_equal(leaf, was, err_msg=path)
            continue
        now, was = (leaf, was) if path == "embedding" else (leaf.T, was.T)
        np.testing.assert_array_equal(np.delete(now, list(NEW), 0), np.delete(was, list(NEW), 0), err_msg=path)
        assert np.abs(now[list(NEW)] - was[list(NEW)]).max(axis=1).min() > 0
        np.testing.assert_array_equal(now[list(NEW)], own[path] if path == "embedding" else own[path].T)
    assert trained.step._cache_size() == 1
    losses = losses_of(trained.root / "run", "held_out/nll")
    assert losses[-1] < losses[0]


def test_beside_the_weights_is_the_same_function_as_merged(trained):
    found, logits = loaded(trained.root / "run")
    assert found.model.adapter.first_new_token == NEW[0]
    merged = params_of(open_base(str(trained.root / "run")))
    plain = Decoder(found.model.config, Execution(layer_layout="unrolled"))
    np.testing.assert_allclose(logits, jax.jit(plain.apply)({"params": merged}, IDS), atol=1e-4)
    before, _ = loaded(trained.root / "run", "ema")
    ours, average = (reference.flat(x.variables["adapters"])["new_tokens/embedding"] for x in (found, before))
    assert np.abs(np.asarray(ours) - np.asarray(average)).max() > 1e-3
    assert found.renderer.tokenizer.convert_tokens_to_ids(TOKENS[1]) == NEW[1]


@TIED
def test_a_run_goes_on_bit_for_bit(trained, tmp_path):
    shutil.copytree(trained.root / "run", tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    run(trained.config, tmp_path / "run")
    for name in ("train/loss", "held_out/nll"):
        assert losses_of(tmp_path / "run", name) == losses_of(trained.root / "run", name)


@TIED
def test_the_next_run_starts_where_this_one_ended(trained, tmp_path):
    """Embeddings merged, tokens and template taken along; more tokens can follow."""
    source = f"{trained.root / 'run'}:best"  # and the latest
    changes = {"duration": "1 steps", "optimizer.learning_rate": 0.0, "ema.decay": 0.0, "model.chat_template": ""}
    changes |= {"model.source": source, "model.new_tokens": ("<|more|>",)}
    changes |= {"data.held_out": "", "checkpoint.best_metric": ""}
    with pytest.raises(ValueError, match=r"'<\|end\|>' is a token already, with id 260"):
        base_of(options_of(config_of(trained.root, **changes | {"model.new_tokens": ("<|end|>",)})).model)
    run(config_of(trained.root, **changes), tmp_path / "run")
    found, after = loaded(tmp_path / "run")
    _, before = loaded(trained.root / "run")
    np.testing.assert_allclose(after[..., : NEW.stop], before[..., : NEW.stop], atol=1e-5)
    assert found.renderer.tokenizer.convert_tokens_to_ids([*TOKENS, "<|more|>"]) == [*NEW, NEW.stop]
    assert found.renderer.chat_template == TEMPLATE


@UNTIED
def test_the_mesh_does_not_matter(trained, tmp_path, monkeypatch):
    """Vocabulary and width over two devices each, scanned layers, micro-batches: the same losses and embeddings."""
    changes = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "execution.layer_layout": "scan"}
    changes |= {"batch.micro_batches": 2, "ema.decay": 0.0, "data.held_out": "", "checkpoint.best_metric": ""}
    other = train(trained.root, tmp_path / "run", monkeypatch, **changes)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(trained.root / "run"), rtol=1e-5)
    for name, array in new_token_arrays(other).items():
        np.testing.assert_allclose(array, new_token_arrays(trained)[name], atol=1e-4)


def exported_logits(source, out, **options):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        export_model(open_source(str(source), **options), epath.Path(out), mesh, "float32", lambda *_: lambda *_: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="float32")
    return model, reference.torch_logits(model, IDS)


@pytest.mark.parametrize(
    ("trained", "weights"), [("tied, padded", "trained"), ("untied, grown", "ema")], indirect=["trained"]
)
def test_torch_reads_the_export(trained, tmp_path, weights):
    model, theirs = exported_logits(trained.root / "run", tmp_path / "out", weights=weights)
    _, ours = loaded(trained.root / "run", weights)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert model.config.vocab_size == trained.model.config.vocab_size == ours.shape[-1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<|tool|>a<|end|>").input_ids[::2] == list(NEW)
    assert tokenizer.chat_template == TEMPLATE


@TIED
def test_formats_that_fit(trained):
    source = open_source(str(trained.root / "run"))
    check_format(source, "merged")
    for kind, message in (("hf", r"\(embeddings of new tokens\): give"), ("peft", "which --format=peft does not hold")):
        with pytest.raises(ExportError, match=message):
            check_format(source, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora on a quantized base", "all weights"])
def test_other_ways_to_train_them(tmp_path, monkeypatch, kind):
    """Beside LoRA, on embedding and head too; and with everything. Exported, and loaded with torch."""
    write_model(tmp_path, "untied, grown")
    changes = {"duration": "2 steps", "ema.decay": 0.0, "data.held_out": "", "checkpoint.best_metric": ""}
    if kind == "all weights":
        changes |= {"adapter.train_new_tokens": False, "optimizer.learning_rate": 1e-3}
    else:
        changes |= {"adapter.method": "lora", "adapter.targets": ("attention/.*", "embedding", "head")}
        changes |= {"precision.quantized": "int8"}
    done = train(tmp_path, tmp_path / "run", monkeypatch, **changes)
    trained = reference.flat(done.state.trained)
    head = "params/head" if kind == "all weights" else "adapters/new_tokens/head"
    assert trained[head].shape == ((32, 264) if kind == "all weights" else (32, 2))
    _, ours = loaded(tmp_path / "run")
    _, theirs = exported_logits(tmp_path / "run", tmp_path / "out")
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
