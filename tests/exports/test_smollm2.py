"""The real SmolLM2-135M-Instruct, from a GGUF file to a Hugging Face directory: torch answers, and stops."""

import json

import pytest
import torch
import transformers

from tests.exports.conftest import export, in_torch

pytestmark = pytest.mark.slow


def test_torch_answers_and_stops(tmp_path):
    exported = export("smollm2-135m-instruct", tmp_path / "out", "bfloat16")
    assert exported.drift.relative < 0.1
    model, tokenizer = in_torch(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    golden = json.loads((tmp_path / "out" / "golden.json").read_text())
    with torch.no_grad():
        likely = torch.log_softmax(model(input_ids=torch.tensor([golden["ids"]])).logits[0, -1], -1)
    for token in golden["next_tokens"]:
        assert float(likely[token["id"]]) == pytest.approx(token["log_probability"], abs=1e-3)
