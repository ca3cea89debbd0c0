"""Adapter methods equal peft's on the same weights: logits, gradients, merged weights, counts, and where they begin."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from sft_jax.models import AdapterSpec, Decoder, Execution, load_pretrained
from sft_jax.models.adapters import METHODS, dora, get_method, is_trained
from sft_jax.models.layouts import to_layout
from sft_jax.models.variables import merge_adapters, variables
from sft_jax.options import AdapterOptions
from sft_jax.runs.adapting import adapter_ranks, init_adapters, weight_names
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run as train
from tests import tiny
from tests.models import reference

NAMES = {
    "q_proj": "attention/query",
    "k_proj": "attention/key",
    "v_proj": "attention/value",
    "o_proj": "attention/out",
    "gate_proj": "ffn/gate",
    "up_proj": "ffn/up",
    "down_proj": "ffn/down",
}
PROJECTIONS = tuple(NAMES)
LINEAR, OUTSIDE = "attention/.*", ("embedding", "head")
ALL = ("(attention|ffn)/.*",)


@dataclasses.dataclass(frozen=True)
class Case:
    """A setting here and the same in peft."""

    config: dict
    peft: dict
    tied: bool = False


CASES = {
    "lora": Case({}, {}),
    "rslora": Case({"scaling": "sqrt_rank"}, {"use_rslora": True}),
    "dora": Case({"method": "dora"}, {"use_dora": True}),
    "pissa": Case({"method": "pissa"}, {"init_lora_weights": "pissa"}),
    "ranks by pattern": Case(
        {"ranks": ("attention/(query|key)=2", "ffn/.*=5")},
        {"rank_pattern": {"q_proj": 2, "k_proj": 2, "gate_proj": 5, "up_proj": 5, "down_proj": 5}},
    ),
    "embedding and head": Case(
        {"targets": (*ALL, *OUTSIDE)}, {"target_modules": [*PROJECTIONS, "embed_tokens", "lm_head"]}
    ),
    "dora on embedding and head": Case(
        {"targets": (*ALL, *OUTSIDE), "method": "dora"},
        {"target_modules": [*PROJECTIONS, "embed_tokens", "lm_head"], "use_dora": True},
    ),
    "tied embedding": Case(
        {"targets": (*ALL, "embedding")},
        {"target_modules": [*PROJECTIONS, "embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
}


def adapter_config(case: Case) -> AdapterOptions:
    return tiny.adapter(**{"rank": 3, "alpha": 6.0, "targets": ALL} | case.config)


def hyper(case: Case) -> dict:
    power = 0.5 if adapter_config(case).scaling == "sqrt_rank" else 1.0
    values = {"adapter_alpha": 6.0, "adapter_rank_power": power, "adapter_dropout": 0.0}
    return {name: jnp.float32(value) for name, value in values.items()}


def fresh(case: Case, params: dict, layout: str = "unrolled") -> dict:
    return init_adapters(to_layout(params, "scan"), adapter_config(case), hyper(case), 0, layout)


def our_path(name: str) -> str:
    """layers_0/attention/query from base_model.model.model.layers.0.self_attn.q_proj…"""
    parts = name.split(".")
    if "embed_tokens" in parts:
        return "embedding"
    if "lm_head" in parts:
        return "head"
    return f"layers_{parts[parts.index('layers') + 1]}/{NAMES[next(p for p in parts if p in NAMES)]}"


def ours_of(name: str, tensor: torch.Tensor) -> tuple[str, np.ndarray] | None:
    """(path, array) of one of peft's tensors."""
    if "lora_" not in name:
        return None
    array, path = tensor.detach().numpy().copy(), our_path(name)
    for theirs, ours in (("lora_A", "a"), ("lora_B", "b"), ("lora_embedding_A", "a"), ("lora_embedding_B", "b")):
        if f".{theirs}." in name:
            return f"{path}/{ours}", array.T
    return f"{path}/magnitude", array


@pytest.fixture(scope="module", params=CASES)
def compared(request, tmp_path_factory):
    """(case, base and parameters here, peft's model at its beginning and after a push, the same adapters here)."""
    case = CASES[request.param]
    torch_model = reference.torch_llama(num_hidden_layers=2, tie_word_embeddings=case.tied)
    directory = reference.save(torch_model, tmp_path_factory.mktemp("adapters"))
    base, params = load_pretrained(directory, execution=Execution(layer_layout="unrolled"))
    settings = {"r": 3, "lora_alpha": 6.0, "lora_dropout": 0.0, "target_modules": list(PROJECTIONS)}
    wrapped = peft.get_peft_model(torch_model, peft.LoraConfig(**(settings | case.peft))).eval()
    begun = dict(found for n, p in wrapped.named_parameters() if (found := ours_of(n, p)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name and not (case.tied and "lm_head" in name):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    pushed = dict(
        found for n, p in wrapped.named_parameters() if not (case.tied and "lm_head" in n) and (found := ours_of(n, p))
    )
    if case.config.get("method") == "pissa":
        for path in list(pushed):
            weight, _, name = path.rpartition("/")
            pushed[f"{weight}/constant_{name}"] = begun[path]
    return case, base, params, wrapped, begun, reference.unflatten({p: jnp.asarray(x) for p, x in pushed.items()})


def run(case, base, params, adapters, layout="unrolled"):
    model = Decoder(base.config, Execution(layer_layout=layout), AdapterSpec(adapter_config(case).method))
    flat = reference.flat(to_layout(adapters, layout))
    trained = {path: leaf for path, leaf in flat.items() if is_trained(f"adapters/{path}")}
    constants = {path: leaf for path, leaf in flat.items() if path not in trained}
    frozen = {"params": to_layout(params, layout), "adapters": reference.unflatten(constants)}
    ids = reference.tokens(2, 8)

    def loss(trained):
        everything = variables({"adapters": reference.unflatten(trained)}, frozen, hyper(case))
        logits = model.apply(everything, ids)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    (_, logits), gradient = reference.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    return logits, gradient


def test_logits_and_gradients(compared):
    case, base, params, wrapped, _, adapters = compared
    logits, gradient = run(case, base, params, adapters)
    wrapped.zero_grad()
    theirs = wrapped(input_ids=torch.from_numpy(reference.tokens(2, 8)).long()).logits
    np.testing.assert_allclose(logits, theirs.detach().numpy(), atol=1e-4)
    torch.logsumexp(theirs, -1).mean().backward()
    expected = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.grad is not None and (found := ours_of(name, parameter.grad)):
            expected.setdefault(*found)
    if case.tied:  # two parameters over the same numbers: peft keeps the gradients of the two uses apart
        expected["embedding/a"] = expected["embedding/a"] + expected.pop("head/b").T
        expected["embedding/b"] = expected["embedding/b"] + expected.pop("head/a").T
    assert expected.keys() == gradient.keys()
    for path, leaf in expected.items():
        assert reference.relative(gradient[path], leaf) < 1e-4, path


def test_layouts_give_the_same(compared):
    case, base, params, _, _, adapters = compared
    expected = run(case, base, params, adapters)[0]
    np.testing.assert_allclose(run(case, base, params, adapters, "scan")[0], expected, atol=1e-4)


def test_merged_weights_give_the_same(compared):
    case, base, params, _, _, adapters = compared
    tree = variables({"adapters": adapters}, {"params": params}, hyper(case))
    merged = merge_adapters(tree, adapter_config(case).method)
    found = reference.logits_of(base, merged, reference.tokens(2, 8))
    np.testing.assert_allclose(found, run(case, base, params, adapters)[0], atol=1e-4)


def test_the_beginning_changes_nothing_and_is_of_the_right_size(compared):
    """Output and number of trained parameters at step 0 are peft's, for PiSSA A B too."""
    case, base, params, wrapped, begun, _ = compared
    adapters = fresh(case, params)
    plain = reference.logits_of(base, params, reference.tokens(2, 8))
    np.testing.assert_allclose(run(case, base, params, adapters)[0], plain, atol=1e-4)
    flat = {path: leaf for path, leaf in reference.flat(adapters).items() if is_trained(f"adapters/{path}")}
    assert {path: leaf.shape for path, leaf in flat.items()}.items() >= {
        path: leaf.shape for path, leaf in begun.items() if not (case.tied and path.startswith("head"))
    }.items()
    if not case.tied:
        assert sum(leaf.size for leaf in flat.values()) == wrapped.get_nb_trainable_parameters()[0]
    if case.config.get("method") == "pissa":
        for path in (path.removesuffix("/a") for path in flat if path.endswith("/a")):
            ours, theirs = (tree[f"{path}/a"] @ tree[f"{path}/b"] for tree in (flat, begun))
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_peft_adds_the_update_of_a_tied_embedding_twice():
    """What docs/export.md warns of: two adapters of the same numbers, merged into one weight."""
    torch_model = reference.torch_llama(num_hidden_layers=1, tie_word_embeddings=True)
    settings = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    wrapped = peft.get_peft_model(torch_model, peft.LoraConfig(r=3, **settings)).eval()
    embedding, generator = wrapped.get_input_embeddings(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_embedding_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        before, update = embedding.base_layer.weight.clone(), embedding.get_delta_weight("default")
        merged = wrapped.merge_and_unload().get_input_embeddings().weight
    torch.testing.assert_close(merged, before + 2 * update, rtol=1e-5, atol=1e-5)


def test_dora_table():
    """W = [[3, 0], [4, 1]], A = [[1], [0]], B = [[1, 2]], scale 2: columns (5, 4) and (4, 1)."""
    kernel = jnp.asarray([[3.0, 0.0], [4.0, 1.0]])
    adapter = {"a": jnp.asarray([[1.0], [0.0]]), "b": jnp.asarray([[1.0, 2.0]]), "scale": jnp.float32(2)}
    norms = np.sqrt([41.0, 17.0])
    adapter["magnitude"] = jnp.asarray(2 * norms)
    np.testing.assert_allclose(dora.merge(kernel, adapter), [[10.0, 8.0], [8.0, 2.0]], rtol=1e-6)


def test_every_method_is_compared():
    assert {adapter_config(case).method for case in CASES.values()} == METHODS.keys()


def names_of(**changes):
    _, params = reference.random_params({"num_hidden_layers": 2, **changes})
    return weight_names(reference.flat(to_layout(params, "scan")))


def test_what_can_be_adapted():
    tied, untied = names_of(), names_of(tie_word_embeddings=False)
    assert tied.keys() == {*NAMES.values(), "embedding"}
    assert untied.keys() - tied.keys() == {"head"}
    assert tied["ffn/up"] == ("layers/ffn/up/kernel",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("attention/q",)}, r"targets=\['attention/q'\] match nothing; there are: attention/key"),
        ({"targets": ()}, r"targets=\(\) match nothing"),
        ({"ranks": ("head=4",)}, "ranks: 'head' matches no target"),
        ({"ranks": ("4",)}, "'4' is not of the form pattern=rank"),
        ({"ranks": ("ffn/up=0",)}, "'ffn/up=0' is not of the form pattern=rank"),
    ],
)
def test_patterns_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        adapter_ranks(names_of(), adapter_config(Case(changes, {})))


def test_what_a_method_cannot_adapt_is_refused():
    _, params = reference.random_params({"num_hidden_layers": 1})
    with pytest.raises(ValueError, match="method=dora is not implemented for an embedding that is the head too"):
        fresh(Case({"method": "dora", "targets": ("embedding",)}, {}), params)
    assert get_method("dora").ON_EXPERTS is False


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"lora"}))  # on which everything else is tested
def test_a_run_resumes_and_is_loaded(method, tmp_path):
    """Interrupted after 2 of 4 steps, it ends with the same numbers; constants come from the checkpoint."""
    settings = {"adapter.method": method, "evaluation.every": "0 steps", "checkpoint.best_metric": ""}
    settings |= {"checkpoint.keep_last": 2}
    config = tiny.config(tmp_path, "lora", duration="4 steps", **settings)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    train(config, tmp_path / "parts")
    whole, parts = (
        [line["train/loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "train/loss" in line]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert len(whole) == 4
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "parts"), mesh, "float32")
        assert np.isfinite(reference.apply(loaded.model, loaded.variables, reference.tokens(1, 8))).all()
